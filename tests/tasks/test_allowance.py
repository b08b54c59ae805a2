"""Whether a training may start a further job under its budget."""

from pathlib import Path

import pytest

from cluster.attempt import read_verdict
from schemas.errors import PolicyStopError
from schemas.exit_code import ExitCode
from schemas.job import JobSpec
from tasks.allowance import refuse_spent
from tests.fakes.job_request import gang_request
from tests.fakes.training_journal import TrainingJournal


@pytest.fixture
def journal(tmp_path: Path) -> TrainingJournal:
    return TrainingJournal(tmp_path)


def request(journal: TrainingJournal, allowed_s: float | None) -> JobSpec:
    return gang_request(journal.storage.root.parent, device_s_allowed=allowed_s)


def test_a_first_job_and_one_without_a_budget_are_not_refused(journal: TrainingJournal) -> None:
    refuse_spent(journal.storage, request(journal, 1.0))
    journal.attempt(0, at=100.0, ended_at=150.0)
    refuse_spent(journal.storage, request(journal, None))


def test_a_job_that_runs_is_adopted_whatever_it_has_used(journal: TrainingJournal) -> None:
    journal.attempt(0, at=100.0)
    refuse_spent(journal.storage, request(journal, 1e-6))


def test_a_budget_that_is_used_up_is_refused_before_anything_is_submitted(journal: TrainingJournal) -> None:
    journal.attempt(0, at=100.0, ended_at=150.0, goes_on=True)
    refuse_spent(journal.storage, request(journal, 97.0))
    with pytest.raises(PolicyStopError, match=r"used up: 0\.0267 of 0\.025 device-hours") as error:
        refuse_spent(journal.storage, request(journal, 90.0))
    assert error.value.exit_code is ExitCode.POLICY
    assert "--set budget.gpu_hours=0.05" in error.value.mend


@pytest.mark.parametrize("allowed_s", [99.0, 100.0])
def test_what_stopped_for_its_budget_stays_stopped_under_the_same(journal: TrainingJournal, allowed_s: float) -> None:
    """It stopped in time for its checkpoint, so something is left; it would not suffice this time either."""
    journal.attempt(0, at=100.0, ended_at=150.0, spent=True, device_s_allowed=100.0)
    with pytest.raises(PolicyStopError):
        refuse_spent(journal.storage, request(journal, allowed_s))


@pytest.mark.parametrize("allowed_s", [200.0, None])
def test_a_larger_budget_settles_what_stopped_while_nobody_looked(journal: TrainingJournal, allowed_s: float | None) -> None:
    """Otherwise the next supervisor would first tell of the old stop."""
    journal.attempt(0, at=100.0, ended_at=150.0, spent=True, device_s_allowed=100.0)
    refuse_spent(journal.storage, request(journal, allowed_s))
    verdict = read_verdict(journal.storage, journal.layout.attempt("", 0))
    assert verdict is not None
    assert verdict.decision == "stop"
    refuse_spent(journal.storage, request(journal, allowed_s))
