"""The cache of file hashes: right after every change, and only a hint."""

import os
import time
from pathlib import Path

import pytest

from cluster.storage import hash_file
from schemas.errors import UnsafeFileError
from tasks.file_hashes import FileHashes


def old_file(path: Path, text: str) -> Path:
    path.write_text(text)
    past = time.time_ns() - 10_000_000_000
    os.utime(path, ns=(past, past))
    return path


def test_a_changed_file_gets_its_new_hash(tmp_path: Path) -> None:
    path, database = old_file(tmp_path / "a.txt", "one"), tmp_path / "cache.sqlite"
    with FileHashes(database) as hashes:
        assert hashes.hash(path) == hash_file(path)
    old_file(path, "two")
    with FileHashes(database) as hashes:
        assert hashes.hash(path) == hash_file(path)


def test_a_young_file_is_not_remembered(tmp_path: Path) -> None:
    """Two writes within one tick of the clock leave equal stamps, so a young entry proves nothing."""
    path, database = tmp_path / "a.txt", tmp_path / "cache.sqlite"
    path.write_text("one")
    status = path.stat()
    with FileHashes(database) as hashes:
        hashes.hash(path)
    path.write_text("two")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with FileHashes(database) as hashes:
        assert hashes.hash(path) == hash_file(path)


def test_a_damaged_cache_only_costs_time(tmp_path: Path) -> None:
    path, database = old_file(tmp_path / "a.txt", "one"), tmp_path / "cache.sqlite"
    database.write_bytes(b"not a database at all" * 100)
    with FileHashes(database) as hashes:
        assert hashes.hash(path) == hash_file(path)


def test_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("outside")
    (tmp_path / "link").symlink_to(tmp_path / "secret")
    with FileHashes(tmp_path / "cache.sqlite") as hashes, pytest.raises(UnsafeFileError, match="symbolic link"):
        hashes.hash(tmp_path / "link")
