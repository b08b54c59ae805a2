"""Hours and money of a training, and when people must be asked."""

from typing import Any

import pytest

from schemas.cost import TrainingCost, of_hours, training_cost


def cost(**changes: Any) -> TrainingCost:
    fields: dict[str, Any] = {"gpus": True, "used_s": 3600.0, "left_s": 7200.0, "budget_s": None, "price_per_hour": None}
    return training_cost(**(fields | changes))


def test_money_is_spoken_of_only_where_a_price_is_known() -> None:
    assert (cost().cost_used, cost().cost_total) == (None, None)
    priced = cost(price_per_hour=2.5)
    assert (priced.cost_used, priced.cost_total, priced.total_hours) == (2.5, 7.5, 3.0)
    assert cost(price_per_hour=2.5, left_s=None).cost_total is None


@pytest.mark.parametrize(
    ("changes", "objection"),
    [
        ({}, ""),
        ({"left_s": None}, ""),
        ({"budget_s": 10_800.0}, ""),
        ({"budget_s": 10_440.0}, "training would take 3 GPU-hours, and budget.gpu_hours allows 2.9"),
        ({"budget_s": 10_440.0, "gpus": False}, "training would take 3 device-hours, and budget.gpu_hours allows 2.9"),
        ({"budget_s": 10_800.0, "left_s": None}, "what training would take is not known, and budget.gpu_hours allows 3"),
    ],
)
def test_what_exceeds_the_budget_or_may_is_objected_to(changes: dict[str, Any], objection: str) -> None:
    assert cost(**changes).objection == objection


@pytest.mark.parametrize(("hours", "text"), [(0.0, "0"), (0.00417, "0.0042"), (0.3142, "0.314"), (12.49, "12.5"), (99.96, "100"), (1234.5, "1,234")])
def test_hours_are_short(hours: float, text: str) -> None:
    assert of_hours(hours) == text
