"""Files of object storage on this machine's own disk: by content, verified whenever they are handed out, bounded in size.

    {folder}/files/06b05ab6….24          one file per content: hash and size are its name
    {folder}/mirrors/{name}/…            what one process opens, as further names of those files (`cluster.mirror`)

Several processes, and nodes that share the folder, may use it at once: names are given by `link(2)`, and a file that has a further name is in use.
"""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cluster.durable import make_folder
from cluster.storage import hash_file
from schemas.artifact import FileEntry
from schemas.errors import UnreachableError, VerificationError

logger = logging.getLogger(__name__)

_TRIES = 2
"""A file that arrives damaged is fetched once more."""


@dataclass(frozen=True)
class _File:
    """A file of the cache."""

    path: Path
    size: int
    used_at: float
    in_use: bool


class FileCache:
    """The cache in one folder. Safe to use from several threads."""

    def __init__(self, folder: Path, *, most_bytes: int) -> None:
        """Args: folder: absolute, on a local disk. most_bytes: what all files together may take; those in use count, and stay."""
        self._files, self._most_bytes = folder / "files", most_bytes
        make_folder(self._files)
        self._lock = threading.Lock()
        self._taken = most_bytes
        """Bytes in the folder, at the most: as if it were full, until somebody has looked."""

    def bring(self, entry: FileEntry, *, target: Path, fetch: Callable[[Path], None], subject: str) -> None:
        """Gives a file of this content the name `target`, from the cache or else by `fetch`, which writes a new file at the path that it gets.

        Raises:
            VerificationError: what is fetched is not what the entry says.
            UnreachableError: there is no room, because files in use fill the cache.
        """
        place = self._place(entry)
        if self._is_intact(place, entry):
            with contextlib.suppress(FileNotFoundError):  # another process has just made room
                os.utime(place, ns=(time.time_ns(), place.stat().st_mtime_ns))  # who reads it now would take another mtime for another content
                os.link(place, target)
                return
        self._make_room(entry)
        temporary = target.with_name(f".tmp-{target.name}")
        try:
            self._fetch(entry, temporary, fetch=fetch, subject=subject)
            self._add(temporary, place)
            os.link(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)

    def keep(self, path: Path, entry: FileEntry) -> None:
        """Adds a local file, which no longer changes, by a further name: whoever wants it next finds it. Without room it is not kept."""
        try:
            self._make_room(entry)
        except UnreachableError as error:
            logger.info("%s is not kept here: %s", path.name, error.what)
            return
        self._add(path, self._place(entry))

    def _place(self, entry: FileEntry) -> Path:
        return self._files / f"{entry.xxh3}.{entry.size}"

    def _is_intact(self, place: Path, entry: FileEntry) -> bool:
        """Whether the cache has the file; a damaged one is removed."""
        try:
            if place.stat().st_size == entry.size and hash_file(place) == entry.xxh3:
                return True
        except FileNotFoundError:
            return False
        logger.warning("%s was damaged in the cache; it is fetched again", entry.path)
        place.unlink(missing_ok=True)
        return False

    def _fetch(self, entry: FileEntry, temporary: Path, *, fetch: Callable[[Path], None], subject: str) -> None:
        found = ""
        for _ in range(_TRIES):
            temporary.unlink(missing_ok=True)
            fetch(temporary)
            size, digest = temporary.stat().st_size, hash_file(temporary)
            if (size, digest) == (entry.size, entry.xxh3):
                return
            found = f"{entry.path}: {size:,} bytes with xxh3 {digest}; {entry.size:,} with {entry.xxh3} were recorded"
        raise VerificationError((found,), subject=subject, mend="headrace verify lists every damaged file; --from and its stage make it anew")

    def _add(self, path: Path, place: Path) -> None:
        with contextlib.suppress(FileExistsError):  # fetched by another process meanwhile
            os.link(path, place)
        with self._lock:
            self._taken += path.stat().st_size

    def _make_room(self, entry: FileEntry) -> None:
        """Removes the files that were unused for longest until `entry` fits."""
        with self._lock:
            if self._taken + entry.size <= self._most_bytes:
                return
            found = sorted(self._present(), key=lambda file: file.used_at)
            self._taken = sum(file.size for file in found)
            for file in found:
                if self._taken + entry.size <= self._most_bytes:
                    return
                if not file.in_use:
                    file.path.unlink(missing_ok=True)
                    self._taken -= file.size
            if self._taken + entry.size > self._most_bytes:
                why = f"files in use take {self._taken:,} of {self._most_bytes:,} bytes"
                what = f"{entry.path}: {entry.size:,} bytes do not fit into the cache {self._files.parent}"
                raise UnreachableError(what, why=why, mend="raise cluster.cache_bytes, or run fewer jobs at a time on this machine")

    def _present(self) -> Iterator[_File]:
        for item in os.scandir(self._files):
            with contextlib.suppress(FileNotFoundError):  # another process makes room
                status = item.stat(follow_symlinks=False)
                yield _File(Path(item.path), size=status.st_size, used_at=status.st_atime, in_use=status.st_nlink > 1)
