"""An order for storage where random access does not pay: few shards are in use at a time, and each is read to its end. numpy only.

Every pass visits the shards in the order of a keyed permutation, cuts that order into windows of about `window_sequences` sequences (a
shard belongs to the window in which it begins), and shuffles the sequences of a window by another. So a batch comes from the shards of
one window, or of two, which are used up before the next ones are needed.

What it costs is mixing: sequences that lie in one shard stay within a window of each other, and what a shard has in common (a group's
files) is not spread over the whole pass. A window of many shards, in another company in every pass, is what makes up for it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tasks.train.order import Indices, key_of, permute

_SHARDS, _WINDOWS = (int.from_bytes(word, "big") for word in (b"shards", b"windows"))
"""Set the keys of both permutations apart from other keys of the same seed."""


@dataclass(frozen=True)
class _Pass:
    """One pass over the shards."""

    number: int
    shards: Indices
    """The shards in the order in which they are visited [K]."""
    begins: Indices
    """Sequences before each of them [K]."""
    windows: Indices
    """Sequences before each window, and at the end all of them [W + 1]."""


class WindowedOrder:
    """Every pass visits shard after shard in a random order, shuffled within windows. Holds some numbers for each shard."""

    def __init__(self, shard_rows: Sequence[int], *, window_sequences: int, seed: int) -> None:
        """Args: shard_rows: sequences of each shard, K of them. window_sequences: of a window, about. seed: which order, 64 bits."""
        self._rows = np.array(shard_rows, dtype=np.int64)
        self._firsts = np.cumsum(self._rows) - self._rows
        self._num_sequences = int(self._rows.sum())
        self._window_sequences, self._seed = window_sequences, seed
        self._newest = self._pass(0)

    def at(self, positions: Indices) -> Indices:
        """See `tasks.train.order.Order.at`."""
        passes, within = np.divmod(positions, self._num_sequences)
        sequences = np.empty(positions.size, dtype=np.int64)
        for number in np.unique(passes).tolist():
            chosen = passes == number
            sequences[chosen] = self._within(self._pass_of(number), within[chosen])
        return sequences

    def _within(self, visit: _Pass, places: Indices) -> Indices:
        """Returns the sequences at `places` of a pass."""
        windows = np.searchsorted(visit.windows, places, side="right") - 1
        visited = np.empty(places.size, dtype=np.int64)
        for window in np.unique(windows).tolist():
            begin, end = visit.windows[window : window + 2].tolist()
            mine, key = windows == window, key_of(self._seed, _WINDOWS, visit.number, window)
            visited[mine] = begin + permute(places[mine] - begin, size=end - begin, key=key)
        turns = np.searchsorted(visit.begins, visited, side="right") - 1
        return self._firsts[visit.shards[turns]] + visited - visit.begins[turns]

    def _pass_of(self, number: int) -> _Pass:
        """Returns a pass; the newest is kept."""
        newest = self._newest
        if newest.number != number:
            newest = self._newest = self._pass(number)
        return newest

    def _pass(self, number: int) -> _Pass:
        count = self._rows.size
        shards = permute(np.arange(count, dtype=np.int64), size=count, key=key_of(self._seed, _SHARDS, number))
        rows = self._rows[shards]
        begins = np.cumsum(rows) - rows
        opens = np.flatnonzero(np.diff(begins // self._window_sequences, prepend=-1))
        return _Pass(number, shards, begins, windows=np.append(begins[opens], self._num_sequences))
