"""When to stop work before its allocation ends. PURE: what was measured goes in, seconds come out.

A graceful stop takes: the step that is under way, a validation that may be under way, the checkpoint that may be on its way to storage, and the
checkpoint of the last step. All are known from what ranks told. What was slow once can be so again: the longest of each counts, and a margin covers
what the agent does afterwards.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from schemas.progress import RankProgress

SAVE_FIGURE, STEP_FIGURE, VALIDATION_FIGURE = "checkpoint_write_s", "step_s", "validation_s"
"""Names under which ranks tell, with their progress, how long a save (until it was committed), a step and a validation took."""

_SAFETY = 1.5
"""Storage and machines are slower at times than they were."""
_SAVES = 2
_MARGIN_S = 5.0
"""For the ranks' ends, and for the agent's last words to storage."""
_MOST_SHARE = 0.5
"""Never stop before this share of the allocation is used: one shorter than its own end would get nowhere."""


@dataclass(frozen=True)
class Costs:
    """The longest that was seen of what a graceful stop waits for, seconds."""

    step_s: float = 0.0
    save_s: float | None = None
    """None: no checkpoint was measured yet."""
    validation_s: float = 0.0

    def seen(self, ranks: Iterable[RankProgress]) -> "Costs":
        """Returns the costs with what ranks tell now."""
        costs = self
        for rank in ranks:
            costs = costs._with(rank.figures)
        return costs

    def _with(self, figures: Mapping[str, float]) -> "Costs":
        save_s = self.save_s
        if SAVE_FIGURE in figures:
            save_s = max(save_s or 0.0, figures[SAVE_FIGURE])
        step_s, validation_s = figures.get(STEP_FIGURE, 0.0), figures.get(VALIDATION_FIGURE, 0.0)
        return replace(self, step_s=max(self.step_s, step_s), save_s=save_s, validation_s=max(self.validation_s, validation_s))


def stop_s(costs: Costs, *, grace_s: float) -> float:
    """Returns how long a graceful stop may take; `grace_s` stands for a save that was not measured yet."""
    save_s = grace_s if costs.save_s is None else costs.save_s
    return _SAFETY * (costs.step_s + costs.validation_s + _SAVES * save_s)


def stop_lead_s(costs: Costs, *, time_limit_s: float, grace_s: float) -> float:
    """Returns how long before the end of an allocation ranks are to be asked to stop.

    Args:
        costs: what was seen.
        time_limit_s: length of the allocation.
        grace_s: stands for a save that was not measured yet.
    """
    return min(stop_s(costs, grace_s=grace_s) + _MARGIN_S, _MOST_SHARE * time_limit_s)
