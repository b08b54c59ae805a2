"""Content hashes of raw input files, cached by (path, size, mtime, ctime, inode) in `{state}/file-hashes.sqlite`.

A hint for `run` and `plan`: the validate stage hashes the very bytes it parses, and `verify` ignores the cache.
"""

import os
import sqlite3
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from cluster.storage import hash_file

_YOUNG_NS = 2_000_000_000
"""A file changed within this time before it was hashed may change again without a new time stamp; it is not cached."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS file_hashes (
    path TEXT PRIMARY KEY, size INTEGER, mtime_ns INTEGER, ctime_ns INTEGER, inode INTEGER, xxh3 TEXT
) WITHOUT ROWID
"""


class FileHashes:
    """xxh3-128 of files, remembered while nothing about the file changes. A damaged or locked cache only costs time."""

    def __init__(self, database: Path) -> None:
        """Args: database: the SQLite file; its folder is created."""
        database.parent.mkdir(parents=True, exist_ok=True)
        self._database = database
        self._connection = self._connect()
        self._known: dict[str, tuple[int, int, int, int, str]] | None = None
        self._new: dict[str, tuple[int, int, int, int, str]] = {}

    def hash(self, path: Path) -> str:
        """Returns the hash of a regular file; raises UnsafeFileError for anything else, OSError when it cannot be read."""
        status = os.stat(path, follow_symlinks=False)
        key, stamp = str(path), (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
        known = self._load().get(key)
        if known is not None and known[:4] == stamp:
            return known[4]
        now = time.time_ns()
        digest = hash_file(path)
        if now - max(status.st_mtime_ns, status.st_ctime_ns) > _YOUNG_NS:
            self._new[key] = (*stamp, digest)
            self._load()[key] = (*stamp, digest)
        return digest

    def close(self) -> None:
        """Writes what was learnt and closes the database."""
        rows: Iterable[tuple[object, ...]] = [(key, *stamp) for key, stamp in self._new.items()]
        with self._connection:
            self._connection.executemany("INSERT OR REPLACE INTO file_hashes VALUES (?, ?, ?, ?, ?, ?)", rows)
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _load(self) -> dict[str, tuple[int, int, int, int, str]]:
        if self._known is None:
            rows = self._connection.execute("SELECT path, size, mtime_ns, ctime_ns, inode, xxh3 FROM file_hashes")
            self._known = {row[0]: (row[1], row[2], row[3], row[4], row[5]) for row in rows}
        return self._known

    def _connect(self) -> sqlite3.Connection:
        """Opens the database; a damaged file is a lost cache, so it is made anew."""
        try:
            connection = sqlite3.connect(self._database, timeout=30)
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute(_SCHEMA)
        except sqlite3.DatabaseError:
            self._database.unlink(missing_ok=True)
            connection = sqlite3.connect(self._database, timeout=30)
            connection.execute(_SCHEMA)
        return connection
