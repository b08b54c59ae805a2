"""Decompressed blocks as lines: runs of whole lines, each one value, because most of what is done to lines can be done to many at once."""

from collections.abc import Iterator

from tasks.validate.problem import Problem, Reason
from tasks.validate.streams import DamagedStreamError

LINE_LIMIT_BYTES = 64 << 20
"""A longer line is passed over without being held, so that memory stays bounded. `max_chars` is 10 million by default."""
KEPT_BYTES = 1024
"""What is kept of something oversized or broken, for the excerpt."""
BOM = b"\xef\xbb\xbf"


class RefusedLine(bytes):
    """One line that cannot be read, whatever is in it: its bytes or their beginning, and why."""

    problem: Problem

    @classmethod
    def of(cls, line: bytes, problem: Problem) -> "RefusedLine":
        """Returns the line with its problem."""
        refused = cls(line)
        refused.problem = problem
        return refused


class _Carry:
    """The unfinished line between two blocks; an endless one is counted, not held."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.size = 0

    def add(self, piece: bytes) -> None:
        self.size += len(piece)
        if self.size <= LINE_LIMIT_BYTES or not self.pieces:
            self.pieces.append(piece)

    def take(self) -> bytes:
        """Returns the line and forgets it."""
        line = b"".join(self.pieces)
        if self.size > LINE_LIMIT_BYTES:
            problem = Problem(Reason.LINE_TOO_LONG, f"{self.size:,} bytes, the limit is {LINE_LIMIT_BYTES:,}")
            line = RefusedLine.of(line[:KEPT_BYTES], problem)
        self.pieces, self.size = [], 0
        return line


def line_runs(content: Iterator[bytes]) -> Iterator[bytes]:
    r"""Yields the lines of a file, many at a time: `run.split(b"\n")` are lines, and a `RefusedLine` is one line.

    A byte order mark at the start is left out. Nothing follows the last line feed.

    Raises:
        DamagedStreamError: with the start of the unfinished line as `tail`.
    """
    carry = _Carry()
    prefix = BOM
    try:
        for block in content:
            block, prefix = block.removeprefix(prefix), b""
            end = block.rfind(b"\n")
            if end >= 0:
                yield from _completed(carry, block[:end])
                block = block[end + 1 :]
            carry.add(block)
    except DamagedStreamError as damage:
        damage.tail = carry.take()[:KEPT_BYTES]
        raise
    if carry.size:
        yield carry.take()


def _completed(carry: _Carry, lines: bytes) -> Iterator[bytes]:
    """Yields whole lines, the first of which goes on where the carried one ended."""
    if not carry.size:
        yield lines
        return
    first, feed, rest = lines.partition(b"\n")
    carry.add(first)
    line = carry.take()
    if isinstance(line, RefusedLine):
        yield line
        if feed:
            yield rest
    else:
        yield line + feed + rest
