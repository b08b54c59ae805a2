"""How often a checkpoint pays: Young's formula, and the clock that follows it. Pure.

A checkpoint costs C seconds of training, a failure takes half an interval T of work with it, and failures come every M seconds: the time
lost, C / T + T / 2M, is least at T = sqrt(2 C M) (Young, "A first order approximation to the optimum checkpoint interval", 1974; Daly's
higher-order terms of 2006 matter where C approaches M, and C is milliseconds here).
"""

import math
from typing import Literal

_PRIOR_COST_S = 0.1
"""Assumed cost of the first checkpoint of a start."""
_BREATH = 2.0
"""An interval is at least as many times as long as it takes to write a checkpoint: else one comes due while another is under way."""


def best_interval_s(*, cost_s: float, mtbf_s: float, write_s: float) -> float:
    """Returns the seconds from one checkpoint to the next.

    Args:
        cost_s: what a checkpoint takes from training.
        mtbf_s: mean time between failures.
        write_s: what a checkpoint takes from its begin to its commit.
    """
    return max(math.sqrt(2.0 * cost_s * mtbf_s), _BREATH * write_s)


class SaveRhythm:
    """When checkpoints are due: every so many steps, or as often as it pays. One rank's decision counts, so its clock may be its own."""

    def __init__(self, every_steps: int | Literal["auto"], *, mtbf_s: float, total_steps: int, now: float) -> None:
        """Args: mtbf_s: mean time between failures. now: seconds, by the clock of all later calls."""
        self._every_steps, self._mtbf_s, self._total_steps = every_steps, mtbf_s, total_steps
        self._began_at = now
        self._cost_s = _PRIOR_COST_S
        self._stall_s = 0.0

    def is_due(self, step: int, *, now: float, write_s: float) -> bool:
        """Whether the state after `step` updates is to be saved. `write_s`: what the newest committed checkpoint took, 0: none yet."""
        if step == self._total_steps:
            return True
        if self._every_steps == "auto":
            return now - self._began_at >= best_interval_s(cost_s=self._cost_s, mtbf_s=self._mtbf_s, write_s=write_s)
        return step % self._every_steps == 0

    def begun(self, *, now: float) -> None:
        """Notes that a checkpoint was due, whether it began or the one before was in its way."""
        self._began_at = now

    def stalled(self, seconds: float) -> None:
        """Notes how long training stood still to begin the newest checkpoint."""
        self._stall_s = seconds

    def cost(self, seconds: float) -> None:
        """Notes what the newest copy took from training after that, once it is whole."""
        self._cost_s = self._stall_s + seconds
