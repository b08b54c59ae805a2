"""The order of a mixture of sources: each in exact proportion, and each source's sequences all once before any of them twice. numpy only.

Positions are dealt out in cycles of 65,536 slots, of which source s has c_s (`schemas.mixture`). Its j-th use of a cycle falls at a
random moment of the j-th of c_s equal parts of the cycle. So its uses stay in order, a batch has nearly its share of every source (whole
cycles have it exactly), and yet no rhythm repeats. Index cycle × c_s + j of the source's own endless order is what is used.

A position costs one cycle's table (some milliseconds, the newest is kept), however far it is and however much text there is.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from schemas.mixture import SLOTS
from tasks.train.order import Indices, Order, key_of, mix_words

_CYCLES = int.from_bytes(b"cycles", "big")
"""Sets the keys of cycles apart from other keys of the same seed."""
_MOMENT_BITS = 32
_SCALE_BITS = 63 - _MOMENT_BITS - SLOTS.bit_length() + 1
"""What is left of 63 bits for the fraction of a moment."""


@dataclass(frozen=True)
class SourcePart:
    """A source's part of a mixture."""

    slots: int
    """Of the cycle's, at least 1."""
    order: Order
    """The endless order of its sequences."""


class MixedOrder:
    """The endless order of a mixture. Holds one cycle's table: 0.7 MB."""

    def __init__(self, parts: Sequence[SourcePart], *, seed: int) -> None:
        """Args: parts: whose slots sum up to `SLOTS`, in an order that is always the same. seed: which order."""
        assert sum(part.slots for part in parts) == SLOTS
        self._parts, self._seed = tuple(parts), seed
        self._slots = np.array([part.slots for part in parts], dtype=np.int64)
        self._owners = np.repeat(np.arange(len(parts)), self._slots)
        self._uses = np.concatenate([np.arange(part.slots, dtype=np.int64) for part in parts])
        self._newest: tuple[int, npt.NDArray[np.int64]] = (-1, self._uses)

    def at(self, positions: Indices) -> Indices:
        """See `Order.at`."""
        cycles, places = np.divmod(positions, SLOTS)
        slots = np.empty(positions.size, dtype=np.int64)
        for cycle in np.unique(cycles).tolist():
            chosen = cycles == cycle
            slots[chosen] = self._turns(cycle)[places[chosen]]
        owners = self._owners[slots]
        indices = cycles * self._slots[owners] + self._uses[slots]
        sequences = np.empty(positions.size, dtype=np.int64)
        for number in np.unique(owners).tolist():
            mine = owners == number
            sequences[mine] = self._parts[number].order.at(indices[mine])
        return sequences

    def _turns(self, cycle: int) -> npt.NDArray[np.int64]:
        """Returns which slot each place of a cycle is: int64 [SLOTS]. Slots are numbered source by source, each in the order of its uses."""
        number, turns = self._newest
        if number == cycle:
            return turns
        key = np.uint64(key_of(self._seed, _CYCLES, cycle))
        jitter = mix_words(key + np.arange(SLOTS, dtype=np.uint64)) >> np.uint64(64 - _MOMENT_BITS)
        moments = ((self._uses.astype(np.uint64) << np.uint64(_MOMENT_BITS)) + jitter) << np.uint64(_SCALE_BITS)
        # whole numbers, and a stable sort: the same on every machine; moments of a source are sorted already, which makes it a merge
        turns = np.argsort(moments // self._slots[self._owners].astype(np.uint64), kind="stable")
        self._newest = (cycle, turns)
        return turns


@dataclass(frozen=True)
class SourceOrder:
    """The order of some shards' sequences, as sequences of their split."""

    inner: Order
    """Of the shards' sequences, counted from 0."""
    starts: Indices
    """The first of them in each shard, ascending from 0 [K]."""
    firsts: Indices
    """Which sequence of the split that is [K]."""

    def at(self, positions: Indices) -> Indices:
        """See `Order.at`."""
        own = self.inner.at(positions)
        shards = np.searchsorted(self.starts, own, side="right") - 1
        return self.firsts[shards] + own - self.starts[shards]
