"""Signs of life: 64 bytes of shared memory per rank, written by its training thread and read by the agent, which is another process.

A thread of its own would go on beating while the training thread hangs, and would itself be silenced by whoever holds the GIL.
The memory is anonymous (memfd): a mapped file on disk makes the writer wait for the kernel's write-back while a checkpoint floods
the disk. Ranks open it through the agent's `/proc/PID/fd`; nothing is left behind whoever dies. Imports nothing heavy.

    0  sequence   uint64, odd while the rest is being written: a reader that meets an odd or a changed one looks again
    8  step       int64
    16 position   uint32, phase uint8, 3 bytes unused
    24 part       16 bytes of text
    40 data_s, forward_s, step_s   three doubles
"""

import contextlib
import functools
import mmap
import os
import struct
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from cluster.environment import PULSE
from schemas.progress import RankPhase, RankPulse

SLOT_BYTES = 64
"""Of one rank: a cache line, so that ranks do not slow each other down."""

_BODY = struct.Struct("<qIB3x16sddd")
_BODY_AT = 8
_PHASES = tuple(RankPhase)
_READ_TRIES = 100
"""A write takes a microsecond. A rank that was stopped in the middle of one never ends it."""


class Pulse:
    """The writing end, for one thread. A beat takes about a microsecond."""

    def __init__(self, memory: mmap.mmap, *, offset: int = 0) -> None:
        """Args: memory: shared with whoever reads. offset: where this rank's slot begins."""
        self._memory, self._body_at = memory, offset + _BODY_AT
        self._sequences, self._slot = _words(memory), offset // 8
        self._sequence = 0
        self._step, self._position, self._part = 0, 0, b""
        self._phase = 0
        self._data_s = self._forward_s = self._step_s = 0.0
        self._taking_s = {"data_s": 0.0, "forward_s": 0.0}
        self._step_began: float | None = None

    def enter(self, phase: RankPhase) -> None:
        """Says what begins now."""
        self._phase = _PHASES.index(phase)
        self._beat()

    def beat(self) -> None:
        """Says that this thread lives, in the midst of something that takes long."""
        self._beat()

    def begin_step(self, step: int) -> None:
        """Says that step `step` (an index) begins, and what those before it took."""
        now = time.perf_counter()
        self._data_s, self._forward_s = self._taking_s["data_s"], self._taking_s["forward_s"]  # whole steps: ranks are compared by them
        self._step_s = now - self._step_began if self._step_began is not None else 0.0
        self._step_began = now
        self._step, self._position, self._part = step, 0, b""
        self._beat()

    def finish_part(self, part: str, seconds: float) -> None:
        """Says that a part of the step has ended, and how long it took."""
        self._position += 1
        self._part = part.encode()
        if part in self._taking_s:
            self._taking_s[part] += seconds
        self._beat()

    def _beat(self) -> None:
        sequences, slot = self._sequences, self._slot
        sequences[slot] = self._sequence + 1
        times = (self._data_s, self._forward_s, self._step_s)
        _BODY.pack_into(self._memory, self._body_at, self._step, self._position, self._phase, self._part, *times)
        self._sequence += 2
        sequences[slot] = self._sequence


@functools.cache
def own_pulse() -> Pulse:
    """Returns this process's pulse, into the slot that the agent gave it; without an agent, into memory that nobody reads."""
    place = os.environ.get(PULSE)
    if place is None:
        return Pulse(mmap.mmap(-1, SLOT_BYTES))
    path, _, offset = place.rpartition(":")
    number = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        return Pulse(mmap.mmap(number, 0), offset=int(offset))
    finally:
        os.close(number)


class PulseBoard:
    """The reading end: the slots of one epoch's ranks on this node."""

    def __init__(self, ranks: Iterable[int], *, folder: Path) -> None:
        """Args: ranks: whose. folder: takes a file where the system has no anonymous files."""
        self._slots = {rank: index * SLOT_BYTES for index, rank in enumerate(ranks)}
        size = max(1, len(self._slots)) * SLOT_BYTES
        self._number, self._path = _anonymous_file(folder)
        os.ftruncate(self._number, size)
        self._memory = mmap.mmap(self._number, size)
        self._sequences = _words(self._memory)

    def place(self, rank: int) -> str:
        """Returns what tells a rank its slot: the value of its `HEADRACE_PULSE`."""
        return f"{self._path}:{self._slots[rank]}"

    def read(self) -> Iterator[RankPulse]:
        """Yields the last sign of each rank, by rank. Of one that was stopped in the middle of a beat nothing can be told: it is left out."""
        for rank, offset in self._slots.items():
            pulse = self._read_slot(rank, offset)
            if pulse is not None:
                yield pulse

    def close(self) -> None:
        """Gives the memory back; what ranks have mapped stays theirs."""
        self._sequences.release()
        self._memory.close()
        with contextlib.suppress(OSError):
            os.close(self._number)

    def _read_slot(self, rank: int, offset: int) -> RankPulse | None:
        for _ in range(_READ_TRIES):
            before = self._sequences[offset // 8]
            step, position, phase, part, data_s, forward_s, step_s = _BODY.unpack_from(self._memory, offset + _BODY_AT)
            if self._sequences[offset // 8] == before and before % 2 == 0:
                return RankPulse(
                    rank=rank,
                    beats=before // 2,
                    phase=_PHASES[phase],
                    step=step,
                    position=position,
                    part=part.rstrip(b"\0").decode(),
                    data_s=data_s,
                    forward_s=forward_s,
                    step_s=step_s,
                )
        return None


def _words(memory: mmap.mmap) -> "memoryview[int]":
    """Returns memory as 64-bit words. Each is written and read at once; `struct` writes zeros first, and then byte by byte."""
    return memoryview(memory).cast("Q")


def _anonymous_file(folder: Path) -> tuple[int, str]:
    """Returns a new empty file and a path under which other processes of this user can open it."""
    if hasattr(os, "memfd_create"):
        number = os.memfd_create("headrace-pulse", os.MFD_CLOEXEC)
        return number, f"/proc/{os.getpid()}/fd/{number}"
    path = folder / "pulses"  # macOS: files of this size stay in memory anyway
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), str(path)
