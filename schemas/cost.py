"""What a training takes of its devices, and what that costs: in `headrace plan`, in `headrace status`, in the training's record. PURE.

A job is charged for what it holds while it runs, busy or not: its GPUs, or where it has none its ranks.
"""

from typing import Literal

from schemas.frozen import Frozen

HOUR_S = 3600.0


class TrainingCost(Frozen):
    """What one training took so far, and what is left of it."""

    device: Literal["GPU", "rank"]
    """What is counted: GPUs, or of jobs without any their ranks."""
    used_hours: float
    """Device-hours that all its jobs took so far."""
    left_hours: float | None = None
    """Device-hours that the steps which are left will take, at the measured pace; None: nobody knows."""
    paced_by: str = ""
    """The training, by its folder, whose steps were measured; empty: none was."""
    budget_hours: float | None = None
    """`budget.gpu_hours`."""
    price_per_hour: float | None = None
    """`cluster.price_per_gpu_hour`."""
    cost_used: float | None = None
    """What `used_hours` cost; None: no price is known."""
    cost_total: float | None = None
    """What all of it will have cost; None: no price, or no pace is known."""

    @property
    def total_hours(self) -> float | None:
        """Device-hours of the whole training; None: nobody knows."""
        return None if self.left_hours is None else self.used_hours + self.left_hours

    @property
    def unit(self) -> str:
        """What its hours are called."""
        return "GPU-hours" if self.device == "GPU" else "device-hours"

    @property
    def objection(self) -> str:
        """Why nobody may start it unasked, as half a sentence; empty: it keeps its budget, or has none."""
        if self.budget_hours is None:
            return ""
        if self.total_hours is None:
            return f"what training would take is not known, and budget.gpu_hours allows {self.budget_hours:g}"
        if self.total_hours > self.budget_hours:
            return f"training would take {of_hours(self.total_hours)} {self.unit}, and budget.gpu_hours allows {self.budget_hours:g}"
        return ""


def training_cost(
    *, gpus: bool, used_s: float, left_s: float | None, budget_s: float | None, price_per_hour: float | None, paced_by: str = ""
) -> TrainingCost:
    """Returns the cost of a training.

    Args:
        gpus: whether its jobs hold GPUs.
        used_s: device-seconds that they took so far.
        left_s: device-seconds that are left; None: nobody knows.
        budget_s: device-seconds that they may take; None: no budget.
        price_per_hour: of one device; None: not known.
        paced_by: the training that was measured.
    """
    used, left = used_s / HOUR_S, None if left_s is None else left_s / HOUR_S
    return TrainingCost(
        device="GPU" if gpus else "rank",
        used_hours=used,
        left_hours=left,
        paced_by=paced_by,
        budget_hours=None if budget_s is None else budget_s / HOUR_S,
        price_per_hour=price_per_hour,
        cost_used=None if price_per_hour is None else price_per_hour * used,
        cost_total=None if price_per_hour is None or left is None else price_per_hour * (used + left),
    )


def of_hours(hours: float) -> str:
    """Returns `0.0042`, `0.31`, `12.5`, `1,234`: hours as people read them."""
    return f"{hours:,.0f}" if hours >= 99.95 else f"{hours:.3g}" if hours >= 0.01 else f"{hours:.2g}"
