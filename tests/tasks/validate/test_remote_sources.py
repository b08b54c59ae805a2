"""Raw text behind URLs is the same text: the same files, names, order and hash as in a folder here; and nothing of it is read twice for its hash."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.remote_files import RemoteFiles
from schemas.config import RunConfig
from schemas.corpus_config import SourceConfig
from schemas.errors import InputError
from schemas.manifest import InputFile, raw_hash
from tasks import file_hashes, hashing
from tasks.file_hashes import FileHashes
from tasks.validate.remote_sources import find_remote
from tasks.validate.sources import find_files, is_selected, plan_inputs
from tests.fakes.plain_hashes import PlainHashes
from tests.fakes.remote_text import InMemory, web_serving

Recipe = Callable[..., RunConfig]
NAMES = ["b.txt", "a.py", "sub/c.py", "sub/deep/d.md", "sub/deep/B.py", ".hidden.py", ".git/config.py", "sub/.cache/x.py", "z/deep/e.py"]


@pytest.fixture
def place() -> InMemory:
    place = InMemory()
    for name in NAMES:
        place.put(name, f"text of {name}".encode())
    return place


def here(folder: Path) -> Path:
    for name in NAMES:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"text of {name}")
    return folder


def found(url: str, **options: Any) -> list[str]:
    source = SourceConfig.model_validate({"path": url} | options)
    return list(find_remote(source, name="s", remote=RemoteFiles(sleep=lambda _: None), is_selected=is_selected))


@pytest.mark.parametrize(
    ("within", "options"),
    [
        ("", {}),
        ("/", {}),
        ("/sub", {}),
        ("", {"include": ("*.py",)}),
        ("", {"include": ("*.py", "*.md"), "exclude": ("sub/c*",)}),
        ("", {"exclude": ("sub/*",)}),
        ("", {"exclude": ("*/deep/*",)}),
        ("/a.py", {"exclude": ("*",)}),
        ("/*.py", {}),
        ("/**/*.py", {}),
        ("/**/deep/*", {}),
        ("/*/deep/[a-z].*", {}),
        ("/s?b/*", {}),
        ("/sub/**/d.md", {}),
    ],
)
def test_a_url_stands_for_the_files_that_a_folder_with_them_does(within: str, options: dict[str, Any], place: InMemory, tmp_path: Path) -> None:
    local = SourceConfig.model_validate({"path": f"{here(tmp_path / 'in')}{within}"} | options)
    assert found(f"{place.url}{within}", **options) == [file.relative_path for file in find_files(local, name="s")]


def test_a_name_with_glob_characters_that_exists_is_that_file(place: InMemory) -> None:
    place.put("a[1].txt", b"one")
    place.put("a1.txt", b"two")
    assert found(f"{place.url}/a[1].txt") == ["a[1].txt"]


@pytest.mark.parametrize(("within", "options"), [("/nowhere", {}), ("/*.csv", {}), ("", {"include": ("*.csv",)}), ("/a.py/", {})])
def test_a_url_that_stands_for_nothing_is_refused(within: str, options: dict[str, Any], place: InMemory) -> None:
    with pytest.raises(InputError, match="holds no file to read") as caught:
        found(f"{place.url}{within}", **options)
    assert "corpus.sources[].path" in caught.value.mend


def test_all_sources_that_cannot_be_read_are_told_at_once(place: InMemory, tmp_path: Path, recipe: Recipe) -> None:
    config = recipe(f"{place.url}/nowhere", place.url, "nope://a/b", f"{place.url}/*.csv")
    with FileHashes(tmp_path / "cache.sqlite") as hashes, pytest.raises(InputError, match="3 sources cannot be read") as caught:
        plan_inputs(config, hashes)
    for told in ("source-0", "nope:// is no protocol", "source-3"):
        assert told in str(caught.value)


def test_the_inputs_of_a_corpus_do_not_tell_where_they_lay(place: InMemory, tmp_path: Path, recipe: Recipe) -> None:
    remote = recipe({"path": place.url, "name": "s"})
    with FileHashes(tmp_path / "cache.sqlite") as hashes:
        there = plan_inputs(remote, hashes)
    local = recipe({"path": str(here(tmp_path / "in")), "name": "s"})
    here_too = plan_inputs(local, PlainHashes())
    assert [file.model_copy(update={"path": ""}) for file in there] == [file.model_copy(update={"path": ""}) for file in here_too]
    assert raw_hash(there) == raw_hash(here_too)
    assert there[0].path == f"{place.url}/a.py"


# ---- the cache of hashes ------------------------------------------------------------------------------------------------


def planned(config: RunConfig, database: Path) -> tuple[InputFile, ...]:
    with FileHashes(database) as hashes:
        return plan_inputs(config, hashes)


def test_a_file_is_read_for_its_hash_when_its_server_says_that_it_changed_and_never_again(tmp_path: Path, recipe: Recipe) -> None:
    with web_serving() as web:
        for name in ("a.txt", "b.txt"):
            web.put(name, b"one")
        config = recipe(f"{web.url}/a.txt", f"{web.url}/b.txt")
        first = planned(config, tmp_path / "cache.sqlite")
        assert sorted(asked for asked in web.asked if "GET" in asked) == ["GET a.txt", "GET b.txt"]
        web.asked.clear()
        assert planned(config, tmp_path / "cache.sqlite") == first
        assert web.asked == ["HEAD a.txt", "HEAD b.txt"]
        web.put("b.txt", b"two")
        web.asked.clear()
        changed = planned(config, tmp_path / "cache.sqlite")
        assert [asked for asked in web.asked if "GET" in asked] == ["GET b.txt"]
        assert [before.xxh3 == now.xxh3 for before, now in zip(first, changed, strict=True)] == [True, False]


def test_what_was_read_is_remembered_though_another_file_fails(tmp_path: Path, recipe: Recipe) -> None:
    with web_serving() as web:
        for name in ("a.txt", "b.txt"):
            web.put(name, b"one")
        config = recipe(f"{web.url}/a.txt", f"{web.url}/b.txt")
        fetch = RemoteFiles.fetch
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(hashing, "_AT_A_TIME", 1)
            patch.setattr(RemoteFiles, "fetch", lambda self, url, **how: fetch(self, url, **how) if "a.txt" in url else 1 / 0)
            with pytest.raises(ZeroDivisionError):
                planned(config, tmp_path / "cache.sqlite")
        web.asked.clear()
        planned(config, tmp_path / "cache.sqlite")
        assert [asked for asked in web.asked if "GET" in asked] == ["GET b.txt"]


@pytest.mark.parametrize(("age_s", "gets"), [(10.0, 2), (1000.0, 1)])
def test_a_time_alone_is_trusted_only_once_it_is_long_past(
    age_s: float, gets: int, tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two writes within one tick of a server's clock leave equal times, and its clock may differ from this one."""
    monkeypatch.setattr(file_hashes.time, "time", lambda: 1767225600.0 + age_s)
    with web_serving() as web:
        web.put("a.txt", b"one")
        web.says["a.txt"] = {"Content-Length": "3", "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}
        for _ in range(2):
            planned(recipe(f"{web.url}/a.txt"), tmp_path / "cache.sqlite")
        assert web.asked.count("GET a.txt") == gets


def test_what_changed_between_the_listing_and_the_reading_is_refused(tmp_path: Path) -> None:
    place = InMemory()
    place.put("a.txt", b"one")
    listed = RemoteFiles().find(f"{place.url}/a.txt")
    assert listed is not None
    place.put("a.txt", b"longer")
    with FileHashes(tmp_path / "cache.sqlite") as hashes, pytest.raises(InputError, match="changed since it was listed"):
        hashes.hash(listed)
