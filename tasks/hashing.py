"""Reading many files at once for their hashes: the threads, and how far they are."""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from cluster.remote_files import RemoteFile
from schemas.errors import InterruptedRunError
from schemas.stage import Stage

_AT_A_TIME = 4
"""Files that are read at once. A shared file system and a bucket give each reader a part of what they have; more make a single disk seek."""
_TELL_EVERY_S = 30.0


@dataclass(frozen=True)
class Hashing:
    """How far the reading of files is whose hashes nobody remembers."""

    done_bytes: int
    total_bytes: int
    seconds: float
    """Since it began."""

    @property
    def line(self) -> str:
        """`hashing raw files: 12.3 of 40.0 GB, 450 MB/s, 2 min to go`."""
        rate = self.done_bytes / self.seconds if self.seconds else 0.0
        to_go = f", {_rounded((self.total_bytes - self.done_bytes) / rate)} to go" if rate else ""
        return f"hashing raw files: {self.done_bytes / 1e9:,.1f} of {self.total_bytes / 1e9:,.1f} GB, {rate / 1e6:,.0f} MB/s{to_go}"


def telling(stage: Stage, *, note: Callable[[str], None], stop_requested: Callable[[], bool]) -> Callable[[Hashing], None]:
    """Returns what notes now and then how far the hashing is, and raises InterruptedRunError once a stop is requested."""
    told_s = 0.0

    def watch(hashing: Hashing) -> None:
        nonlocal told_s
        if stop_requested():
            raise InterruptedRunError(f"stopped before {stage.value}, as asked", mend="headrace resume goes on")
        if hashing.seconds >= told_s + _TELL_EVERY_S:
            told_s = hashing.seconds
            note(hashing.line)

    return watch


class _AbandonedError(Exception):
    """Nobody waits for this file any more."""


class Readers:
    """Threads that read files, each the next one that nobody has begun. As a context they end with its body, wherever they are."""

    def __init__(self, files: Sequence[Path | RemoteFile], *, read: Callable[..., str]) -> None:
        """Args: read: `(file, on_block=…)` → its hash."""
        self._files, self._read = files, read
        self._found: dict[int, str] = {}
        self._next, self._lock, self._over = iter(range(len(files))), threading.Lock(), threading.Event()
        self._done_bytes = 0
        self.total_bytes = sum(map(_size_of, files))
        self._pool = ThreadPoolExecutor(_AT_A_TIME, thread_name_prefix="hash")
        self._threads = [self._pool.submit(self._work) for _ in range(min(_AT_A_TIME, len(files)))]

    @property
    def done_bytes(self) -> int:
        """Bytes read by now."""
        return min(self._done_bytes, self.total_bytes)  # a file that is tried again counts twice

    def are_done(self, *, within_s: float) -> bool:
        """Waits so long at most; returns whether all files are read, or one of them cannot be."""
        ended, others = wait(self._threads, timeout=within_s, return_when=FIRST_EXCEPTION)
        return not others or any(thread.exception() is not None for thread in ended)

    def digests(self) -> list[str]:
        """Returns the hashes, in order of the files. Raises the error of one that could not be read."""
        errors = [error for thread in self._threads if (error := thread.exception()) is not None]
        if errors:
            raise min(errors, key=lambda error: isinstance(error, _AbandonedError))
        return [self._found[index] for index in range(len(self._files))]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        self._pool.shutdown()

    def _work(self) -> None:
        while (index := self._take()) is not None:
            self._found[index] = self._read(self._files[index], on_block=self._count)

    def _take(self) -> int | None:
        with self._lock:
            return None if self._over.is_set() else next(self._next, None)

    def _count(self, size: int) -> None:
        if self._over.is_set():
            raise _AbandonedError
        with self._lock:
            self._done_bytes += size


def _rounded(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def _size_of(file: Path | RemoteFile) -> int:
    return file.size if isinstance(file, RemoteFile) else os.stat(file, follow_symlinks=False).st_size
