"""Where the time of training goes: every second between the first step and the last belongs to one named part."""

import time


class StepClock:
    """Splits time into named parts. Nothing is lost between two calls: what no part took is `other_s`."""

    def __init__(self) -> None:
        """Starts counting now."""
        self.parts: dict[str, float] = {}
        """Seconds by part, since `start`: one step's."""
        self._totals: dict[str, float] = {}
        self._mark = time.perf_counter()

    def start(self) -> None:
        """Begins a step."""
        self.lap("other_s")
        self.parts = {}

    def lap(self, part: str) -> None:
        """Adds the time since the last call to `part`."""
        now = time.perf_counter()
        passed = now - self._mark
        self.parts[part] = self.parts.get(part, 0.0) + passed
        self._totals[part] = self._totals.get(part, 0.0) + passed
        self._mark = now

    def take_totals(self) -> dict[str, float]:
        """Returns the seconds by part since the last call; their sum is the wall time in between."""
        self.lap("other_s")
        totals, self._totals = self._totals, {}
        return totals
