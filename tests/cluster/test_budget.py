"""What a training's jobs have used of its budget, and when ranks are asked to stop for it."""

from pathlib import Path
from typing import Any

import pytest

from cluster.agent.allocation import BudgetShare
from cluster.budget import Budget, budget_of, used_device_s
from schemas.attempt import Cause
from schemas.job import JobSpec
from schemas.progress import RankPhase, RankProgress
from tests.fakes.job_request import gang_request
from tests.fakes.training_journal import TrainingJournal


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def journal(tmp_path: Path) -> TrainingJournal:
    return TrainingJournal(tmp_path)


def shaped(journal: TrainingJournal, **changes: Any) -> JobSpec:
    return gang_request(journal.storage.root.parent).model_copy(update=changes)


@pytest.mark.parametrize(
    ("shape", "devices"),
    [({"num_nodes": 1, "ranks_per_node": 2}, 2), ({"num_nodes": 3, "ranks_per_node": 2}, 6), ({"num_nodes": 3, "gpus_per_node": 8}, 24)],
)
def test_a_job_is_charged_for_the_gpus_that_it_holds_and_without_any_for_its_ranks(journal: TrainingJournal, shape: Any, devices: int) -> None:
    assert shaped(journal, **shape).devices == devices


def test_every_attempt_counts_from_its_claim_to_its_last_word(journal: TrainingJournal) -> None:
    """Claimed two seconds after the wish; each of two ranks counts."""
    assert used_device_s(journal.storage, journal.layout) == 0.0
    journal.attempt(0, at=100.0, ended_at=152.0, goes_on=True)
    assert used_device_s(journal.storage, journal.layout) == 2 * 50.0
    journal.attempt(1, at=200.0, ended_at=212.0)
    assert used_device_s(journal.storage, journal.layout) == 2 * 60.0
    assert used_device_s(journal.storage, journal.layout, before=1) == 2 * 50.0
    journal.attempt(2, at=300.0)  # it has only just begun
    assert used_device_s(journal.storage, journal.layout) == 2 * 60.0


def test_what_the_attempts_before_used_is_not_left_to_the_next(journal: TrainingJournal) -> None:
    journal.attempt(0, at=100.0, ended_at=152.0, goes_on=True)
    asked = shaped(journal, attempt=1, device_s_allowed=3600.0)
    budget = budget_of(journal.storage, asked)
    assert budget == Budget(allowed_s=3600.0, used_s=100.0, devices=2, unit="device-hours")
    assert budget.left_s == 1750.0
    assert budget_of(journal.storage, asked.model_copy(update={"device_s_allowed": 60.0})).left_s == 0.0  # type: ignore[union-attr]
    assert budget_of(journal.storage, asked.model_copy(update={"device_s_allowed": None})) is None


def test_a_share_of_the_budget_ends_in_time_for_a_last_checkpoint() -> None:
    clock = Clock()
    share = BudgetShare(Budget(allowed_s=8 * 3600.0, used_s=3600.0, devices=7, unit="GPU-hours"), grace_s=30.0, clock=clock)
    seen = RankProgress(
        rank=0,
        pid=1,
        phase=RankPhase.STEPPING,
        step=1,
        committed_step=1,
        total_steps=9,
        at=0.0,
        figures={"step_s": 1.0, "checkpoint_write_s": 4.5},
    )
    share.see([seen])
    clock.now += 3600.0 - 1.5 * 10.0 - 5.0 - 0.1
    assert not share.is_ending
    clock.now += 0.2
    assert share.is_ending
    assert share.cause is Cause.BUDGET
    what, why, mend = share.reason.splitlines()
    assert what == "the budget is used up: 7.96 of 8 GPU-hours"
    assert why.startswith("  why:  ")
    assert mend == "  mend: headrace run RECIPE --set budget.gpu_hours=16 goes on from the newest checkpoint"


def test_a_budget_of_which_nothing_is_left_is_ending_at_once() -> None:
    assert BudgetShare(Budget(allowed_s=10.0, used_s=11.0, devices=1, unit="device-hours"), grace_s=30.0).is_ending
