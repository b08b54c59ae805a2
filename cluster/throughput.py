"""How fast a node gets through an array. PURE: what is done at which moment in, rates out."""

from collections import deque

WINDOW_S = 120.0
"""Over which the rate is taken: longer than most items, shorter than anybody waits for news."""


class Throughput:
    """Bytes and files per second over the last minutes."""

    def __init__(self) -> None:
        """Begins with nothing seen."""
        self._seen: deque[tuple[float, float, float]] = deque()

    def see(self, num_bytes: float, num_files: float, *, now: float) -> None:
        """Takes note of what this node's processes have done so far, in all; `now`: monotonic seconds."""
        self._seen.append((now, num_bytes, num_files))
        while len(self._seen) > 2 and self._seen[1][0] <= now - WINDOW_S:
            self._seen.popleft()

    @property
    def bytes_per_s(self) -> float:
        """0 before anything is known; less than nothing, as when an item begins anew, counts as nothing."""
        return self._rate(1)

    @property
    def files_per_s(self) -> float:
        """The same in files."""
        return self._rate(2)

    def _rate(self, column: int) -> float:
        if len(self._seen) < 2:
            return 0.0
        first, last = self._seen[0], self._seen[-1]
        return max(0.0, last[column] - first[column]) / max(1e-9, last[0] - first[0])
