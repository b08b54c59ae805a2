"""Gangs of real processes under a real agent: what happens when ranks end in every way they can."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.attempt import newest_commit, read_exit
from cluster.logs import read_logs
from cluster.metrics import read_metrics
from schemas.attempt import Cause
from schemas.exit_code import ExitCode
from tests.fakes.job_request import LIMITS, gang_request
from tests.fakes.live_job import LiveJob, wait_until

pytestmark = pytest.mark.slow


@pytest.fixture
def gang(tmp_path: Path) -> Iterator[Callable[..., LiveJob]]:
    jobs: list[LiveJob] = []

    def make(**options: Any) -> LiveJob:
        ranks, num_nodes, changes = options.pop("ranks", 2), options.pop("num_nodes", 1), options.pop("changes", {})
        jobs.append(LiveJob(gang_request(tmp_path, ranks=ranks, num_nodes=num_nodes, options=options, **changes)))
        return jobs[-1]

    yield make
    for job in jobs:
        job.sweep()


def is_live(process: psutil.Process) -> bool:
    """Whether it runs: a process that nobody has waited for does not."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def fault(kind: str, *, rank: int = 1, step: int = 12, times: int = 1) -> dict[str, Any]:
    return {"rank": rank, "step": step, "kind": kind, "times": times}


def test_a_calm_gang_finishes_and_leaves_all_it_made(gang: Callable[..., LiveJob]) -> None:
    job = gang(steps=10)
    record = job.run()
    assert (record.exit_code, record.cause, record.incidents) == (ExitCode.DONE, Cause.FINISHED, ())
    assert newest_commit(job.storage, job.layout) == 10
    assert [point.step for point in read_metrics(job.storage, job.layout)] == list(range(1, 11))
    lines = [(line.rank, line.text) for line in read_logs(job.storage, job.attempt())]
    assert lines == [(rank, f"rank {rank} of 2 starts epoch 0 from -1") for rank in (0, 1)]
    wait_until(lambda: job.family() == [])
    assert list(Path(job.request.scratch_dir).iterdir()) == []


def test_a_rank_killed_while_it_compiles_leaves_no_lock_behind(gang: Callable[..., LiveJob], tmp_path: Path) -> None:
    """Row 43: torch's own lock would have every later start wait for ever."""
    folder = tmp_path / "extensions"
    job = gang(compiles=7, faults=[fault("compile", step=7)], changes={"env": {"TORCH_EXTENSIONS_DIR": str(folder)}})
    record = job.run()
    assert record.exit_code is ExitCode.DONE
    assert [incident.cause for incident in record.incidents] == [Cause.KILLED]
    assert list(folder.rglob("lock")) == []
    assert f"removed {folder}/fused/lock" in (Path(job.request.storage_root) / job.attempt().logs / "agent-n0000.log").read_text()


@pytest.mark.parametrize(
    ("kind", "cause", "status", "evidence"),
    [
        ("kill", Cause.KILLED, -signal.SIGKILL, "killed by SIGKILL"),
        ("segv", Cause.USER_CODE, -signal.SIGSEGV, 'gang_job.py", line'),
        ("raise", Cause.USER_CODE, 1, "ValueError: the data ran out of luck"),
    ],
)
def test_after_a_ranks_end_all_ranks_start_again(gang: Callable[..., LiveJob], kind: str, cause: Cause, status: int, evidence: str) -> None:
    job = gang(faults=[fault(kind)])
    record = job.run()
    assert record.exit_code is ExitCode.DONE
    [incident] = record.incidents
    assert (incident.rank, incident.cause, incident.exit_status, incident.decision) == (1, cause, status, "restart")
    assert any(evidence in line for line in incident.evidence)
    assert incident.committed_step == 10
    assert incident.recovered_after_s >= 0.0
    assert [point.step for point in read_metrics(job.storage, job.layout)] == list(range(1, 21))
    assert [point.epoch for point in read_metrics(job.storage, job.layout)][10:] == [1] * 10
    assert job.attempts == (0,)


def test_the_same_error_every_time_stops_by_policy_and_says_which(gang: Callable[..., LiveJob]) -> None:
    record = gang(faults=[fault("raise", times=99)]).run()
    assert record.exit_code is ExitCode.POLICY
    assert "rank 1: ValueError: the data ran out of luck" in record.message
    assert [incident.committed_step for incident in record.incidents] == [10, 10, 10, 10]
    assert record.incidents[-1].decision == "stop"


@pytest.mark.parametrize(
    ("kind", "code"),
    [("exit:2", ExitCode.USAGE), ("exit:3", ExitCode.DATA_VERDICT), ("exit:7", ExitCode.VERIFICATION), ("oom", ExitCode.OUT_OF_MEMORY)],
)
def test_what_no_restart_can_mend_stops_at_once(gang: Callable[..., LiveJob], kind: str, code: ExitCode) -> None:
    record = gang(faults=[fault(kind)]).run()
    assert record.exit_code is code
    assert len(record.incidents) == 1


def test_the_root_cause_is_named_not_its_echo(gang: Callable[..., LiveJob]) -> None:
    """Rank 0 loses its connection a moment before rank 1, the cause of it, has ended."""
    job = gang(faults=[fault("echo", rank=0, step=12), fault("raise-late", rank=1, step=12)])
    record = job.run()
    assert record.incidents[0].rank == 1
    assert record.incidents[0].cause is Cause.USER_CODE


def test_a_taken_rendezvous_port_costs_an_epoch_and_no_failure(gang: Callable[..., LiveJob]) -> None:
    record = gang(faults=[fault("port", step=1)]).run()
    assert record.exit_code is ExitCode.DONE
    assert record.incidents[0].cause is Cause.NODE


def test_a_second_kill_while_recovering(gang: Callable[..., LiveJob]) -> None:
    record = gang(faults=[fault("kill", step=12), fault("kill", step=11)]).run()
    assert record.exit_code is ExitCode.DONE
    assert len(record.incidents) == 2


def test_a_killed_zygote_costs_a_restart(gang: Callable[..., LiveJob]) -> None:
    job = gang().lasting()

    def kill_zygote() -> None:
        [agent] = job.agents()
        [zygote] = agent.children()
        zygote.kill()
        job.when(lambda view: view.epoch == 1, job.let_go)

    job.when(lambda view: view.step >= 5, kill_zygote)
    record = job.run()
    assert record.exit_code is ExitCode.DONE
    assert record.incidents[0].cause is Cause.KILLED
    assert "zygote" in record.incidents[0].evidence[0]


def test_a_killed_agent_leaves_no_orphan_and_a_new_attempt_goes_on(gang: Callable[..., LiveJob]) -> None:
    job = gang().lasting()
    family: list[psutil.Process] = []

    def kill_agent() -> None:
        family.extend(job.family())
        job.agents()[0].kill()

    job.when(lambda view: view.committed_step >= 10, kill_agent)
    record = job.run()
    assert len(family) == 4
    assert record.exit_code is ExitCode.DONE
    assert job.attempts == (0, 1)
    first = read_exit(job.storage, job.attempt(0))
    assert first is not None
    assert (first.cause, first.exit_code) == (Cause.KILLED, ExitCode.INTERRUPTED)
    wait_until(lambda: not any(is_live(process) for process in family))
    starts = [line.text for line in read_logs(job.storage, job.attempt(1), rank=0)]
    assert starts[0].startswith("rank 0 of 2 starts epoch 1 from ")
    assert starts[0] != "rank 0 of 2 starts epoch 1 from -1"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_preempted_agent_lets_ranks_commit_and_the_next_attempt_goes_on(gang: Callable[..., LiveJob], number: signal.Signals) -> None:
    job = gang().lasting()
    job.when(lambda view: view.step >= 5, lambda: os.kill(job.agents()[0].pid, number))
    record = job.run()
    first = read_exit(job.storage, job.attempt(0))
    assert first is not None
    assert (first.exit_code, first.cause) == (ExitCode.INTERRUPTED, Cause.PREEMPTION)
    (incident,) = first.incidents
    assert incident.committed_step >= incident.step > 0
    assert incident.decision == "stop"
    assert number.name in first.message
    assert (record.exit_code, job.attempts) == (ExitCode.DONE, (0, 1))
    starts = [line.text for line in read_logs(job.storage, job.attempt(1), rank=0)]
    assert starts[0] == f"rank 0 of 2 starts epoch 1 from {incident.committed_step}"
    wait_until(lambda: job.family() == [])


def test_a_cancelled_job_is_not_taken_for_a_preempted_one(gang: Callable[..., LiveJob]) -> None:
    job = gang().lasting()
    wished: list[bool] = []
    job.when(lambda view: view.step >= 5, lambda: wished.append(True))
    record = job.run(stop_requested=lambda: bool(wished))
    assert (record.exit_code, record.cause) == (ExitCode.INTERRUPTED, Cause.CANCELLED)
    assert newest_commit(job.storage, job.layout) >= 5
    assert job.attempts == (0,)
    wait_until(lambda: job.family() == [])


def test_ranks_that_are_asked_by_a_signal_of_their_own_commit_and_the_next_attempt_goes_on(gang: Callable[..., LiveJob]) -> None:
    job = gang().lasting()

    def ask_all() -> None:
        pids = [job.rank_pid(rank) for rank in (0, 1)]
        os.kill(pids[0], signal.SIGTERM)
        with contextlib.suppress(ProcessLookupError):  # one that is asked takes the other along, perhaps before that is asked
            os.kill(pids[1], signal.SIGTERM)

    job.when(lambda view: view.step >= 5, ask_all)
    record = job.run()
    first = read_exit(job.storage, job.attempt(0))
    assert first is not None
    assert (first.exit_code, first.cause) == (ExitCode.INTERRUPTED, Cause.PREEMPTION)
    assert (record.exit_code, job.attempts) == (ExitCode.DONE, (0, 1))


def test_ranks_are_asked_to_stop_before_their_allocation_ends_and_the_chain_goes_on_by_itself(gang: Callable[..., LiveJob]) -> None:
    """The work needs more than what one allocation leaves for it; none of them uses up the budget of interruptions, which is empty."""
    limits = LIMITS.model_copy(update={"max_interruptions": 0})
    times = {"time_limit_s": 28.5, "grace_s": 2.0}  # asked after 17.5 s; a busy disk takes longer than half a second for a commit
    job = gang(steps=450, step_s=0.05, changes={**times, "limits": limits})
    record = job.run()
    assert record.exit_code is ExitCode.DONE
    assert len(job.attempts) > 1
    for number in job.attempts[:-1]:
        ended = read_exit(job.storage, job.attempt(number))
        assert ended is not None
        assert (ended.exit_code, ended.cause) == (ExitCode.INTERRUPTED, Cause.TIME_LIMIT)
        assert ended.incidents[-1].committed_step >= ended.incidents[-1].step > 0
    wait_until(lambda: job.family() == [])


def test_a_wish_to_stop_ends_ranks_that_do_not_listen_after_the_grace(gang: Callable[..., LiveJob]) -> None:
    job = gang(steps=400, faults=[fault("hang", step=3)], changes={"grace_s": 0.5})
    wished: list[bool] = []
    job.when(lambda view: view.step >= 2, lambda: wished.append(True))
    record = job.run(stop_requested=lambda: bool(wished))
    assert (record.exit_code, record.cause) == (ExitCode.INTERRUPTED, Cause.CANCELLED)
    wait_until(lambda: job.family() == [])


def test_two_nodes_restart_together_and_name_the_rank(gang: Callable[..., LiveJob]) -> None:
    job = gang(num_nodes=2, ranks=1, steps=60, faults=[fault("raise", rank=1, step=30)])
    record = job.run()
    assert record.exit_code is ExitCode.DONE
    assert (record.incidents[0].rank, record.incidents[0].cause) == (1, Cause.USER_CODE)
    assert record.incidents[0].recovered_after_s >= 0.0
    wait_until(lambda: job.family() == [])  # node 1 publishes its last lines while node 0 leaves the exit record
    assert {(line.epoch, line.rank) for line in read_logs(job.storage, job.attempt())} == {(0, 0), (0, 1), (1, 0), (1, 1)}


@pytest.mark.parametrize("victim", [0, 1])
def test_a_lost_node_ends_the_attempt_and_the_next_goes_on(gang: Callable[..., LiveJob], victim: int) -> None:
    """Node 0's agent is known to be dead from the process table; node 1's is missed by node 0 after a while of silence."""
    job = gang(num_nodes=2, ranks=1, changes={"lost_after_s": 10.0}).lasting()

    def kill_agent() -> None:
        agents = {agent.cmdline()[agent.cmdline().index("--node-rank") + 1]: agent for agent in job.agents()}
        agents[str(victim)].kill()

    job.when(lambda view: view.committed_step >= 10, kill_agent)
    record = job.run()
    assert record.exit_code is ExitCode.DONE
    assert job.attempts == (0, 1)
    first = read_exit(job.storage, job.attempt(0))
    assert first is not None
    assert first.cause is (Cause.KILLED if victim == 0 else Cause.NODE)
    wait_until(lambda: job.family() == [])
