"""A file that grows while somebody else writes it: what of it is new. Also when it is cut, or renamed and begun anew, on the way.

Ranks append to one file as long as they live. What a program does to its own output, and what somebody does who needs the disk space, must
not stop it from being published: a file that is not the one from before is read from its beginning, after what was left of the other one.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

_PIECE_BYTES = 1 << 20
_MARK_BYTES = 64
"""So many of the last bytes that were read are compared: a file that is rewritten may be longer than before by the next look."""


class SegmentKey(Protocol):
    """Sequence number → key of a segment."""

    def __call__(self, *, sequence: int) -> str:
        """Returns the key."""
        ...


@dataclass
class Tail:
    """How much of a file is published."""

    path: Path
    key: SegmentKey
    whole_lines: bool
    """Whether a last line without its end waits for it; that of a killed rank is never published."""
    sequence: int = 0
    """Segments so far."""
    _inode: int = -1
    _offset: int = 0
    _mark: bytes = field(default=b"", repr=False)
    _known: tuple[int, ...] = ()
    _piece: bytes = field(default=b"", repr=False)
    """What was yielded and is not taken yet."""

    def pieces(self) -> Iterator[bytes]:
        """Yields what is new. A piece counts as taken when the next one is asked for: who fails to store one gets it again.
        The same bytes, whatever the file holds by then: they may be stored under this number already, though no answer said so.

        Raises:
            OSError: the file cannot be read.
        """
        if self._piece:
            yield from self._offer()
        state = _state(self.path)
        if state and state == self._known:
            return
        if (moved := self._renamed(state)) is not None:
            yield from self._growth(moved)
        if state and not self._goes_on(self.path):
            self._inode, self._offset, self._mark = state[0], 0, b""
        yield from self._growth(self.path) if state else ()
        self._known = state

    def _growth(self, path: Path) -> Iterator[bytes]:
        while True:
            with path.open("rb") as file:
                file.seek(self._offset)
                data = file.read(_PIECE_BYTES)
            if self.whole_lines:
                data = data[: data.rfind(b"\n") + 1]
            if not data:
                return
            self._piece = data
            yield from self._offer()

    def _offer(self) -> Iterator[bytes]:
        yield self._piece
        self._offset += len(self._piece)
        self._mark = (self._mark + self._piece)[-_MARK_BYTES:]
        self._piece = b""
        self.sequence += 1

    def _goes_on(self, path: Path) -> bool:
        """Whether a file is the one from before, and holds what was read of it."""
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_ino != self._inode:
                return False
            file.seek(self._offset - len(self._mark))
            return file.read(len(self._mark)) == self._mark

    def _renamed(self, state: tuple[int, ...]) -> Path | None:
        """Returns the file from before under its new name beside the old one; None: it was not renamed, or is gone."""
        if self._inode < 0 or (state and state[0] == self._inode):
            return None
        beside = (path for path in self.path.parent.glob(f"{self.path.name}?*") if _state(path)[:1] == (self._inode,))
        return next((path for path in beside if self._goes_on(path)), None)


def _state(path: Path) -> tuple[int, ...]:
    """Returns what changes when a file does; empty: there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return ()
    return (found.st_ino, found.st_size, found.st_mtime_ns)
