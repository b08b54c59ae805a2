"""Processes that die, crash, refuse and run out of memory, with the real engine (rows 1-3 and 6-11 of the fault matrix).

Each test asserts what came of it, what the incidents say (what, who, when, what was done), the exit code, and that the final state is
bit for bit that of a training to which nothing happened.
"""

import contextlib
import signal

import psutil
import pytest

from schemas.attempt import Cause
from schemas.errors import OutOfMemoryError, PolicyStopError
from schemas.exit_code import ExitCode
from tests.chaos.conftest import MakeTraining
from tests.chaos.injector import Faults, Point
from tests.fakes.shared_memory import left_since, shared_memory

pytestmark = pytest.mark.slow

EVERY = 5
"""Steps between checkpoints of these trainings."""
COMMIT_TAKES = 2
"""Updates that pass until a checkpoint is committed: its shares are durable at one, the ranks hear of the commit at the next."""
PEERS_WAIT_S = 2.0
"""Far longer than a strike takes, on a busy machine, too; they are killed before it is over."""


def test_a_rank_killed_anywhere_in_a_step_costs_at_most_one_interval(make_training: MakeTraining, calm_hash: str) -> None:
    """Rows 1 and 2."""
    training = make_training()
    faults = (
        Faults()
        .kill(rank=1, at_step=3)
        .kill(rank=0, at_step=7, point=Point.FORWARD)
        .kill(rank=1, at_step=12, point=Point.BACKWARD)
        .kill_inside(rank=0, at_step=18, point=Point.REDUCE, after_s=0.02, peers_wait_s=PEERS_WAIT_S)
        .kill_inside(rank=1, at_step=23, point=Point.STEP, after_s=0.02, peers_wait_s=PEERS_WAIT_S)
        .kill(rank=0, at_step=30, point=Point.SAVE)
        .kill_inside(rank=1, at_step=35, point=Point.SAVE, after_s=0.002, peers_wait_s=PEERS_WAIT_S)
    )
    draft = training.run(faults)
    assert draft.content_hash == calm_hash
    assert training.exit_record().exit_code is ExitCode.DONE
    incidents = training.incidents()
    assert [incident.rank for incident in incidents] == [1, 0, 1, 0, 1, 0, 1]
    assert {(incident.cause, incident.exit_status, incident.decision) for incident in incidents} == {(Cause.KILLED, -signal.SIGKILL, "restart")}
    assert [incident.step for incident in incidents[:5]] == [3, 7, 12, 18, 23]
    # a checkpoint is begun between two steps: whether a rank has said that the next one begins before the gang is killed depends on who is faster
    assert [incident.step in (saved - 1, saved) for incident, saved in zip(incidents[5:], (30, 35), strict=True)] == [True, True]
    for incident, struck_at in zip(incidents, training.struck.times(), strict=True):
        assert incident.step - max(0, incident.committed_step) <= EVERY + COMMIT_TAKES
        assert struck_at <= incident.at + 0.1
        assert incident.recovered_after_s > 0
        assert "killed by SIGKILL" in incident.evidence
    assert training.attempts == (0,), "all within one job"


def test_processes_that_waited_take_over_as_forks_do(make_training: MakeTraining, calm_hash: str) -> None:
    """Row 1 with spare processes, as jobs with GPUs have them."""
    training = make_training(cluster__standby=True)
    assert training.run(Faults().kill(rank=1, at_step=12).kill(rank=0, at_step=27)).content_hash == calm_hash
    assert [(incident.rank, incident.cause, incident.decision) for incident in training.incidents()] == [
        (1, Cause.KILLED, "restart"),
        (0, Cause.KILLED, "restart"),
    ]
    assert (training.spec().standby, training.attempts) == (True, (0,))


def test_crashes_keep_their_stack_and_the_first_cause_is_named(make_training: MakeTraining, calm_hash: str) -> None:
    """Rows 3 and 6: peers die of the lost connection a moment later, and are not taken for the cause."""
    training = make_training()
    faults = Faults().segv(rank=0, at_step=7).abort(rank=1, at_step=13).raises(rank=1, at_step=22, point=Point.BACKWARD, message="luck ran out")
    assert training.run(faults).content_hash == calm_hash
    assert training.exit_record().exit_code is ExitCode.DONE
    segv, abort, raised = training.incidents()
    assert [(one.cause, one.rank, one.step, one.decision) for one in (segv, abort, raised)] == [
        (Cause.USER_CODE, 0, 7, "restart"),
        (Cause.USER_CODE, 1, 13, "restart"),
        (Cause.USER_CODE, 1, 22, "restart"),
    ]
    assert (segv.exit_status, abort.exit_status, raised.exit_status) == (-signal.SIGSEGV, -signal.SIGABRT, ExitCode.BUG)
    for incident in (segv, abort):
        assert any('loop.py", line' in line for line in incident.evidence), "the stack is kept"
    assert "RuntimeError: luck ran out" in raised.evidence
    assert "Fatal Python error: Segmentation fault" in training.log()


def test_the_same_error_every_time_stops_with_a_verdict(make_training: MakeTraining) -> None:
    """Row 7."""
    training = make_training()
    error = training.error(Faults().raises(rank=1, at_step=12, message="always here", times=0))
    assert isinstance(error, PolicyStopError)
    assert error.exit_code is ExitCode.POLICY
    assert "rank 1: RuntimeError: always here" in str(error)
    assert "3 starts in a row brought nothing new" in str(error)
    assert training.exit_record().exit_code is ExitCode.POLICY
    assert [incident.committed_step for incident in training.incidents()] == [10, 10, 10, 10]
    assert [incident.decision for incident in training.incidents()] == ["restart", "restart", "restart", "stop"]
    assert training.commits()[-1] == 10, "what is committed stays"


def test_out_of_memory_is_told_from_a_crash_and_not_tried_again(make_training: MakeTraining) -> None:
    """Row 8."""
    training = make_training()
    error = training.error(Faults().oom(rank=0, at_step=6))
    assert isinstance(error, OutOfMemoryError)
    (incident,) = training.incidents()
    assert (incident.cause, incident.rank, incident.decision) == (Cause.OUT_OF_MEMORY, 0, "stop")
    assert any("not enough memory" in line or "can't allocate memory" in line for line in incident.evidence)
    assert training.exit_record().exit_code is ExitCode.OUT_OF_MEMORY


def test_zygote_and_agent_may_die_and_nothing_is_orphaned(make_training: MakeTraining, calm_hash: str) -> None:
    """Row 9; the flow's own process is killed in `test_kills.py`."""
    training = make_training()
    before = shared_memory()
    faults = Faults().hold(rank=0, at_step=7).hold(rank=1, at_step=18)
    with training.meanwhile({0: training.kill_zygote, 1: lambda: training.agents()[0].kill()}):
        draft = training.run(faults)
    assert draft.content_hash == calm_hash
    zygote, agent = training.incidents()
    assert (zygote.cause, zygote.rank, zygote.step, zygote.decision) == (Cause.KILLED, -1, 7, "restart")
    assert any("the zygote ended" in line for line in zygote.evidence)
    assert (agent.cause, agent.rank) == (Cause.KILLED, -1)
    assert training.verdicts()[0] == "restart", "a dead agent's job is followed by another"
    assert [training.exit_record(attempt).exit_code for attempt in training.attempts] == [ExitCode.INTERRUPTED, ExitCode.DONE]
    assert training.processes() == []
    assert left_since(before) == frozenset()


def test_a_scheduler_that_takes_the_node_away_costs_no_step(make_training: MakeTraining, calm_hash: str) -> None:
    """Row 10: SIGTERM, and half a minute until the node is gone: what a commit may take on a slow disk."""
    training = make_training()
    training.job_changes = {"grace_s": 30.0}
    with training.meanwhile({0: lambda: training.agents()[0].send_signal(signal.SIGTERM)}):
        faults = Faults().hold(rank=1, at_step=12).slow_steps(seconds=0.05)  # else the last one may be made before the agent has told the ranks
        assert training.run(faults).content_hash == calm_hash
    first, second = (training.exit_record(attempt) for attempt in training.attempts)
    assert (first.exit_code, first.cause) == (ExitCode.INTERRUPTED, Cause.PREEMPTION)
    assert second.exit_code is ExitCode.DONE
    (incident,) = training.incidents()
    assert (incident.cause, incident.evidence, incident.step) == (Cause.PREEMPTION, ("stopped by SIGTERM",), incident.committed_step)
    assert incident.committed_step >= 12
    assert training.first_steps()[1] == incident.committed_step + 1
    assert training.verdicts()[0] == "restart"


def test_a_second_kill_while_recovering_changes_nothing(make_training: MakeTraining, calm_hash: str) -> None:
    """Row 11: the next start is killed as it begins, 0.1 s into it, and while it loads the checkpoint."""
    training = make_training(restart__max_attempts_without_progress=10)
    faults = (
        Faults()
        .kill(rank=1, at_step=12)
        .second_kill(rank=0, after_s=0.0)
        .second_kill(rank=1, after_s=0.1)
        .second_kill(rank=0, after_s=0.0, point=Point.LOAD)
    )
    assert training.run(faults).content_hash == calm_hash
    assert [(one.cause, one.rank, one.decision) for one in training.incidents()] == [(Cause.KILLED, rank, "restart") for rank in (1, 0, 1, 0)]
    assert training.exit_record().exit_code is ExitCode.DONE


@pytest.mark.exhaustive
@pytest.mark.parametrize("node", [0, 1])
def test_a_node_that_vanishes_is_replaced(make_training: MakeTraining, calm_hash: str, node: int) -> None:
    """Row 12: its whole process tree is gone at once; the next attempt goes on from the newest commit."""
    training = make_training(cluster__nodes=2, cluster__ranks_per_node=1, cluster__lost_after_s=15.0)

    def drop_node() -> None:
        agent = training.agents()[node]
        for process in (*agent.children(recursive=True), agent):
            with contextlib.suppress(psutil.NoSuchProcess):  # ranks die with their zygote, and may be gone before it is their turn
                process.kill()

    with training.meanwhile({0: drop_node}):
        faults = Faults().hold(rank=1, at_step=12).slow_steps(seconds=0.05)  # else the last one may be made before the agent has told the ranks
        assert training.run(faults).content_hash == calm_hash
    first, second = (training.exit_record(attempt) for attempt in training.attempts)
    assert (first.exit_code, second.exit_code) == (ExitCode.INTERRUPTED, ExitCode.DONE)
    incidents = training.incidents()  # the other node may first hear of a lost connection, and start its rank again in vain
    assert {incident.cause for incident in incidents} <= {Cause.NODE, Cause.KILLED}
    assert {incident.committed_step for incident in incidents} == {10}
    assert training.verdicts()[0] == "restart"
    assert training.first_steps()[second.epoch] == 11
