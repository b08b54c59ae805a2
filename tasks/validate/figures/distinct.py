"""How many different documents there are, where duplicates are kept: the lowest of their hashes tell (k minimum values, Bar-Yossef et al. 2002).

Exact below `KEPT_HASHES` different documents, right to about 6 % (one standard deviation) above. Merges exactly: the lowest of all are among the
lowest of the parts.
"""

import heapq
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np

KEPT_HASHES: Final = 256
_ID_CHARS = 32
_HASH_CHARS = 16


class DistinctTally:
    """Keeps the lowest hashes of all documents that pass."""

    def __init__(self) -> None:
        self._kept: set[bytes] = set()
        self._bound = b"~"  # above every hexadecimal digit

    def add(self, doc_ids: np.ndarray) -> None:
        """Takes documents. `doc_ids`: hexadecimal digits of their 128-bit ids one after the other, uint8."""
        hashes = hashes_of(doc_ids)
        low = hashes[hashes < self._bound]
        if len(low):
            self._kept = set(heapq.nsmallest(KEPT_HASHES, self._kept.union(low.tolist())))
            if len(self._kept) == KEPT_HASHES:
                self._bound = max(self._kept)

    def hashes(self) -> tuple[int, ...]:
        """Returns the lowest hashes, in order."""
        return tuple(sorted(int(each, 16) for each in self._kept))


def hashes_of(doc_ids: np.ndarray) -> np.ndarray:
    """Returns the second half of each id as 16 hexadecimal digits: the first half gives the split. `doc_ids`: see `DistinctTally.add`."""
    return np.ascontiguousarray(doc_ids.reshape(-1, _ID_CHARS)[:, -_HASH_CHARS:]).view(f"S{_HASH_CHARS}").ravel()


def merge_hashes(parts: Iterable[Sequence[int]]) -> tuple[int, ...]:
    """Returns the lowest hashes of several sets of documents."""
    return tuple(heapq.nsmallest(KEPT_HASHES, {each for part in parts for each in part}))


def distinct_of(hashes: Sequence[int]) -> int:
    """Returns the number of different documents from the lowest of their hashes."""
    if len(hashes) < KEPT_HASHES:
        return len(hashes)
    return round((KEPT_HASHES - 1) * 2.0**64 / hashes[KEPT_HASHES - 1])
