"""Reading many files at once for their hashes: the threads, and how far they are."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

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
        unit, name = (1e9, "GB") if self.total_bytes >= 1e9 else (1e6, "MB")
        return f"hashing raw files: {self.done_bytes / unit:,.1f} of {self.total_bytes / unit:,.1f} {name}, {rate / 1e6:,.3g} MB/s{to_go}"


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


class Read(Protocol):
    """Reads a file and returns its hash."""

    def __call__(self, file: Path | RemoteFile, *, on_block: Callable[[int], None]) -> str:
        """Args: on_block: told the bytes of every block; what it raises ends the reading."""


class Readers:
    """Threads that read files, each the next one that nobody has begun. As a context they end with its body, each after the block at hand."""

    def __init__(self, files: Sequence[Path | RemoteFile], *, read: Read) -> None:
        """Args: files: different ones. read: reads one, in any thread."""
        self._files, self._read = files, read
        self._found: dict[Path | RemoteFile, str] = {}
        self._next, self._lock, self._over = iter(files), threading.Lock(), threading.Event()
        self._pool = ThreadPoolExecutor(_AT_A_TIME, thread_name_prefix="hash")
        self._threads: list[Future[None]] = []
        self.done_bytes = 0
        """Bytes read by now; those of a file that is tried again count twice."""

    def are_done(self, *, within_s: float) -> bool:
        """Waits so long at most; returns whether all files are read, or one of them cannot be."""
        ended, others = wait(self._threads, timeout=within_s, return_when=FIRST_EXCEPTION)
        return not others or any(thread.exception() is not None for thread in ended)

    def digests(self) -> dict[Path | RemoteFile, str]:
        """Returns the hash of each file. Raises the error of one that could not be read."""
        errors = [error for thread in self._threads if (error := thread.exception()) is not None]
        if errors:
            raise min(errors, key=lambda error: isinstance(error, _AbandonedError))
        return self._found

    def __enter__(self) -> Self:
        self._threads += [self._pool.submit(self._work) for _ in range(min(_AT_A_TIME, len(self._files)))]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        self._pool.shutdown()

    def _work(self) -> None:
        while (file := self._take()) is not None:
            self._found[file] = self._read(file, on_block=self._count)

    def _take(self) -> Path | RemoteFile | None:
        with self._lock:
            return None if self._over.is_set() else next(self._next, None)

    def _count(self, size: int) -> None:
        if self._over.is_set():
            raise _AbandonedError
        with self._lock:
            self.done_bytes += size


def _rounded(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
