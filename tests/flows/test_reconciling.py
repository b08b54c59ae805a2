"""What becomes of a flow run whose job is over, or of a job whose flow run is: every row of the table, and what a journal says."""

import itertools
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import get_args

import pytest
from prefect.client.schemas.objects import State, StateType
from prefect.states import AwaitingRetry, Pending, Running

from cluster.lease import PATIENCE_S, Lease
from cluster.storage import open_storage
from flows.reconciling import (
    ENDING_S,
    MOST_IN_A_ROW,
    MOST_RESCHEDULED,
    RESCHEDULED,
    SETTLING_S,
    Decision,
    Job,
    Journal,
    Watch,
    decide,
    journal_says,
    since_running,
    times_rescheduled,
)
from schemas.journal import EventKind
from tasks.runs import Run

ENDED = (StateType.COMPLETED, StateType.FAILED, StateType.CRASHED, StateType.CANCELLED)
OLD_S = 3600.0
JOBS: tuple[Job, ...] = get_args(Job)
JOURNALS: tuple[Journal, ...] = get_args(Journal)


@pytest.mark.parametrize(
    ("state", "journal", "decision"),
    [
        (StateType.PENDING, "none", "reschedule"),
        (StateType.PENDING, "open", "reschedule"),
        (StateType.PENDING, "finished", "reschedule"),
        (StateType.PENDING, "foreign", "reschedule"),
        (StateType.PENDING, "failed", "crash"),
        (StateType.PENDING, "stopped", "cancelled"),
        (StateType.RUNNING, "none", "reschedule"),
        (StateType.RUNNING, "open", "reschedule"),
        (StateType.RUNNING, "interrupted", "reschedule"),
        (StateType.RUNNING, "finished", "reschedule"),
        (StateType.RUNNING, "foreign", "crash"),
        (StateType.RUNNING, "failed", "crash"),
        (StateType.RUNNING, "stopped", "cancelled"),
        (StateType.CANCELLING, "open", "cancelled"),
        (StateType.CANCELLING, "foreign", "cancelled"),
        (StateType.CRASHED, "open", "reschedule"),
        (StateType.CRASHED, "interrupted", "reschedule"),
        (StateType.CRASHED, "failed", "leave"),
        (StateType.CRASHED, "none", "leave"),
        (StateType.CANCELLED, "open", "stop run"),
        (StateType.CANCELLED, "stopped", "leave"),
        (StateType.CANCELLED, "interrupted", "leave"),
        (StateType.COMPLETED, "open", "leave"),
        (StateType.FAILED, "open", "leave"),
    ],
)
def test_a_job_that_is_over(state: StateType, journal: Journal, decision: Decision) -> None:
    assert decide(state, age_s=OLD_S, job="over", journal=journal) == decision


@pytest.mark.parametrize("state", StateType)
def test_what_is_not_known_or_at_rest_is_left_alone(state: StateType) -> None:
    for job, journal in itertools.product(JOBS, JOURNALS):
        decision = decide(state, age_s=OLD_S, job=job, journal=journal)
        if job == "unknown" or state in (StateType.SCHEDULED, StateType.PAUSED) or (job == "over" and journal in ("held", "unread")):
            assert decision == "leave"
        elif job in ("waits", "runs"):
            assert decision == ("end job" if state in (*ENDED, StateType.CANCELLING) else "leave")
        elif state in (StateType.COMPLETED, StateType.FAILED):
            assert decision == "leave", "what has ended in order stays so"


@pytest.mark.parametrize("state", [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING, StateType.CRASHED, StateType.CANCELLED])
def test_a_young_state_is_left_alone(state: StateType) -> None:
    """A flow run may be Pending before its `sbatch`, and Running after Slurm was asked."""
    settled_s = SETTLING_S[state]
    assert decide(state, age_s=settled_s - 1, job="over", journal="open") == "leave"
    assert decide(state, age_s=settled_s, job="over", journal="open") != "leave"


def test_a_job_may_end_by_itself_after_its_flow_run() -> None:
    for state in (StateType.COMPLETED, StateType.CANCELLING):
        assert decide(state, age_s=ENDING_S, job="runs", journal="unread") == "leave"
        assert decide(state, age_s=ENDING_S + 1, job="runs", journal="unread") == "end job"


def test_a_job_that_waits_does_not_hear_of_its_cancellation() -> None:
    assert decide(StateType.CANCELLING, age_s=0.0, job="waits", journal="unread") == "end job"


@pytest.mark.parametrize(("rescheduled", "in_a_row"), [(MOST_RESCHEDULED, 0), (MOST_IN_A_ROW, MOST_IN_A_ROW)])
def test_no_flow_run_is_started_for_ever(rescheduled: int, in_a_row: int) -> None:
    for state, then in ((StateType.PENDING, "crash"), (StateType.RUNNING, "crash"), (StateType.CRASHED, "leave")):
        assert decide(state, age_s=OLD_S, job="over", journal="open", rescheduled=rescheduled, in_a_row=in_a_row) == then
        assert decide(state, age_s=OLD_S, job="over", journal="open", rescheduled=rescheduled - 1, in_a_row=max(0, in_a_row - 1)) == "reschedule"


def test_restarts_are_counted_by_the_states_of_the_flow_run() -> None:
    began = datetime(2026, 1, 1, tzinfo=UTC)
    made: list[State[object]] = [
        Pending(),
        Running(),
        AwaitingRetry(message=f"{RESCHEDULED} (7 NODE_FAIL)."),
        Running(),
        AwaitingRetry(message=f"{RESCHEDULED} (8 FAILED)."),
        Pending(),
        AwaitingRetry(message="Slurm does not answer"),
    ]
    history = [state.model_copy(update={"timestamp": began + timedelta(seconds=index)}) for index, state in enumerate(made)]
    assert times_rescheduled(history) == 2
    assert times_rescheduled(since_running(history[::-1])) == 1


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(open_storage(str(tmp_path)), "tiny-20260101t000000-0a1b")


@pytest.mark.parametrize(
    ("events", "says"),
    [
        ((), "open"),
        ((EventKind.RUN_STARTED,), "open"),
        ((EventKind.RUN_STARTED, EventKind.RUN_FINISHED), "finished"),
        ((EventKind.RUN_STARTED, EventKind.RUN_FAILED), "failed"),
        ((EventKind.RUN_STARTED, EventKind.RUN_GIVEN_UP), "stopped"),
        ((EventKind.RUN_STARTED, EventKind.RUN_GIVEN_UP, EventKind.RUN_RESUMED), "open"),
        ((EventKind.RUN_STARTED, EventKind.RUN_FAILED, EventKind.RUN_RESUMED), "open"),
        ((EventKind.RUN_STARTED, EventKind.RUN_FAILED, EventKind.RUN_RESUMED, EventKind.RUN_FINISHED), "finished"),
    ],
)
def test_a_journal_is_open_until_its_run_has_ended(run: Run, events: tuple[EventKind, ...], says: Journal) -> None:
    for kind in events:
        run.append(kind, figures={"exit_code": 3} if kind is EventKind.RUN_FAILED else {})
    assert journal_says(run, watch={}, now=0.0) == says


def test_a_flow_run_that_had_to_give_way_stops_nothing() -> None:
    """The flow run that came before it works on the same training."""
    assert decide(StateType.CANCELLED, age_s=OLD_S, job="over", journal="open", by_limit=True) == "leave"


@pytest.mark.parametrize("exit_code", [75, 130])
def test_an_interruption_is_told_from_a_wish(run: Run, exit_code: int) -> None:
    """A signal of Slurm's, or `headrace cancel`: both end the flow in order."""
    run.append(EventKind.RUN_STARTED)
    run.append(EventKind.RUN_FAILED, figures={"exit_code": exit_code})
    assert journal_says(run, watch={}, now=0.0) == "interrupted"
    run.ask_to_stop("by a person")
    assert journal_says(run, watch={}, now=0.0) == "stopped"
    run.append(EventKind.RUN_RESUMED)
    assert journal_says(run, watch={}, now=0.0) == "open"


def test_a_holder_that_renews_is_alive_and_a_silent_one_is_not(run: Run) -> None:
    run.append(EventKind.RUN_STARTED)
    watch: Watch = {}
    with Lease.take(run.storage, run.layout.control):
        for looks in range(5):
            assert journal_says(run, watch=watch, now=looks * PATIENCE_S / 4) == "held"
        assert journal_says(run, watch=watch, now=PATIENCE_S + 1) == "open", "no renewal was seen in that time"
        run.storage.create_exclusive(f"{run.layout.control}/000001.b000001.json", b'{"at": 1.0}')
        assert journal_says(run, watch=watch, now=PATIENCE_S + 2) == "held"
    assert journal_says(run, watch=watch, now=PATIENCE_S + 3) == "open", "given back"


def test_while_nobody_looks_no_silence_is_seen(run: Run) -> None:
    """Storage or the worker rested for an hour: the holder has its 10 s to the next renewal before that and after it."""
    run.append(EventKind.RUN_STARTED)
    watch: Watch = {}
    with Lease.take(run.storage, run.layout.control):
        for now in (0.0, 5.0, 10.0, 3610.0, 3615.0, 3620.0):
            assert journal_says(run, watch=watch, now=now) == "held"


def test_a_silent_holder_is_found_with_a_worker_s_usual_heartbeat(run: Run) -> None:
    run.append(EventKind.RUN_STARTED)
    watch: Watch = {}
    with Lease.take(run.storage, run.layout.control):
        assert [journal_says(run, watch=watch, now=now) for now in (0.0, 30.0, 60.0, 90.0)] == ["held", "held", "held", "open"]
