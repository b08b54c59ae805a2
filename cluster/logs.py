"""Reads the output of ranks and items that agents published as numbered segments."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from cluster.layout import AttemptLayout
from cluster.storage import Storage

_SEGMENT = re.compile(r"^e(?P<epoch>\d{6})-r(?P<rank>\d{6})-(?P<sequence>\d{6})\.log$")


@dataclass(frozen=True)
class LogLine:
    """One line of a rank's (or item's) output."""

    epoch: int
    """The start of ranks that wrote it."""
    rank: int
    """The rank, or item."""
    text: str
    """The line, without its end."""


def read_logs(storage: Storage, attempt: AttemptLayout, *, rank: int | None = None) -> Iterator[LogLine]:
    """Yields an attempt's output as published so far: by epoch, then by rank; `rank` keeps one of them."""
    reader = LogReader(storage, attempt, rank=rank)
    yield from reader.read()
    yield from reader.rest()


def last_lines(storage: Storage, attempt: AttemptLayout, *, rank: int, count: int) -> tuple[str, ...]:
    """Returns the last lines that a rank (or item) wrote in its newest start, blank ones left out. Reads no more segments than it takes."""
    names = [name for name in storage.names(attempt.logs) if (match := _SEGMENT.match(name)) and int(match["rank"]) == rank]
    unread = [name for name in names if name.startswith(names[-1].partition("-")[0])]
    text = b""
    while unread and text.count(b"\n") <= count:
        text = storage.read(f"{attempt.logs}/{unread.pop()}") + text
    lines = text.split(b"\n")[1 if unread else 0 :]  # the first began in a segment that was not read
    return tuple(line for line in map(_text, lines) if line.strip())[-count:]


@dataclass
class LogReader:
    """Reads new lines at every call. A line may span segments: its beginning waits for its end, or for the next start of its rank."""

    storage: Storage
    attempt: AttemptLayout
    rank: int | None = None
    _seen: set[str] = field(default_factory=set, repr=False)
    _open: dict[tuple[int, int], bytes] = field(default_factory=dict, repr=False)

    def read(self) -> Iterator[LogLine]:
        """Yields the whole lines that came since the last call."""
        for name in self.storage.names(self.attempt.logs):
            match = _SEGMENT.match(name)
            if match is None or name in self._seen or self.rank not in (None, int(match["rank"])):
                continue
            self._seen.add(name)
            where = (int(match["epoch"]), int(match["rank"]))
            yield from self._cut_short(where)
            *lines, self._open[where] = (self._open.get(where, b"") + self.storage.read(f"{self.attempt.logs}/{name}")).split(b"\n")
            for line in lines:
                yield LogLine(*where, _text(line))

    def rest(self) -> Iterator[LogLine]:
        """Yields last lines that never got their end."""
        for where in sorted(self._open):
            yield from self._end(where)

    def _cut_short(self, where: tuple[int, int]) -> Iterator[LogLine]:
        """Yields what a rank left unfinished in the start before the one that speaks now."""
        epoch, rank = where
        for earlier in [key for key in self._open if key[1] == rank and key[0] < epoch]:
            yield from self._end(earlier)

    def _end(self, where: tuple[int, int]) -> Iterator[LogLine]:
        if line := self._open.pop(where):
            yield LogLine(*where, _text(line))


def _text(line: bytes) -> str:
    """The line for people; of one that was overwritten in place by a progress bar, what it showed last."""
    return line.decode(errors="replace").rstrip("\r").rpartition("\r")[2]
