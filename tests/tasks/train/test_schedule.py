import math

import pytest

from schemas.recipe_config import Schedule, ScheduleConfig
from tasks.train.schedule import learning_rate, shared_steps


def rates(total_steps: int, **schedule: object) -> list[float]:
    config = ScheduleConfig.model_validate(schedule)
    return [learning_rate(step, total_steps=total_steps, peak=1.0, schedule=config) for step in range(total_steps)]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({"kind": "constant", "warmup_steps": 4}, [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]),
        ({"kind": "constant", "warmup_steps": 0}, [1.0] * 6),
        ({"kind": "linear", "warmup_steps": 2, "final_fraction": 0.0}, [0.5, 1.0, 0.75, 0.5, 0.25, 0.0]),
        ({"kind": "linear", "warmup_steps": 2, "final_fraction": 0.2}, [0.5, 1.0, 0.8, 0.6, 0.4, 0.2]),
        ({"kind": "cosine", "warmup_steps": 2, "final_fraction": 0.0}, [0.5, 1.0, 0.5 + math.sqrt(2) / 4, 0.5, 0.5 - math.sqrt(2) / 4, 0.0]),
        ({"kind": "wsd", "warmup_steps": 1, "decay_steps": 2, "final_fraction": 0.0}, [1.0, 1.0, 1.0, 1.0, 0.5, 0.0]),
        ({"kind": "wsd", "warmup_steps": 4, "decay_steps": 9, "final_fraction": 0.5}, [0.25, 0.5, 0.75, 1.0, 0.75, 0.5]),
        ({"kind": "linear", "warmup_steps": 6}, [1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1.0]),
    ],
)
def test_table(schedule: dict[str, object], expected: list[float]) -> None:
    assert rates(6, **schedule) == pytest.approx(expected)


@pytest.mark.parametrize("kind", list(Schedule))
def test_shape(kind: Schedule) -> None:
    decay = {"decay_steps": 30} if kind is Schedule.WARMUP_STABLE_DECAY else {}
    values = rates(100, kind=kind, warmup_steps=10, final_fraction=0.1, **decay)
    assert values[9] == max(values) == 1.0
    assert values[:10] == sorted(values[:10])
    assert values[9:] == sorted(values[9:], reverse=True)
    assert values[-1] == pytest.approx(1.0 if kind is Schedule.CONSTANT else 0.1)


def test_how_long_is_not_what_before_the_decay() -> None:
    """What lets a longer run go on from a shorter one."""
    short, long = (rates(total, kind="wsd", warmup_steps=5, decay_steps=20) for total in (60, 200))
    assert short[:40] == long[:40]
    assert short[40] != long[40]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({"kind": "constant", "warmup_steps": 2}, 10),
        ({"kind": "wsd", "warmup_steps": 2, "decay_steps": 3}, 7),
        ({"kind": "wsd", "warmup_steps": 2, "decay_steps": 30}, 2),
        ({"kind": "cosine", "warmup_steps": 2}, 0),
        ({"kind": "linear", "warmup_steps": 2}, 0),
    ],
)
def test_a_longer_training_has_the_same_rates_up_to_the_shared_step(schedule: dict[str, object], expected: int) -> None:
    shared = shared_steps(10, schedule=ScheduleConfig.model_validate(schedule))
    assert shared == expected
    short, long = rates(10, **schedule), rates(50, **schedule)
    assert short[:shared] == long[:shared]
