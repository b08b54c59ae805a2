"""A node is taken away with a word of warning, at bad moments. What is committed by then must be what the next attempt goes on from."""

import signal

import psutil
import pytest

from cluster.deadline import SAVE_FIGURE, STEP_FIGURE
from cluster.job_view import JobView
from schemas.attempt import Cause
from schemas.exit_code import ExitCode
from schemas.ledger import Spent
from tasks.train.bookkeeping import read_ledger
from tests.chaos.conftest import MakeTraining
from tests.chaos.injector import Faults, Point
from tests.fakes.live_job import wait_until

pytestmark = pytest.mark.slow

GRACE_S = 5.0


def has_ended(process: psutil.Process) -> bool:
    """Whether a process has ended, be it while it is asked."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_while_ranks_start_nothing_is_lost_and_nobody_waits(make_training: MakeTraining, calm_hash: str) -> None:
    """One rank has not begun to listen, the other waits for it at the rendezvous: neither can commit anything."""
    training = make_training()
    training.job_changes = {"grace_s": GRACE_S}

    def preempt() -> None:
        (agent,) = training.agents()
        agent.send_signal(signal.SIGTERM)
        wait_until(lambda: has_ended(agent))  # the rank is held back until then

    with training.meanwhile({0: preempt}):
        assert training.run(Faults().hold(rank=0, at_step=-1, point=Point.START)).content_hash == calm_hash
    first = training.exit_record(0)
    assert (first.exit_code, first.cause) == (ExitCode.INTERRUPTED, Cause.PREEMPTION)
    assert [incident.committed_step for incident in first.incidents] == [-1]
    assert training.verdicts()[0] == "restart"
    assert training.first_steps() == {1: 1}
    ledger = read_ledger(training.storage, training.layout, now=0.0)
    assert ledger is not None
    assert (ledger.steps, ledger.steps_redone, ledger.restarts, ledger.attempts) == (40, 0, 1, 2)
    assert (ledger.seconds[Spent.REDONE], ledger.away_s) == (0.0, 0.0)


def test_while_a_checkpoint_is_on_its_way_both_are_committed(make_training: MakeTraining, calm_hash: str) -> None:
    """The checkpoint of step 5 is stuck in a slow file system when the signal comes, in step 7."""
    training = make_training()
    training.paced, training.job_changes = False, {"grace_s": 30.0}
    faults = Faults().hold(rank=0, at_step=7).slow_fs(rank=0, path="step-00000005", seconds=2.0)
    faults = faults.slow_steps(seconds=0.05)  # else the last one may be made before the agent has looked up and told the ranks
    with training.meanwhile({0: lambda: training.agents()[0].send_signal(signal.SIGUSR1)}):
        assert training.run(faults).content_hash == calm_hash
    first = training.exit_record(0)
    assert (first.exit_code, first.cause) == (ExitCode.INTERRUPTED, Cause.PREEMPTION)
    (incident,) = first.incidents
    assert incident.step == incident.committed_step >= 7
    assert training.struck.count(1) == 1, "the file system was slow in time"
    assert training.first_steps() == {0: 1, 1: incident.step + 1}


def test_a_signal_to_the_ranks_alone_stops_them_together(make_training: MakeTraining, calm_hash: str) -> None:
    """A scheduler that signals every process of a job, but for the agent: one rank hears of it, all commit the same step."""
    training, told = make_training(), set[str]()

    def listen(view: JobView) -> None:
        told.update(name for beat in view.heartbeats for rank in beat.ranks for name in rank.figures)

    def signal_rank_1() -> None:
        wait_until(lambda: {SAVE_FIGURE, STEP_FIGURE} <= told)  # what an agent reckons with when its allocation ends
        (rank,) = [child for child in training.zygote().children() if child.name() == "rank 1"]
        rank.send_signal(signal.SIGTERM)

    training.on_view = listen
    with training.meanwhile({0: signal_rank_1}):
        assert training.run(Faults().slow_steps(seconds=0.6)).content_hash == calm_hash  # as long as what a rank says is not held back
    first = training.exit_record(0)
    assert (first.exit_code, first.cause) == (ExitCode.INTERRUPTED, Cause.PREEMPTION)
    assert [incident.step == incident.committed_step for incident in first.incidents] == [True]
