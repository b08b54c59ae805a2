"""Files behind URLs: what their servers say of them, whole or not at all, and what is said when a server does not give them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import xxhash

from cluster import remote_files
from cluster.remote_files import RemoteFile, RemoteFiles
from schemas.errors import InputError, UnreachableError
from tests.fakes.remote_text import InBucket, InMemory, OnWeb, Place, web_serving
from tests.fakes.s3_server import BUCKET, S3Server

KINDS = ["memory", pytest.param("s3", marks=pytest.mark.slow), "web"]


@pytest.fixture
def web() -> Iterator[OnWeb]:
    with web_serving() as place:
        yield place


@pytest.fixture
def files() -> RemoteFiles:
    return RemoteFiles(sleep=lambda _: None)


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest) -> Place:
    if request.param == "memory":
        return InMemory()
    if request.param == "web":
        return request.getfixturevalue("web")
    request.getfixturevalue("s3_bucket")
    return InBucket()


def digest(content: bytes) -> str:
    return xxhash.xxh3_128(content).hexdigest()


def test_a_file_is_described_alike_until_its_content_is_another(place: Place, files: RemoteFiles) -> None:
    place.put("a.txt", b"one")
    url = f"{place.url}/a.txt"
    first = files.find(url)
    assert first is not None
    assert (first.url, first.size, bool(first.identity)) == (url, 3, True)
    assert files.find(url) == first
    place.put("a.txt", b"two")
    assert files.find(url) != first
    place.remove("a.txt")
    assert files.find(url) is None
    with pytest.raises(InputError, match=r"a\.txt: is not there any more"):
        files.fetch(url)


@pytest.mark.parametrize("place", KINDS[:2], indirect=True)
def test_a_folder_is_listed_to_its_bottom_as_its_files_describe_themselves(place: Place, files: RemoteFiles) -> None:
    for name in ("a.txt", "sub/deep/b c.txt", "sub/d%20e.txt", "sub/é+f.txt"):
        place.put(f"in/{name}", name.encode())
    place.put("in-other/g.txt", b"beside it")
    found = {file.url: file for file in files.below(f"{place.url}/in")}
    assert sorted(found) == sorted(f"{place.url}/in/{name}" for name in ("a.txt", "sub/deep/b c.txt", "sub/d%20e.txt", "sub/é+f.txt"))
    assert {url: files.find(url) for url in found} == found
    assert files.find(f"{place.url}/in") is None
    assert files.find(f"{place.url}/in/") is None
    assert list(files.below(f"{place.url}/nowhere")) == []


@pytest.mark.parametrize("size", [0, 3, 20_000])
def test_a_file_arrives_whole_block_by_block(size: int, place: Place, files: RemoteFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_files, "_BLOCK_BYTES", 7_000)
    content = bytes(range(256)) * 80
    place.put("a.bin", content[:size])
    target = tmp_path / "a.bin"
    target.write_bytes(b"what an earlier try left")
    fetched = files.fetch(f"{place.url}/a.bin", target=target)
    assert target.read_bytes() == content[:size]
    assert (fetched.xxh3, fetched.file) == (digest(content[:size]), files.find(f"{place.url}/a.bin"))


def test_a_file_that_changes_while_it_is_read_is_read_again_and_then_refused(files: RemoteFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    place, copied = InMemory(), remote_files._copied
    place.put("a.txt", b"one")
    changes = [b"two", b"six"]

    def disturbed(*arguments: Any, **how: Any) -> Any:
        result = copied(*arguments, **how)
        if changes:
            place.put("a.txt", changes.pop())
        return result

    monkeypatch.setattr(remote_files, "_copied", disturbed)
    assert files.fetch(f"{place.url}/a.txt").xxh3 == digest(b"two")
    changes += [b"one"] * 3
    with pytest.raises(InputError, match="changed while it was read"):
        files.fetch(f"{place.url}/a.txt")


# ---- what a web server says ---------------------------------------------------------------------------------------------


def test_where_only_times_tell_of_changes_the_last_one_is_known(web: OnWeb, files: RemoteFiles) -> None:
    web.put("a.txt", b"one")
    web.says["a.txt"] = {"Content-Length": "3", "ETag": 'W/"x"', "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}
    found = files.find(f"{web.url}/a.txt")
    assert found is not None
    assert (found.modified_at, "W/" in found.identity) == (1767225600.0, True)
    web.says["a.txt"] = {"Content-Length": "3"}
    assert files.find(f"{web.url}/a.txt") == RemoteFile(f"{web.url}/a.txt", size=3, identity="")


def test_a_file_without_a_size_is_refused(web: OnWeb, files: RemoteFiles) -> None:
    web.put("a.txt", b"one")
    web.says["a.txt"] = {"ETag": '"x"'}
    with pytest.raises(InputError, match="does not tell its size"):
        files.find(f"{web.url}/a.txt")


@pytest.mark.parametrize(("status", "said", "requests"), [(401, "access is denied", 2), (403, "access is denied", 2), (500, "cannot be read", 6)])
def test_a_web_server_that_refuses_is_not_one_that_has_nothing(status: int, said: str, requests: int, web: OnWeb, files: RemoteFiles) -> None:
    web.put("a.txt", b"one")
    web.answers["a.txt"] = status
    with pytest.raises(UnreachableError, match=rf"a\.txt: {said}") as caught:
        files.find(f"{web.url}/a.txt")
    assert str(status) in caught.value.why
    assert len(web.asked) == requests  # HEAD and GET, as fsspec asks; what may pass is asked again


def test_a_signature_that_a_server_sends_us_on_with_is_not_told(web: OnWeb, files: RemoteFiles) -> None:
    web.put("a.txt", b"one")
    web.answers |= {"a.txt": 302, "b.txt?signature=geheim": 403}
    web.says["a.txt"] = {"Location": "/b.txt?signature=geheim"}
    with pytest.raises(UnreachableError) as caught:
        files.find(f"{web.url}/a.txt")
    assert "geheim" not in str(caught.value)


def test_a_server_that_is_not_there_is_unreachable(files: RemoteFiles) -> None:
    with web_serving() as gone:
        pass
    with pytest.raises(UnreachableError, match="cannot be read"):
        files.find(f"{gone.url}/a.txt")


@pytest.mark.parametrize(("url", "said"), [("nope://x/y", "is no protocol that is known"), ("gs://x/y", "needs a package that is not installed")])
def test_protocols_that_nothing_here_speaks_are_named(url: str, said: str, files: RemoteFiles) -> None:
    with pytest.raises(InputError, match=f"^{url[: url.index(':')]}:// {said}"):
        files.find(url)


# ---- what an S3 server says ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_bucket_that_is_not_there_or_not_ours_is_told_with_what_mends_it(
    s3_server: S3Server, s3_bucket: S3Server, files: RemoteFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UnreachableError, match="the bucket 'nowhere' does not exist") as caught:
        list(files.below("s3://nowhere/raw"))
    assert "corpus.sources" in caught.value.mend
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(UnreachableError, match="access is denied") as caught:
        list(RemoteFiles().below(f"s3://{BUCKET}/raw"))
    assert "GetObject and ListBucket" in caught.value.mend


@pytest.mark.slow
def test_rights_to_read_and_list_are_enough(s3_server: S3Server, s3_bucket: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    place = InBucket()
    place.put("raw/a.txt", b"one")
    for name, value in s3_server.environment(reads_only=True).items():
        monkeypatch.setenv(name, value)
    files = RemoteFiles()
    assert [files.fetch(file.url).xxh3 for file in files.below(f"{place.url}/raw")] == [digest(b"one")]


@pytest.mark.slow
def test_a_bucket_whose_server_is_silent_is_unreachable(s3_bucket: S3Server, files: RemoteFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(UnreachableError, match="the storage failed, 8 times"):
        files.find(f"s3://{BUCKET}/raw/a.txt")
