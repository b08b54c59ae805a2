"""Hashing again what was committed: the same findings where files lie in a folder and where they come from a bucket."""

import secrets
from pathlib import Path

import pytest
import xxhash

from cluster.storage import Storage, open_storage
from schemas.artifact import FileEntry
from schemas.manifest import InputFile
from tasks.rehashing import Walk
from tasks.store import Store
from tests.fakes.remote_text import InMemory
from tests.fakes.s3_server import BUCKET

KEY = "tokenize/x-0123456789ab"


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.slow)])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "folder":
        return open_storage(str(tmp_path / "data"))
    request.getfixturevalue("s3_bucket")
    return open_storage(f"s3://{BUCKET}/rehashing-{secrets.token_hex(4)}")


def entry(name: str, content: bytes) -> FileEntry:
    return FileEntry(path=name, size=len(content), xxh3=xxhash.xxh3_128(content).hexdigest())


def test_every_damage_is_found_and_named(storage: Storage) -> None:
    entries = [entry(name, name.encode()) for name in ("whole", "sub/changed", "shorter", "missing")]
    for name, content in {"whole": b"whole", "sub/changed": b"SUB/CHANGED", "shorter": b"short"}.items():
        storage.create_exclusive(f"{KEY}/{name}", content)
    walk = Walk(Store(storage))
    walk.hashed_below(KEY, entries)
    place = f"{storage.url}/{KEY}"
    assert walk.findings == [
        f"{place}/sub/changed: its content is not what was committed",
        f"{place}/shorter: 5 bytes, 7 were committed",
        f"{place}/missing: missing",
    ]
    assert [(one.key, one.files, one.bytes) for one in walk.artifacts] == [(KEY, 4, sum(each.size for each in entries))]


def test_everything_below_is_listed_that_may_be_content(storage: Storage) -> None:
    for name in ("a", "sub/deeper/b", "record.json"):
        storage.create_exclusive(f"{KEY}/{name}", b"1")
    walk = Walk(Store(storage))
    assert set(walk.names_below(KEY)) == {"a", "sub/deeper/b", "record.json"}
    assert (walk.has_folder(f"{KEY}/sub"), walk.has_folder(f"{KEY}/none")) == (True, False)


def test_raw_text_is_hashed_where_it_lies_here_or_behind_a_url(tmp_path: Path) -> None:
    place = InMemory()
    files = []
    for name in ("whole", "changed", "gone"):
        place.put(name, name.encode())
        (tmp_path / name).write_text(name)
        files += [(entry(name, name.encode()), path) for path in (f"{place.url}/{name}", str(tmp_path / name))]
    place.put("changed", b"CHANGED")
    (tmp_path / "changed").write_text("CHANGED")
    place.remove("gone")
    (tmp_path / "gone").unlink()
    walk = Walk(Store(open_storage(str(tmp_path / "data"))))
    walk.hashed_raw("raw", (InputFile(source="s", path=path, relative_path=file.path, size=file.size, xxh3=file.xxh3) for file, path in files))
    assert walk.findings == [
        f"{place.url}/changed: its content is not what was committed",
        f"{tmp_path}/changed: its content is not what was committed",
        f"{place.url}/gone: is not there any more",
        f"{tmp_path}/gone: missing",
    ]
    assert [(booked.key, booked.files) for booked in walk.artifacts] == [("raw", 6)]
