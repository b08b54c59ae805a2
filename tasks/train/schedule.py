"""The learning rate as a pure function of the step. Imports neither torch nor DeepSpeed."""

import math

from schemas.recipe_config import Schedule, ScheduleConfig


def learning_rate(step: int, *, total_steps: int, peak: float, schedule: ScheduleConfig) -> float:
    """Returns the learning rate of update `step`, 0-based.

    Update 0 already learns (peak / warmup_steps), update warmup_steps - 1 has the peak, and the last update of a decaying
    schedule has exactly final_fraction × peak.
    """
    if step < schedule.warmup_steps:
        return peak * (step + 1) / schedule.warmup_steps
    return peak * _fraction(step, total_steps=total_steps, schedule=schedule)


def shared_steps(total_steps: int, *, schedule: ScheduleConfig) -> int:
    """Returns the last step whose state does not depend on where training stops: a longer training passes through it too.

    That is the end under `constant`, the last step at the peak under `wsd`, and step 0 where the whole curve is shaped by its length.
    """
    match schedule.kind:
        case Schedule.CONSTANT:
            return total_steps
        case Schedule.WARMUP_STABLE_DECAY:
            assert schedule.decay_steps is not None  # the configuration says so
            return max(total_steps - schedule.decay_steps, min(schedule.warmup_steps, total_steps))
        case Schedule.COSINE | Schedule.LINEAR:
            return 0


def _fraction(step: int, *, total_steps: int, schedule: ScheduleConfig) -> float:
    """Returns the share of the peak after the warm-up."""
    match schedule.kind:
        case Schedule.CONSTANT:
            return 1.0
        case Schedule.WARMUP_STABLE_DECAY:
            assert schedule.decay_steps is not None  # the configuration says so
            length = min(schedule.decay_steps, total_steps - schedule.warmup_steps)
        case Schedule.COSINE | Schedule.LINEAR:
            length = total_steps - schedule.warmup_steps
    # progress is 0 at the last step at the peak and 1 at the last step of all
    progress = min(1.0, max(0.0, (step + 1 - (total_steps - length)) / length))
    remaining = 0.5 * (1.0 + math.cos(math.pi * progress)) if schedule.kind is Schedule.COSINE else 1.0 - progress
    return schedule.final_fraction + (1.0 - schedule.final_fraction) * remaining
