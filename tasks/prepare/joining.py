"""Which documents belong together, from pairs that do: connected components, kept in one array. Pure.

The outcome is the same in whatever order the pairs come: a component is named by its lowest member.
"""

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


class Components:
    """Components of `count` things, each alone at first. Memory: 8 bytes for each, and as much again while pairs are joined."""

    def __init__(self, count: int) -> None:
        """Args: count: how many things there are."""
        self.labels: Indices = np.arange(count, dtype=np.int64)
        """For each thing the lowest of its component."""

    def join(self, left: Indices, right: Indices) -> None:
        """Joins the components of each pair of `left` and `right`."""
        while True:
            one, other = self.labels[left], self.labels[right]
            apart = one != other
            if not apart.any():
                return
            lower, higher = np.minimum(one[apart], other[apart]), np.maximum(one[apart], other[apart])
            np.minimum.at(self.labels, higher, lower)
            self._shorten()

    def _shorten(self) -> None:
        """Makes every label that of a thing that labels itself."""
        while True:
            ahead = self.labels[self.labels]
            if np.array_equal(ahead, self.labels):
                return
            self.labels = ahead

    def shared(self) -> Indices:
        """Returns the things that are not alone, ascending."""
        sizes = np.bincount(self.labels, minlength=len(self.labels))
        return np.flatnonzero(sizes[self.labels] > 1)
