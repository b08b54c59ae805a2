"""How long this agent may work, and whether it is time to end the work gracefully: the end of its allocation, or of its training's budget."""

import time
from collections.abc import Callable, Iterable, Mapping

from cluster.budget import Budget
from cluster.deadline import Costs, stop_lead_s
from schemas.attempt import Cause
from schemas.progress import RankProgress

_SLURM_END = "SLURM_JOB_END_TIME"
"""Set by Slurm in a job's environment: the end of its time limit, seconds since the Unix epoch."""


class Allocation:
    """The time that the agent was given. Its own monotonic clock measures it: a machine whose time of day jumps ends nothing."""

    cause = Cause.TIME_LIMIT
    """Why ranks stop at its end."""

    def __init__(
        self,
        time_limit_s: float,
        *,
        grace_s: float,
        environment: Mapping[str, str],
        clock: Callable[[], float] = time.monotonic,
        costs: Costs | None = None,
    ) -> None:
        """Begins now.

        Args:
            time_limit_s: its length, seconds.
            grace_s: as in the job spec.
            environment: where a scheduler tells an end that is sooner.
            clock: monotonic seconds.
            costs: what is known beforehand.
        """
        self._clock, self._grace_s, self._costs = clock, grace_s, costs or Costs()
        end = environment.get(_SLURM_END, "")
        told_s = float(end) - time.time() if end.isdigit() else time_limit_s
        self._limit_s = max(0.0, min(time_limit_s, told_s))  # set-up before the agent has used up some of it
        self._ends_at = clock() + self._limit_s

    @property
    def left_s(self) -> float:
        """Seconds until it ends."""
        return self._ends_at - self._clock()

    def see(self, ranks: Iterable[RankProgress]) -> None:
        """Takes what ranks tell of themselves: how long steps and saves take."""
        self._costs = self._costs.seen(ranks)

    @property
    def is_ending(self) -> bool:
        """Whether ranks must be asked to stop now, so that they can commit before the end."""
        return self.left_s <= stop_lead_s(self._costs, time_limit_s=self._limit_s, grace_s=self._grace_s)

    @property
    def reason(self) -> str:
        """Why ranks are asked to stop, for people."""
        return f"the allocation ends in {max(0.0, self.left_s):.0f} s"


class BudgetShare(Allocation):
    """What a training's budget leaves to this attempt."""

    cause = Cause.BUDGET

    def __init__(self, budget: Budget, *, grace_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Begins now.

        Args:
            budget: as this attempt finds it.
            grace_s: as in the job spec.
            clock: monotonic seconds.
        """
        super().__init__(budget.left_s, grace_s=grace_s, environment={}, clock=clock)
        self._budget = budget

    @property
    def reason(self) -> str:
        """Why ranks are asked to stop, for people: what was used of what, and how to go on."""
        return str(self._budget.spent(self._limit_s - self.left_s))
