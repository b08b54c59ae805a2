"""When ranks are asked to stop before their allocation ends."""

import pytest

from cluster.agent.allocation import Allocation
from cluster.deadline import Costs, stop_lead_s
from schemas.progress import RankPhase, RankProgress


def rank(**figures: float) -> RankProgress:
    return RankProgress(rank=0, pid=1, phase=RankPhase.STEPPING, step=1, committed_step=0, total_steps=9, at=1.0, figures=figures)


def test_the_lead_holds_a_step_a_validation_and_two_saves_with_something_to_spare() -> None:
    costs = Costs().seen([rank(step_s=2.0, checkpoint_write_s=10.0, validation_s=20.0)])
    assert stop_lead_s(costs, time_limit_s=3600.0, grace_s=30.0) == pytest.approx(1.5 * 42.0 + 5.0)


def test_the_slowest_of_each_counts_also_when_it_was_seen_long_ago() -> None:
    costs = Costs().seen([rank(step_s=2.0, checkpoint_write_s=10.0), rank(step_s=1.0, checkpoint_write_s=30.0)])
    costs = costs.seen([rank(step_s=0.5), rank(loss=3.0)])
    assert costs == Costs(step_s=2.0, save_s=30.0)


def test_before_the_first_save_the_grace_stands_for_it() -> None:
    assert stop_lead_s(Costs(step_s=2.0), time_limit_s=3600.0, grace_s=30.0) == pytest.approx(1.5 * 62.0 + 5.0)


def test_at_least_half_of_a_short_allocation_is_used() -> None:
    assert stop_lead_s(Costs(step_s=60.0), time_limit_s=40.0, grace_s=30.0) == 20.0


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_an_allocation_is_ending_once_the_lead_begins() -> None:
    clock = Clock()
    allocation = Allocation(600.0, grace_s=30.0, environment={}, clock=clock)
    allocation.see([rank(step_s=1.0, checkpoint_write_s=4.5)])
    clock.now += 600.0 - 1.5 * 10.0 - 5.0 - 0.1
    assert not allocation.is_ending
    clock.now += 0.2
    assert allocation.is_ending
    assert allocation.left_s == pytest.approx(19.9)


def test_the_schedulers_own_end_counts_when_it_is_sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 50_000.0)
    sooner = Allocation(600.0, grace_s=30.0, environment={"SLURM_JOB_END_TIME": "50300"}, clock=Clock())
    later = Allocation(600.0, grace_s=30.0, environment={"SLURM_JOB_END_TIME": "60000"}, clock=Clock())
    nonsense = Allocation(600.0, grace_s=30.0, environment={"SLURM_JOB_END_TIME": "Unknown"}, clock=Clock())
    assert (sooner.left_s, later.left_s, nonsense.left_s) == (300.0, 600.0, 600.0)
