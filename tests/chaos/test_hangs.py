"""Ranks that neither end nor go on, and ranks that are slow, with the real engine (rows 4, 5 and 13 of the fault matrix)."""

import signal
import time
from collections.abc import Callable

import psutil
import pytest

from cluster.attempt import read_notices
from schemas.attempt import Cause, Incident
from schemas.exit_code import ExitCode
from schemas.progress import NoticeKind
from tests.chaos.conftest import MakeTraining
from tests.chaos.injector import Faults, Point
from tests.chaos.live_training import LiveTraining
from tests.fakes.live_job import wait_until

pytestmark = pytest.mark.slow

IN_TIME_S = 30.0
"""A hang is found in 5 s (`make bench NAME=hang`), on a machine that is busy with other things later; the ranks' own time-outs are 120 s."""


def stopped_ranks(training: LiveTraining) -> list[psutil.Process]:
    return [process for process in training.processes() if _is_stopped(process)]


def _is_stopped(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_STOPPED)
    except psutil.NoSuchProcess:  # it ended since it was listed
        return False


def stacks(training: LiveTraining, incident: Incident, rank: int) -> str:
    return training.storage.read(training.layout.attempt("", 0).stack(epoch=incident.epoch, rank=rank)).decode()


def wake_soon(training: LiveTraining) -> Callable[[], None]:
    def wake() -> None:
        stopped = list[psutil.Process]()
        wait_until(lambda: bool(stopped.extend(stopped_ranks(training)) or stopped))
        time.sleep(0.5)
        for process in stopped:  # well before it would be taken for hanging, on a busy machine, too
            process.send_signal(signal.SIGCONT)

    return wake


def test_a_stopped_rank_and_one_that_holds_the_gil_are_found_named_and_replaced(make_training: MakeTraining, calm_hash: str) -> None:
    """Rows 4 and 5. One that goes on in time is left alone."""
    training = make_training()
    training.paced = False
    faults = Faults().stop(rank=0, at_step=6).stop(rank=1, at_step=17, point=Point.FORWARD).hold_gil(rank=0, at_step=33)
    with training.meanwhile({0: wake_soon(training)}):
        draft = training.run(faults)
    assert draft.content_hash == calm_hash
    assert training.exit_record().exit_code is ExitCode.DONE
    assert training.attempts == (0,), "all within one job"
    stopped, held = training.incidents()
    assert [(one.cause, one.rank, one.exit_status, one.decision) for one in (stopped, held)] == [
        (Cause.HANG, 1, -signal.SIGKILL, "restart"),
        (Cause.HANG, 0, -signal.SIGKILL, "restart"),
    ]
    for incident, struck_at in zip((stopped, held), training.struck.times()[1:], strict=True):
        assert incident.at - struck_at <= IN_TIME_S
        assert incident.detected_after_s <= IN_TIME_S
        assert incident.recovered_after_s > 0
        assert any(line.startswith(("Injector._strike (", "_strike (")) for line in incident.evidence), "where it hangs"
        assert "/torch/distributed/" in stacks(training, incident, 1 - incident.rank), "the other one waits for it"
    assert "rank 1: silent for" in stopped.evidence[0]
    assert "in step 17, after data; its process is stopped" in stopped.evidence[0]
    assert "in step 33, at its beginning; its process is sleeping" in held.evidence[0]


@pytest.mark.exhaustive
def test_ranks_at_one_place_are_told_apart_by_their_stacks(make_training: MakeTraining) -> None:
    """Both have finished the forward pass; one waits in a collective of the backward pass, and one for itself."""
    training = make_training(training__steps=12, training__zero_stage=3)
    training.paced = False
    training.run(Faults().pause(rank=0, at_step=7, point=Point.BACKWARD))
    (incident,) = training.incidents()
    assert (incident.cause, incident.rank) == (Cause.HANG, 0)
    assert all("in step 7, after forward" in line for line in incident.evidence[:2])


def test_a_rank_that_is_slow_is_told_and_not_replaced(make_training: MakeTraining) -> None:
    """Row 13."""
    training = make_training(training__steps=120, checkpoint__every_steps=120)
    training.paced = False
    training.run(Faults().slow_steps(rank=1, seconds=0.1))
    assert training.incidents() == []
    notices = [notice for notice in read_notices(training.storage, training.layout.attempt("", 0)) if notice.kind is NoticeKind.STRAGGLER]
    assert notices
    assert {notice.rank for notice in notices} == {1}
    assert notices[0].figures["factor"] >= 1.5
    assert notices[0].message.startswith("rank 1 is slow, mostly in ")
