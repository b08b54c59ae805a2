"""What containers print: lines with the time at which they came, in files of the node."""

import datetime as dt
import io
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

_POLL_S = 0.1


def now() -> str:
    """Returns the time as Kubernetes writes it, to the microsecond."""
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class LogPump(threading.Thread):
    """Copies what a container prints into its file until all its processes have ended, and says so."""

    def __init__(self, source: io.BufferedReader, path: Path, *, on_end: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self._source, self._path, self._on_end = source, path, on_end

    def run(self) -> None:
        """Copies."""
        with self._source, self._path.open("ab", buffering=0) as file:
            for line in self._source:
                file.write(f"{now()} ".encode() + (line if line.endswith(b"\n") else line + b"\n"))
        self._on_end()


def read(
    path: Path, *, follow: Callable[[], bool], tail: int | None = None, since: str = "", timestamps: bool = False, limit: int | None = None
) -> Iterator[bytes]:
    """Yields the lines of a container's file.

    Args:
        path: may not be there yet.
        follow: whether more may come; asked whenever there is nothing to read.
        tail: only so many of the last lines.
        since: only lines from this time on, as `now` writes it.
        timestamps: whether lines begin with their time.
        limit: no more bytes than this.
    """
    left = limit
    for line in _lines(path, follow=follow, tail=tail):
        time_of, _, text = line.partition(b" ")
        if since and time_of.decode() < since:
            continue
        out = (line if timestamps else text)[:left]
        yield out
        if left is not None:
            left -= len(out)
            if left <= 0:
                return


def _lines(path: Path, *, follow: Callable[[], bool], tail: int | None) -> Iterator[bytes]:
    while not path.exists():
        if not follow():
            return
        time.sleep(_POLL_S)
    with path.open("rb") as file:
        if tail is not None:
            lines = file.read().splitlines(keepends=True)
            yield from (line for line in lines[len(lines) - min(tail, len(lines)) :] if line.endswith(b"\n"))
            # A line that is being written begins anew.
            file.seek(-(0 if not lines or lines[-1].endswith(b"\n") else len(lines[-1])), os.SEEK_CUR)
        while True:
            more = follow()  # asked before the last look: what was written until then is seen
            place = file.tell()
            line = file.readline()
            if line.endswith(b"\n"):
                yield line
                continue
            file.seek(place)
            if not more:
                return
            time.sleep(_POLL_S)
