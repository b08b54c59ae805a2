import pytest

from tasks.train.checkpoint.interval import SaveRhythm, best_interval_s


@pytest.mark.parametrize(
    ("cost_s", "mtbf_s", "write_s", "expected"),
    [
        (0.05, 1000.0, 0.1, 10.0),
        (0.05, 10.0, 0.1, 1.0),
        (0.05, 10.0, 5.0, 10.0),  # storage is slower than what would pay
        (0.0, 1000.0, 0.0, 0.0),  # what costs nothing is done always
    ],
)
def test_the_interval_that_loses_least(cost_s: float, mtbf_s: float, write_s: float, expected: float) -> None:
    assert best_interval_s(cost_s=cost_s, mtbf_s=mtbf_s, write_s=write_s) == pytest.approx(expected)


def test_it_is_the_minimum() -> None:
    cost, mtbf = 0.3, 500.0

    def lost(interval: float) -> float:
        return cost / interval + interval / (2 * mtbf)

    best = best_interval_s(cost_s=cost, mtbf_s=mtbf, write_s=0.0)
    assert lost(best) < min(lost(best * 0.9), lost(best * 1.1))


def test_every_so_many_steps_knows_no_clock() -> None:
    rhythm = SaveRhythm(5, mtbf_s=1.0, total_steps=12, now=0.0)
    assert [step for step in range(1, 13) if rhythm.is_due(step, now=1e9 * step, write_s=0.0)] == [5, 10, 12]


def test_auto_follows_cost_and_failures() -> None:
    rhythm = SaveRhythm("auto", mtbf_s=1000.0, total_steps=100, now=0.0)
    prior = best_interval_s(cost_s=0.1, mtbf_s=1000.0, write_s=0.0)
    assert not rhythm.is_due(1, now=prior - 0.01, write_s=0.0)
    assert rhythm.is_due(2, now=prior, write_s=0.0)
    rhythm.begun(now=prior)
    rhythm.stalled(0.02)
    rhythm.cost(0.03)
    assert not rhythm.is_due(3, now=prior + 9.9, write_s=0.2)
    assert rhythm.is_due(4, now=prior + 10.0, write_s=0.2)
    assert rhythm.is_due(100, now=prior, write_s=0.2), "the last step always"
