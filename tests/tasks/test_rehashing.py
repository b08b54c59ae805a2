"""Hashing again what was committed: the same findings where files lie in a folder and where they come from a bucket."""

import secrets
from pathlib import Path

import pytest
import xxhash

from cluster.storage import Storage, open_storage
from schemas.artifact import FileEntry
from tasks.rehashing import Walk
from tasks.store import Store
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
