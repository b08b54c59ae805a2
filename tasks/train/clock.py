"""Where the time of training goes: every second between the first step and the last belongs to one named part."""

import time

from cluster.agent.pulse import Pulse, own_pulse
from schemas.progress import RankPhase


class StepClock:
    """Splits time into named parts. Nothing is lost between two calls: what no part took is `other_s`. Every part is a sign of life."""

    def __init__(self, pulse: Pulse | None = None) -> None:
        """Starts counting now. `pulse`: where the signs of life go; default: this process's."""
        self._pulse = pulse if pulse is not None else own_pulse()
        self._is_first_step = True
        self.parts: dict[str, float] = {}
        """Seconds by part, since `start`: one step's."""
        self._totals: dict[str, float] = {}
        self._mark = time.perf_counter()

    def start(self, step: int) -> None:
        """Begins a step. In the first one, libraries compile and allocate: it is a phase of its own."""
        self.lap("other_s")
        self.parts = {}
        self._pulse.begin_step(step)
        self._pulse.enter(RankPhase.COMPILING if self._is_first_step else RankPhase.STEPPING)
        self._is_first_step = False

    def lap(self, part: str) -> None:
        """Adds the time since the last call to `part`."""
        now = time.perf_counter()
        passed = now - self._mark
        self.parts[part] = self.parts.get(part, 0.0) + passed
        self._totals[part] = self._totals.get(part, 0.0) + passed
        self._mark = now
        self._pulse.finish_part(part, passed)

    def take_totals(self) -> dict[str, float]:
        """Returns the seconds by part since the last call; their sum is the wall time in between."""
        self.lap("other_s")
        totals, self._totals = self._totals, {}
        return totals
