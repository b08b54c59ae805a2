"""Which rank makes the others wait: signs of life in, changes out."""

import pytest

from cluster.straggler import WINDOW_STEPS, StragglerChange, StragglerWatch
from schemas.progress import RankPhase, RankPulse


class Gang:
    """Ranks that step together, each with its own busy time."""

    def __init__(self, num_ranks: int, *, node_of: int = 0) -> None:
        self.watch = StragglerWatch()
        self.now, self.step = 0.0, 0
        self.data_s, self.forward_s = [0.0] * num_ranks, [0.0] * num_ranks
        self.split = node_of or num_ranks

    def steps(self, count: int, *, busy_s: list[float], step_s: float = 1.0, reading: bool = False) -> list[StragglerChange]:
        """Makes steps; returns the changes told on the first node."""
        changes: list[StragglerChange] = []
        for _ in range(count):
            self.step += 1
            self.now += step_s
            for rank, seconds in enumerate(busy_s):
                (self.data_s if reading else self.forward_s)[rank] += seconds
            pulses = [self.pulse(rank) for rank in range(len(busy_s))]
            changes += self.watch.look(pulses[: self.split], now=self.now, elsewhere=pulses[self.split :])
        return changes

    def pulse(self, rank: int, phase: RankPhase = RankPhase.STEPPING) -> RankPulse:
        return RankPulse(
            rank=rank, beats=1, phase=phase, step=self.step, position=3, part="x", data_s=self.data_s[rank], forward_s=self.forward_s[rank]
        )


@pytest.mark.parametrize("num_ranks", [2, 3, 8])
def test_a_straggler_is_named_within_twenty_steps(num_ranks: int) -> None:
    gang = Gang(num_ranks)
    assert gang.steps(60, busy_s=[0.2] * num_ranks) == []
    changes = gang.steps(20, busy_s=[0.2] * (num_ranks - 1) + [0.4])
    assert [(change.rank, change.slow, change.part) for change in changes] == [(num_ranks - 1, True, "forward")]
    assert changes[0].factor >= 1.5
    assert changes[0].step <= 80


def test_slow_reading_is_told_from_slow_computing() -> None:
    gang = Gang(2)
    gang.steps(30, busy_s=[0.2, 0.2])
    assert [change.part for change in gang.steps(20, busy_s=[0.3, 0.0], reading=True)] == ["data"]


def test_a_straggler_that_recovers_is_told_once() -> None:
    gang = Gang(2)
    gang.steps(30, busy_s=[0.5, 0.2])
    changes = gang.steps(60, busy_s=[0.2, 0.2])
    assert [(change.rank, change.slow) for change in changes] == [(0, False)]


def test_one_that_wavers_about_the_threshold_is_told_once() -> None:
    gang = Gang(2)
    told = [change for _ in range(30) for busy_s in (0.32, 0.27) for change in gang.steps(WINDOW_STEPS, busy_s=[0.2, busy_s])]
    assert len(told) == 1


def test_a_large_factor_of_little_is_nobodys_trouble() -> None:
    assert Gang(2).steps(100, busy_s=[0.01, 0.05]) == []


def test_all_slow_together_is_no_straggler() -> None:
    gang = Gang(4)
    gang.steps(40, busy_s=[0.1] * 4)
    assert gang.steps(40, busy_s=[0.6] * 4) == []


def test_ranks_are_compared_with_those_of_other_nodes_and_told_by_their_own() -> None:
    gang = Gang(4, node_of=2)
    assert [change.rank for change in gang.steps(40, busy_s=[0.5, 0.5, 0.2, 0.2])] == [0, 1]
    gang = Gang(4, node_of=1)
    assert [change.rank for change in gang.steps(40, busy_s=[0.5, 0.2, 0.2, 0.5])] == [0]


def test_steps_quicker_than_the_looks_at_them_are_averaged() -> None:
    gang = Gang(2)
    changes: list[StragglerChange] = []
    for _ in range(10):
        gang.step += 50
        gang.now += 1.0
        gang.forward_s[0] += 50 * 0.01
        gang.forward_s[1] += 50 * 0.004
        changes += gang.watch.look([gang.pulse(0), gang.pulse(1)], now=gang.now)
    assert [change.rank for change in changes] == [0]
    assert changes[0].busy_s == pytest.approx(0.01)


def test_validation_is_not_compared() -> None:
    gang = Gang(2)
    gang.steps(30, busy_s=[0.2, 0.2])
    gang.data_s[0] += 100.0
    assert gang.watch.look([gang.pulse(0, RankPhase.VALIDATING), gang.pulse(1, RankPhase.VALIDATING)], now=gang.now) == ()


def test_a_single_rank_has_nobody_to_compare_with() -> None:
    assert Gang(1).steps(50, busy_s=[0.9]) == []
