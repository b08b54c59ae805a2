"""Which documents came before, by their hashes: a hash table of numpy arrays, asked and filled for many documents at once.

A set of Python's would hold 100 bytes a document, and cost as much time as reading does.
"""

import numpy as np
from numpy.typing import NDArray

_Words = NDArray[np.uint64]
"""Half a hash each."""


class SeenHashes:
    """Remembers hashes of 128 bits, at most so many; when there are more, all are forgotten, and it begins again."""

    def __init__(self, limit: int) -> None:
        """Args: limit: hashes held at once: 24 to 32 bytes each, of which no more is touched than is needed."""
        self._limit = limit
        self._mask = (1 << (2 * limit - 1).bit_length()) - 1
        self._high, self._low = np.empty(limit, dtype=np.uint64), np.empty(limit, dtype=np.uint64)
        self._rows = np.zeros(self._mask + 1, dtype=np.int32)
        """Slot → 1 + the row in `_high` and `_low`, 0 where it is empty. At least half of the slots are."""
        self._count = 0
        self.has_forgotten = False
        """Whether hashes were forgotten, so that repeats may have gone unnoticed."""

    def repeats(self, hashes: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Returns which hashes came before, earlier or further up among these, as asking one by one would tell; remembers all.

        Args:
            hashes: [documents, 16].
        """
        halves = hashes.copy().view(np.uint64)
        high, low = np.ascontiguousarray(halves[:, 0]), np.ascontiguousarray(halves[:, 1])
        found = np.zeros(len(high), dtype=np.bool_)
        first = 0
        while first < len(high):
            if self._count == self._limit:  # the next one that is new makes all others be forgotten
                known = self._known(high[first:], low[first:])
                num_known = len(known) if known.all() else int(known.argmin())
                found[first : first + num_known] = True
                first += num_known
                if first == len(high):
                    break
                self._forget()
            room = slice(first, first + self._limit - self._count)
            found[room] = self._added(high[room], low[room])
            first += len(found[room])
        return found

    def _forget(self) -> None:
        self._rows.fill(0)
        self._count = 0
        self.has_forgotten = True

    def _known(self, high: _Words, low: _Words) -> NDArray[np.bool_]:
        """Returns which hashes are remembered."""
        known = np.zeros(len(high), dtype=np.bool_)
        waiting, slots = np.arange(len(high)), self._first_slots(high)
        while len(waiting):
            rows = self._rows[slots]
            held = np.flatnonzero(rows)
            waiting, slots, rows = waiting[held], slots[held], rows[held]
            is_same = self._holds(rows, high[waiting], low[waiting])
            known[waiting[is_same]] = True
            waiting, slots = waiting[~is_same], (slots[~is_same] + 1) & self._mask
        return known

    def _added(self, high: _Words, low: _Words) -> NDArray[np.bool_]:
        """Returns which hashes came before; remembers the others. There is room for all of them.

        All look at their first slot at once, then those that found another hash there at the next one, and so on. An empty slot goes to the first one
        that looks at it; equal hashes look at the same slots in step, so the others of its kind find it there in the same round.
        """
        count, first_row = len(high), self._count + 1
        is_repeat = np.zeros(count, dtype=np.bool_)
        own_slots = np.empty(count, dtype=np.int64)
        self._high[self._count : self._count + count] = high  # for now with repeats, so that each has a row of its own
        self._low[self._count : self._count + count] = low
        waiting, slots = np.arange(count), self._first_slots(high)
        while len(waiting):
            is_empty = self._rows[slots] == 0
            own = waiting[is_empty] + first_row
            self._rows[slots[is_empty][::-1]] = own[::-1]  # of equal slots the last one counts: the first document
            rows = self._rows[slots]
            own_slots[waiting] = slots
            others = np.flatnonzero(rows != waiting + first_row)
            waiting, slots = waiting[others], slots[others]
            is_same = self._holds(rows[others], high[waiting], low[waiting])
            is_repeat[waiting[is_same]] = True
            waiting, slots = waiting[~is_same], (slots[~is_same] + 1) & self._mask
        if is_repeat.any():
            is_new = ~is_repeat
            count = int(is_new.sum())
            self._high[self._count : self._count + count] = high[is_new]
            self._low[self._count : self._count + count] = low[is_new]
            self._rows[own_slots[is_new]] = np.arange(first_row, first_row + count)
        self._count += count
        return is_repeat

    def _holds(self, rows: NDArray[np.int32], high: _Words, low: _Words) -> NDArray[np.bool_]:
        """Returns which rows hold their hash."""
        found: NDArray[np.bool_] = self._high[rows - 1] == high
        same = np.flatnonzero(found)
        found[same] = self._low[rows[same] - 1] == low[same]
        return found

    def _first_slots(self, high: _Words) -> NDArray[np.int64]:
        return (high & np.uint64(self._mask)).astype(np.int64)
