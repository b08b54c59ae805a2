"""Content hashes of raw input files, cached by (path, size, mtime, ctime, inode) in `{state}/file-hashes.sqlite`.

A hint for `run` and `plan`: the validate stage hashes the very bytes it parses, and `verify` ignores the cache.
"""

import logging
import os
import sqlite3
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from cluster.storage import hash_file

logger = logging.getLogger(__name__)

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
        """Writes what was learnt and closes the database. A cache that cannot be written is no failure of the run."""
        rows: Iterable[tuple[object, ...]] = [(key, *stamp) for key, stamp in self._new.items()]
        try:
            with self._connection:
                self._connection.executemany("INSERT OR REPLACE INTO file_hashes VALUES (?, ?, ?, ?, ?, ?)", rows)
        except sqlite3.Error as error:
            logger.warning("%s: what was hashed is not remembered: %s", self._database, error)
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _load(self) -> dict[str, tuple[int, int, int, int, str]]:
        if self._known is None:
            try:
                rows = self._connection.execute("SELECT path, size, mtime_ns, ctime_ns, inode, xxh3 FROM file_hashes").fetchall()
            except sqlite3.Error as error:
                logger.warning("%s: every file is hashed anew: %s", self._database, error)
                rows = []
            self._known = {row[0]: (row[1], row[2], row[3], row[4], row[5]) for row in rows}
        return self._known

    def _connect(self) -> sqlite3.Connection:
        """Opens the database. A damaged file is a lost cache and made anew; one that is busy or read-only is done without."""
        try:
            return _opened(self._database)
        except sqlite3.OperationalError as error:
            logger.warning("%s: %s", self._database, error)
            return _opened(":memory:")
        except sqlite3.DatabaseError:
            for suffix in ("", "-wal", "-shm"):
                self._database.with_name(self._database.name + suffix).unlink(missing_ok=True)
            return _opened(self._database)


def _opened(database: Path | str) -> sqlite3.Connection:
    connection = sqlite3.connect(database, timeout=30)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute(_SCHEMA)
    return connection
