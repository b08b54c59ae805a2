"""A mirror: the local folder in which the processes of a job find what they open of object storage, laid out as storage is.

Its owner, the only process with credentials, brings files there, verified, and sends what was made there. What the owner leaves behind when it is
killed is removed by the next one on this machine: a mirror is locked as long as its owner lives.
"""

import contextlib
import fcntl
import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

from cluster.durable import make_folder
from cluster.file_cache import FileCache
from cluster.layout import ArtifactLayout
from cluster.s3_storage import S3Storage
from cluster.storage import AlreadyExistsError, hash_file, path_below
from schemas.artifact import ArtifactRecord, FileEntry
from schemas.errors import VerificationError
from schemas.sealed import SealBrokenError

logger = logging.getLogger(__name__)

_FILES_AT_A_TIME = 4
_LOCK_SUFFIX = ".lock"
_CACHE_NAME = "staged"

Patiently = Callable[[Callable[[], Any]], Any]
"""Runs an operation on storage, again and again while storage fails, for as long as its owner has patience."""


class Mirror:
    """A mirror of one storage. Use `Mirror.open`, and as a context manager."""

    def __init__(self, storage: S3Storage, *, root: Path, cache: FileCache, lock: int, patiently: Patiently) -> None:
        """Takes over the folder `root` and the held `lock`, a descriptor; see `open`."""
        self.storage, self.root = storage, root
        self._cache, self._lock, self._patiently = cache, lock, patiently

    @classmethod
    def open(cls, storage: S3Storage, *, folder: Path, most_bytes: int, patiently: Patiently = lambda operation: operation()) -> Self:
        """Returns a new mirror, after removing those whose owners have died.

        Args:
            storage: what is mirrored.
            folder: of the cache; on a local disk.
            most_bytes: what the cache may take.
            patiently: runs requests; default: once, as often as the storage repeats them itself.
        """
        mirrors = folder / "mirrors"
        make_folder(mirrors)
        _sweep(mirrors)
        root = mirrors / f"{os.getpid()}-{secrets.token_hex(4)}"
        lock = _locked(root.with_name(root.name + _LOCK_SUFFIX))
        root.mkdir()
        return cls(storage, root=root, cache=FileCache(folder, most_bytes=most_bytes), lock=lock, patiently=patiently)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Removes the folder. What the cache holds stays there."""
        _remove(self.root)
        os.close(self._lock)

    def folder(self, key: str) -> Path:
        """Returns the local folder of an artifact, which exists."""
        folder = path_below(self.root, key)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def bring(self, key: str, entries: Iterable[FileEntry]) -> Path:
        """Brings files of an artifact and returns its local folder. What is there already is not asked for.

        Raises:
            VerificationError: a file is missing in storage, or is not what its entry says.
            UnreachableError: storage fails, or the cache has no room.
        """
        folder = self.folder(key)
        named = {entry.path: entry for entry in entries}  # a file that is wanted twice is brought once
        missing = [entry for entry in named.values() if not path_below(folder, entry.path).exists()]
        with ThreadPoolExecutor(_FILES_AT_A_TIME, thread_name_prefix="bring") as pool:
            list(pool.map(lambda entry: self._bring(key, entry, folder=folder), missing))
        return folder

    def bring_artifact(self, key: str) -> Path:
        """Brings all files that a finished artifact's record names, and returns its local folder. Raises as `bring`."""
        return self.bring(key, self.record(key).files)

    def record(self, key: str) -> ArtifactRecord:
        """Returns a finished artifact's record. Raises VerificationError when it is damaged, FileNotFoundError when there is none."""
        path = ArtifactLayout(key).record
        try:
            return ArtifactRecord.from_bytes(self._patiently(lambda: self.storage.read(path)))
        except SealBrokenError as error:
            raise VerificationError((f"{path}: {error}",), subject=key) from error

    def send(self, key: str, entries: Iterable[FileEntry], *, source: Path | None = None) -> None:
        """Uploads files that were made in an artifact's local folder. Files that storage has already, with the same content, are success.

        Args:
            key: the artifact's.
            entries: the files.
            source: the folder in which they are found; default: the artifact's.

        Raises:
            VerificationError: a local file is not what its entry says.
            AlreadyExistsError: storage holds other bytes under a file's name.
        """
        folder = source or self.folder(key)
        with ThreadPoolExecutor(_FILES_AT_A_TIME, thread_name_prefix="send") as pool:
            list(pool.map(lambda entry: self._send(key, entry, folder=folder), entries))

    def send_held(self, key: str, entries: Iterable[FileEntry]) -> None:
        """Uploads files as `send` does, by further names of them: they may be removed meanwhile, and where that is the rule, none would ever arrive.

        Raises:
            FileNotFoundError: one was gone before it began; nothing was sent.
        """
        entries = tuple(entries)
        # what cannot be removed of it goes with the mirror
        with tempfile.TemporaryDirectory(prefix=".sending-", dir=self.root, ignore_cleanup_errors=True) as name:
            for entry in entries:
                link = path_below(Path(name), entry.path)
                link.parent.mkdir(parents=True, exist_ok=True)
                os.link(path_below(self.root, f"{key}/{entry.path}"), link)
            self.send(key, entries, source=Path(name))

    def send_anew(self, key: str, entry: FileEntry) -> None:
        """Uploads a file in place of one that no record names. Raises as `send`."""
        try:
            self.send(key, (entry,))
        except AlreadyExistsError:
            name = f"{key}/{entry.path}"
            logger.warning("%s was left by a start that was killed, with other bytes; it is replaced", name)
            self._patiently(lambda: self.storage.delete(name))
            self.send(key, (entry,))

    def carry(self, path: Path, key: str, entry: FileEntry) -> None:
        """Uploads a file of this machine, from outside of the mirror, into an artifact's folder, unless storage has one of that name.

        Raises:
            VerificationError: it is not what its entry says, or changed on the way; then storage does not have it.
        """
        name = f"{key}/{entry.path}"
        if self.exists(name):
            return
        began = _stamp(path)
        if (found := hash_file(path)) != entry.xxh3:
            raise VerificationError((f"{path}: xxh3 {found}; {entry.xxh3} was recorded",), subject=key)
        self._patiently(lambda: self.storage.upload(path, name, entry=entry))
        if _stamp(path) != began:
            self._patiently(lambda: self.storage.delete(name))
            raise VerificationError((f"{path}: changed while it was uploaded",), subject=key)

    def exists(self, name: str) -> bool:
        """Whether storage holds an object."""
        return bool(self._patiently(lambda: self.storage.exists(name)))

    def create(self, name: str, data: bytes) -> bool:
        """Creates an object; returns False when there is one already, of whatever content."""
        try:
            self._patiently(lambda: self.storage.create_exclusive(name, data))
        except AlreadyExistsError:
            return False
        return True

    def _bring(self, key: str, entry: FileEntry, *, folder: Path) -> None:
        target, name = path_below(folder, entry.path), f"{key}/{entry.path}"
        target.parent.mkdir(parents=True, exist_ok=True)

        def fetch(path: Path) -> None:
            path.unlink(missing_ok=True)  # of a try that failed midway
            self.storage.download(name, path, size=entry.size)

        try:
            self._cache.bring(entry, target=target, fetch=lambda path: self._patiently(lambda: fetch(path)), subject=name)
        except FileNotFoundError as error:
            raise VerificationError((f"{self.storage.url}/{name}: missing",), subject=key) from error

    def _send(self, key: str, entry: FileEntry, *, folder: Path) -> None:
        path = path_below(folder, entry.path)
        if (found := hash_file(path)) != entry.xxh3:
            raise VerificationError((f"{path}: xxh3 {found} on this node's disk; {entry.xxh3} was written",), subject=key)
        self._patiently(lambda: self.storage.upload(path, f"{key}/{entry.path}", entry=entry))
        self._cache.keep(path, entry)


def cache_folder(scratch_dir: Path) -> Path:
    """Returns where files of object storage are cached; `scratch_dir`: the folder of all attempts' scratch folders, on a local disk."""
    return scratch_dir / _CACHE_NAME


def _stamp(path: Path) -> tuple[int, int, int]:
    """Returns what changes when a file is written to or replaced."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _locked(path: Path) -> int:
    """Creates and locks a file; returns its descriptor, with which the lock goes. Children do not inherit it."""
    while True:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):  # a sweep took it for a dead owner's before it was locked
            if os.fstat(descriptor).st_ino == path.stat().st_ino:
                return descriptor
        os.close(descriptor)


def _sweep(mirrors: Path) -> None:
    """Removes mirrors that nobody has locked."""
    for lock in mirrors.glob(f"*{_LOCK_SUFFIX}"):
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(lock.with_name(lock.name.removesuffix(_LOCK_SUFFIX)))
        except BlockingIOError:
            continue
        finally:
            os.close(descriptor)


def _remove(root: Path) -> None:
    """Removes a mirror, its lock last."""
    shutil.rmtree(root, ignore_errors=True)  # what cannot be removed is only disk space
    root.with_name(root.name + _LOCK_SUFFIX).unlink(missing_ok=True)
