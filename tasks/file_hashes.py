"""Content hashes of raw input files, cached in `{state}/file-hashes.sqlite`: local ones by (path, size, mtime, ctime, inode), remote ones by
(URL, size, identity).

A hint for `run` and `plan`: the validate stage hashes the very bytes it parses, and `verify` ignores the cache.
"""

import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Protocol, Self

from cluster.remote_files import RemoteFile, RemoteFiles
from cluster.storage import hash_file
from schemas.errors import InputError
from tasks.hashing import Hashing, Readers

logger = logging.getLogger(__name__)

_YOUNG_NS = 2_000_000_000
"""A file changed within this time before it was hashed may change again without a new time stamp; it is not cached."""
_YOUNG_S = 60.0
"""The same where only a server's clock tells, in whole seconds perhaps, and nobody knows how far it is from this one."""

_LOOK_EVERY_S = 1.0
_SAVE_EVERY_S = 30.0
"""How old what a killed process has learnt of local files may be and be lost, besides the files that it was reading."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS file_hashes (
    path TEXT PRIMARY KEY, size INTEGER, mtime_ns INTEGER, ctime_ns INTEGER, inode INTEGER, xxh3 TEXT
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS remote_hashes (url TEXT PRIMARY KEY, size INTEGER, identity TEXT, xxh3 TEXT) WITHOUT ROWID;
"""


class Hashes(Protocol):
    """Content hashes of files: xxh3-128, hex."""

    def hash(self, file: Path | RemoteFile) -> str:
        """Returns the hash of a file."""

    def hash_all(self, files: Sequence[Path | RemoteFile]) -> list[str]:
        """Returns the hashes of files, in their order."""


class _Look(NamedTuple):
    """What can be told of a file without reading it."""

    digest: str | None
    """Its hash, where it is remembered and nothing tells the file from the one that was hashed."""
    size: int


class FileHashes:
    """xxh3-128 of files, remembered while nothing about the file changes. A damaged or locked cache only costs time."""

    def __init__(self, database: Path, *, watch: Callable[[Hashing], None] = lambda _: None) -> None:
        """Opens the cache, or makes it.

        Args:
            database: the SQLite file; its folder is created.
            watch: sees every second how far `hash_all` is; what it raises ends that.
        """
        self._watch = watch
        database.parent.mkdir(parents=True, exist_ok=True)
        self._database = database
        self._connection = self._connect()
        self._known: dict[str, tuple[int, int, int, int, str]] | None = None
        self._new: dict[str, tuple[int, int, int, int, str]] = {}
        self._remote = RemoteFiles()
        self._lock, self._asking = threading.Lock(), threading.Lock()  # of what is known here; of the connection, where one may wait long

    def hash(self, file: Path | RemoteFile) -> str:
        """Returns the hash of a file. That of a remote one is remembered at once: it may have taken an hour.

        Raises:
            UnsafeFileError: a local one that is not regular.
            OSError: a local one cannot be read.
            InputError: a remote one is gone or changed, since it was listed or meanwhile.
            UnreachableError: the server of a remote one refuses, or does not answer.
        """
        return self._look_at(file).digest or self._read(file, on_block=lambda _: None)

    def hash_all(self, files: Sequence[Path | RemoteFile]) -> list[str]:
        """Returns the hashes of files, in their order. Those that nobody remembers are read, several at a time, and the hashes of those that
        are read are kept now and then: who is killed after an hour has not lost it. Raises as `hash`.
        """
        looks = {file: self._look_at(file) for file in dict.fromkeys(files)}
        unknown = {file: look.size for file, look in looks.items() if look.digest is None}
        read = self._read_all(unknown) if unknown else {}
        return [looks[file].digest or read[file] for file in files]

    def _read_all(self, sizes: Mapping[Path | RemoteFile, int]) -> dict[Path | RemoteFile, str]:
        began = saved = time.monotonic()
        total = sum(sizes.values())
        with Readers(tuple(sizes), read=self._read) as readers:
            while not readers.are_done(within_s=_LOOK_EVERY_S):
                now = time.monotonic()
                self._watch(Hashing(min(readers.done_bytes, total), total, now - began))
                if now - saved > _SAVE_EVERY_S:
                    self._save()
                    saved = now
        digests = readers.digests()
        self._watch(Hashing(total, total, time.monotonic() - began))
        return digests

    def _look_at(self, file: Path | RemoteFile) -> _Look:
        if isinstance(file, RemoteFile):
            asked = "SELECT xxh3 FROM remote_hashes WHERE url = ? AND size = ? AND identity = ?"
            rows = self._ask(asked, file.url, file.size, file.identity) if file.identity else []
            return _Look(str(rows[0][0]) if rows else None, size=file.size)
        stamp, known = _stamp(os.stat(file, follow_symlinks=False)), self._load().get(str(file))
        return _Look(known[4] if known is not None and known[:4] == stamp else None, size=stamp[0])

    def _read(self, file: Path | RemoteFile, *, on_block: Callable[[int], None]) -> str:
        return self._of_remote(file, on_block=on_block) if isinstance(file, RemoteFile) else self._of_local(file, on_block=on_block)

    def _of_local(self, path: Path, *, on_block: Callable[[int], None]) -> str:
        status, now = os.stat(path, follow_symlinks=False), time.time_ns()
        try:
            digest = hash_file(path, on_block=on_block)
        except OSError as error:
            error.filename = error.filename or str(path)  # of a disk that fails in the middle the system tells no name
            raise
        if now - max(status.st_mtime_ns, status.st_ctime_ns) > _YOUNG_NS:
            with self._lock:
                self._new[str(path)] = (*_stamp(status), digest)
                self._load()[str(path)] = (*_stamp(status), digest)
        return digest

    def _of_remote(self, file: RemoteFile, *, on_block: Callable[[int], None]) -> str:
        fetched = self._remote.fetch(file.url, on_block=on_block)
        if fetched.file.size != file.size:
            raise InputError(f"{file.url}: changed since it was listed", mend="run again once nobody writes there")
        if fetched.file == file and file.identity and time.time() - file.modified_at > _YOUNG_S:
            self._ask("INSERT OR REPLACE INTO remote_hashes VALUES (?, ?, ?, ?)", file.url, file.size, file.identity, fetched.xxh3)
        return fetched.xxh3

    def _ask(self, statement: str, *values: object) -> list[tuple[object, ...]]:
        """Returns the rows of an answer, none when the database cannot be used."""
        try:
            with self._asking, self._connection:
                return self._connection.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            logger.warning("%s: %s", self._database, error)
            return []

    def close(self) -> None:
        """Writes what was learnt and closes the database. A cache that cannot be written is no failure of the run."""
        self._save()
        self._connection.close()

    def _save(self) -> None:
        """Writes what was learnt since the last time; what cannot be written is tried again the next time."""
        with self._lock:
            new, self._new = self._new, {}
        try:
            with self._asking, self._connection:
                rows = [(key, *stamp) for key, stamp in new.items()]
                self._connection.executemany("INSERT OR REPLACE INTO file_hashes VALUES (?, ?, ?, ?, ?, ?)", rows)
        except sqlite3.Error as error:
            logger.warning("%s: what was hashed is not remembered: %s", self._database, error)
            with self._lock:
                self._new = new | self._new

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


def _stamp(status: os.stat_result) -> tuple[int, int, int, int]:
    """Returns what tells a local file from one that was changed."""
    return (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


def _opened(database: Path | str) -> sqlite3.Connection:
    connection = sqlite3.connect(database, timeout=30, check_same_thread=False)  # one thread at a time
    connection.execute("PRAGMA journal_mode=WAL")
    connection.executescript(_SCHEMA)
    return connection
