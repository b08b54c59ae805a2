"""What holds for S3 beyond the contract of all storages: requests that fail, answers that are lost, files in parts, rights that are missing."""

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import s3_storage
from cluster.patience import PatientStorage
from cluster.s3_requests import S3Requests
from cluster.s3_storage import S3Storage
from cluster.storage import AlreadyExistsError, file_entry, open_storage
from schemas.artifact import FileEntry
from schemas.errors import ConfigError, UnreachableError
from schemas.exit_code import ExitCode
from tests.fakes.s3_faults import Fault, Trouble, troubled
from tests.fakes.s3_server import BUCKET, S3Server

PART_BYTES = 5 << 20
"""The smallest that S3 takes."""


@pytest.fixture
def url() -> str:
    return f"s3://{BUCKET}/test-{secrets.token_hex(4)}"


@pytest.fixture
def trouble(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Trouble]:
    """What stands between this process and the server; nothing goes wrong unless asked for."""
    with troubled(s3_server.endpoint) as (endpoint, trouble):
        for name, value in s3_server.environment(endpoint=endpoint).items():
            monkeypatch.setenv(name, value)
        yield trouble


@pytest.fixture
def storage(trouble: Trouble, url: str) -> S3Storage:
    return S3Storage(url, sleep=lambda _seconds: None)


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, FileEntry]:
    """A file of three parts, the last of them short."""
    monkeypatch.setattr(s3_storage, "_BLOCK_BYTES", PART_BYTES)
    path = tmp_path / "large"
    path.write_bytes(os.urandom(2 * PART_BYTES + 1000))
    return path, file_entry(path, relative_to=tmp_path)


def unfinished_uploads(url: str) -> list[str]:
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    answer = S3Requests(bucket, url=url).call("list_multipart_uploads", Prefix=prefix)
    return [upload["Key"] for upload in answer.get("Uploads") or ()]


@pytest.mark.slow
@pytest.mark.parametrize("fault", [None, *Fault])
def test_the_server_copies_what_is_there_as_it_is_said_to_be(storage: S3Storage, trouble: Trouble, fault: Fault | None) -> None:
    storage.create_exclusive("a/one", b"1234")
    storage.create_exclusive("b/left", b"left by a start that was killed")
    if fault is not None:
        trouble.forced.append(("PUT", fault))
    assert storage.copy("a/one", "b/one", size=4)
    assert storage.copy("a/one", "b/left", size=4)
    assert [storage.read(key) for key in ("a/one", "b/one", "b/left")] == [b"1234"] * 3
    assert not storage.copy("a/two", "b/two", size=4)
    assert not storage.copy("a/one", "b/two", size=5)
    assert not storage.exists("b/two")
    assert not storage.copy("a/two", "b/left", size=4)
    assert not storage.copy("a/one", "b/left", size=5)
    assert storage.read("b/left") == b"1234", "what was there stays"


@pytest.mark.slow
@pytest.mark.parametrize("fault", Fault)
def test_a_put_that_fails_once_is_made_once(storage: S3Storage, trouble: Trouble, fault: Fault) -> None:
    trouble.forced.append(("PUT", fault))
    storage.create_exclusive("claim", b"mine")
    assert [struck for struck, _ in trouble.struck] == [fault]
    assert storage.read("claim") == b"mine"
    with pytest.raises(AlreadyExistsError):
        storage.create_exclusive("claim", b"mine")


@pytest.mark.slow
def test_a_put_whose_answer_is_lost_does_not_take_another_writers_equal_bytes_for_its_own(storage: S3Storage, trouble: Trouble) -> None:
    storage.create_exclusive("claim", b"equal")
    trouble.forced.append(("PUT", Fault.LOST_ANSWER))
    with pytest.raises(AlreadyExistsError):
        storage.create_exclusive("claim", b"equal")
    assert len(trouble.struck) == 1


@pytest.mark.exhaustive
def test_everything_works_while_a_third_of_all_requests_fail(
    storage: S3Storage, trouble: Trouble, large: tuple[Path, FileEntry], tmp_path: Path
) -> None:
    trouble.share = 0.33
    for number in range(20):
        storage.create_exclusive(f"f/{number:02d}", bytes([number]))
    assert [storage.read(f"f/{number:02d}") for number in range(20)] == [bytes([number]) for number in range(20)]
    assert storage.names("f") == tuple(f"{number:02d}" for number in range(20))
    path, entry = large
    storage.upload(path, "large", entry=entry)
    storage.download("large", tmp_path / "copy", size=entry.size)
    assert (tmp_path / "copy").read_bytes() == path.read_bytes()
    storage.delete("f")
    assert (storage.names("f"), storage.exists("f/07")) == ((), False)
    assert {fault for fault, _ in trouble.struck} == set(Fault)


@pytest.mark.exhaustive
@pytest.mark.parametrize("fault", Fault)
def test_a_file_in_parts_appears_whole_whatever_happens_to_its_last_request(
    storage: S3Storage, trouble: Trouble, large: tuple[Path, FileEntry], url: str, fault: Fault
) -> None:
    path, entry = large
    trouble.forced += [("POST", Fault.BUSY), ("PUT", fault)]  # its beginning, one of its parts
    storage.upload(path, "large", entry=entry)
    assert storage.hash("large") == entry.xxh3
    storage.delete("large")
    trouble.forced += [("POST", fault), ("POST", fault)]  # its beginning, and what comes next: the end
    storage.upload(path, "large", entry=entry)
    assert (storage.size("large"), storage.hash("large")) == (entry.size, entry.xxh3)
    assert len(trouble.struck) == 4
    # a lost answer to its beginning leaves an upload that nobody knows; the next one of the same key ends it
    storage.delete("large")
    storage.upload(path, "large", entry=entry)
    assert unfinished_uploads(url) == []


@pytest.mark.slow
def test_an_upload_that_was_killed_leaves_no_object_and_the_next_one_ends_it(storage: S3Storage, large: tuple[Path, FileEntry], url: str) -> None:
    path, entry = large
    requests, name = S3Requests(BUCKET, url=url), f"{url.removeprefix(f's3://{BUCKET}/')}/large"
    upload = requests.call("create_multipart_upload", Key=name)
    requests.call("upload_part", Key=name, UploadId=upload["UploadId"], PartNumber=1, Body=b"x" * PART_BYTES)
    assert not storage.exists("large")
    assert unfinished_uploads(url) == [name]
    storage.upload(path, "large", entry=entry)
    assert unfinished_uploads(url) == []
    assert storage.hash("large") == entry.xxh3
    requests.call("create_multipart_upload", Key=name)  # one that was killed after its object was there, before it ended this one
    storage.upload(path, "large", entry=entry)
    assert unfinished_uploads(url) == []


@pytest.mark.slow
def test_of_two_that_upload_one_file_at_once_the_slower_finds_the_others_object(
    storage: S3Storage, trouble: Trouble, large: tuple[Path, FileEntry], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two nodes run one item (decision 37), and both upload what it made."""
    monkeypatch.setattr(s3_storage, "_AT_A_TIME", 1)  # else all parts are there before the other one begins
    path, entry = large
    ended = []

    def upload_whole() -> None:
        S3Storage(url).upload(path, "large", entry=entry)
        ended.append(url)

    trouble.stalled = ("/large", upload_whole)  # between the first part and the second
    storage.upload(path, "large", entry=entry)
    assert ended == [url]
    assert (storage.size("large"), storage.hash("large")) == (entry.size, entry.xxh3)
    assert unfinished_uploads(url) == []


@pytest.mark.slow
def test_an_object_that_is_there_is_there_though_nobody_may_list_uploads(
    storage: S3Storage, large: tuple[Path, FileEntry], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_self: S3Storage, prefix: str) -> None:
        raise PermissionError(prefix)

    monkeypatch.setattr(S3Storage, "_uploads", refuse)
    path, entry = large
    storage.upload(path, "large", entry=entry)
    assert storage.hash("large") == entry.xxh3
    assert "unfinished uploads" in caplog.text


@pytest.mark.slow
def test_an_upload_that_fails_ends_nobody_elses(
    storage: S3Storage, trouble: Trouble, large: tuple[Path, FileEntry], url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_storage, "_AT_A_TIME", 1)
    path, entry = large
    failures: list[type[Exception]] = []

    def fail() -> None:
        try:
            S3Storage(url).upload(tmp_path / "gone", "large", entry=entry)
        except FileNotFoundError as error:
            failures.append(type(error))

    trouble.stalled = ("/large", fail)
    storage.upload(path, "large", entry=entry)
    assert failures == [FileNotFoundError]
    assert storage.hash("large") == entry.xxh3
    assert unfinished_uploads(url) == []


@pytest.mark.slow
def test_uploads_of_longer_names_go_on(storage: S3Storage, large: tuple[Path, FileEntry], url: str) -> None:
    path, entry = large
    name = f"{url.removeprefix(f's3://{BUCKET}/')}/large.idx"
    S3Requests(BUCKET, url=url).call("create_multipart_upload", Key=name)
    storage.upload(path, "large", entry=entry)
    assert unfinished_uploads(url) == [name]
    assert storage.abandon_uploads("large") == 1
    assert unfinished_uploads(url) == []


@pytest.mark.slow
def test_an_upload_that_was_ended_without_an_object_may_be_tried_again(
    storage: S3Storage, trouble: Trouble, large: tuple[Path, FileEntry], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is missing is told from a local file that is missing, which nobody has to try again."""
    monkeypatch.setattr(s3_storage, "_AT_A_TIME", 1)
    path, entry = large
    ended: list[int] = []
    trouble.stalled = ("/large", lambda: ended.append(S3Storage(url).abandon_uploads("large")))
    PatientStorage(storage, patience_s=1.0, sleep=lambda _seconds: None).patiently(lambda: storage.upload(path, "large", entry=entry))
    assert ended == [1]
    assert storage.hash("large") == entry.xxh3
    assert unfinished_uploads(url) == []


@pytest.mark.exhaustive
def test_equal_files_are_success_and_others_are_not(storage: S3Storage, large: tuple[Path, FileEntry], url: str) -> None:
    path, entry = large
    for _ in range(2):
        storage.upload(path, "large", entry=entry)
    path.write_bytes(b"x" * entry.size)
    with pytest.raises(AlreadyExistsError):
        storage.upload(path, "large", entry=file_entry(path, relative_to=path.parent))
    assert storage.hash("large") == entry.xxh3
    assert unfinished_uploads(url) == []


@pytest.mark.exhaustive
def test_an_empty_file_and_a_missing_one(storage: S3Storage, tmp_path: Path) -> None:
    path = tmp_path / "empty"
    path.touch()
    storage.upload(path, "empty", entry=file_entry(path, relative_to=tmp_path))
    storage.download("empty", tmp_path / "copy", size=0)
    assert (tmp_path / "copy").read_bytes() == b""
    for size in (0, 7):
        with pytest.raises(FileNotFoundError):
            storage.download("none", tmp_path / f"none-{size}", size=size)


@pytest.mark.exhaustive
def test_a_storage_that_never_answers_is_given_up_and_named(storage: S3Storage, trouble: Trouble) -> None:
    trouble.share = 1.0
    for act in (lambda: storage.read("a/b"), lambda: storage.create_exclusive("a/b", b"1"), lambda: storage.names("a/b")):
        before = len(trouble.struck)
        with pytest.raises(UnreachableError, match="a/b") as caught:
            act()
        assert 1 < len(trouble.struck) - before < 20
        assert caught.value.exit_code is ExitCode.UNREACHABLE
        assert "storage failed" in caught.value.what


@pytest.mark.slow
def test_who_may_only_read_is_told_which_key_was_refused(s3_server: S3Server, s3_bucket: S3Server, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    open_storage(url).create_exclusive("a", b"1")
    for name, value in s3_server.environment(reads_only=True).items():
        monkeypatch.setenv(name, value)
    storage = open_storage(url)
    assert storage.read("a") == b"1"
    for act in (lambda: storage.create_exclusive("runs/x", b"2"), lambda: storage.delete("a")):
        with pytest.raises(UnreachableError, match=f"{url}/(runs/x|a): access is denied") as caught:
            act()
        assert "AbortMultipartUpload" in caught.value.mend
        assert "secret" not in str(caught.value)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("changes", "bucket", "words"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, BUCKET, "access is denied"),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, BUCKET, "no credentials"),
        ({}, "nosuchbucket", "bucket 'nosuchbucket' does not exist"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, BUCKET, "storage failed"),
    ],
)
def test_what_is_wrong_with_the_way_there_is_said(
    s3_bucket: S3Server, monkeypatch: pytest.MonkeyPatch, changes: dict[str, str], bucket: str, words: str
) -> None:
    for name, value in changes.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    with pytest.raises(UnreachableError, match=words) as caught:
        S3Storage(f"s3://{bucket}/x", sleep=lambda _seconds: None).read("a")
    assert caught.value.mend


@pytest.mark.parametrize("url", ["s3://", "s3:///prefix", "s3://me:secret@host/bucket", "s3://UPPER/x"])
def test_a_url_that_names_no_bucket_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="s3://BUCKET/PREFIX"):
        open_storage(url)
