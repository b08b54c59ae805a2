"""What happens to nodes and to the controller: whatever it is, one job takes effect."""

import threading
import time
from typing import Any

import pytest

from cluster.attempt import read_heartbeats, read_verdict
from cluster.closing import close
from schemas.attempt import AttemptVerdict, Cause
from schemas.canonical import canonical_json
from schemas.progress import Heartbeat
from tests.chaos.slurm_trouble import (
    CPU,
    SAVED_AFTER_S,
    MakeJob,
    after,
    is_pending,
    partition_down,
    record_of,
    slurm,
    went_through,
    works,
)
from tests.fakes.live_job import LiveJob, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.slurm, pytest.mark.usefixtures("cluster")]

exhaustive = pytest.mark.exhaustive


def lose_node(job: LiveJob, cluster: Any, node_rank: int, *, tell_slurm: bool) -> str:
    host = next(beat.host for beat in read_heartbeats(job.storage, job.attempt()) if beat.node_rank == node_rank)
    cluster.kill(host)
    if tell_slurm:  # what it finds out by itself after its SlurmdTimeout
        slurm("scontrol", "update", f"NodeName={host}", "State=DOWN", "Reason=test")
    return host


@pytest.mark.parametrize(
    ("node_rank", "tell_slurm"),
    [(0, True), *(pytest.param(*case, marks=exhaustive) for case in [(1, True), (0, False), (1, False)])],
)
def test_after_a_node_has_lost_power_the_next_attempt_runs_on_those_that_are_left(
    make_job: MakeJob, cluster: Any, node_rank: int, tell_slurm: bool
) -> None:
    job, lost = make_job(num_nodes=2, ranks=1, lost_after_s=60.0, grace_s=1.0).lasting(), []
    job.when(works, lambda: lost.append(lose_node(job, cluster, node_rank, tell_slurm=tell_slurm)))
    went_through(job, job.run(), attempts=[0, 1])
    causes = {incident.cause for incident in record_of(job, 0).incidents}
    assert Cause.HANG not in causes, "ranks that wait for those of a lost node do not hang"
    assert lost[0] not in {beat.host for beat in read_heartbeats(job.storage, job.attempt(1))}
    verdict = read_verdict(job.storage, job.attempt(0))
    assert verdict is not None
    assert verdict.reason.startswith("node: restart")


@exhaustive
def test_ranks_that_wait_for_those_of_a_lost_node_do_not_hang(make_job: MakeJob, cluster: Any) -> None:
    """They are where the lost ones were when these gave their last sign, and wait for longer than a hang takes until Slurm knows of the loss."""
    options = {"steps": 5, "step_s": 3.0, "later_step_s": 0.1, "commit_every": 1, "meet_in_part": True}
    job = make_job(num_nodes=2, ranks=1, options=options, lost_after_s=60.0, grace_s=1.0).lasting()
    job.when(lambda view: view.committed_step >= 2, lambda: job.when(after(1.5), lambda: lose_node(job, cluster, 1, tell_slurm=False)))
    went_through(job, job.run(), attempts=[0, 1])
    assert Cause.HANG not in {incident.cause for incident in record_of(job, 0).incidents}


def test_a_controller_that_dies_and_comes_back_does_not_touch_a_running_job(make_job: MakeJob, cluster: Any) -> None:
    job = make_job().lasting()

    def kill() -> None:
        cluster.kill("slurmctld")
        job.when(after(1.0), lambda: (cluster.start("slurmctld"), job.let_go()))

    job.when(works, lambda: job.when(after(SAVED_AFTER_S), kill))
    went_through(job, job.run(), attempts=[0])
    assert record_of(job, 0).incidents == ()


@exhaustive
def test_a_job_ends_without_the_controller(make_job: MakeJob, cluster: Any) -> None:
    job = make_job().lasting()
    job.when(works, lambda: job.when(after(SAVED_AFTER_S), lambda: (cluster.kill("slurmctld"), job.let_go())))
    record = job.run()
    cluster.start("slurmctld")
    wait_until(cluster.healthy)
    went_through(job, record, attempts=[0])


@exhaustive
def test_a_submission_waits_for_the_controller(make_job: MakeJob, cluster: Any) -> None:
    job = make_job(lost_after_s=60.0)
    cluster.kill("slurmctld")
    back = threading.Timer(5.0, cluster.start, ["slurmctld"])
    back.start()
    record = job.run()
    back.join()
    went_through(job, record, attempts=[0])


@exhaustive
def test_a_controller_that_forgets_a_job_costs_one_attempt(make_job: MakeJob, cluster: Any) -> None:
    """What was submitted in the last seconds before its death it does not know afterwards."""
    job = make_job(cluster=CPU)

    def forget() -> None:
        cluster.kill("slurmctld")
        for path in (cluster.folder / "state").glob("job*"):
            path.unlink()
        cluster.start("slurmctld")
        wait_until(cluster.healthy)

    with partition_down("cpu"):  # which the controller forgets, too
        job.when(is_pending, forget)
        record = job.run()
    went_through(job, record, attempts=[1])


def lost_before(job: LiveJob, host: str, *, attempt: int) -> None:
    """An attempt that is over because its node was lost."""
    layout, key = job.attempt(attempt), f"past-{attempt}"
    spec = job.request.model_copy(update={"attempt": attempt, "key": key})
    beat = Heartbeat(key=key, node_rank=0, host=host, agent_pid=1, epoch=-1, sequence=0, at=time.time(), ranks=())
    job.storage.create_exclusive(layout.spec, canonical_json(spec))
    job.storage.create_exclusive(layout.heartbeat(0, 0), canonical_json(beat))
    close(job.storage, spec, cause=Cause.NODE, evidence=("lost",))
    job.storage.create_exclusive(layout.verdict, canonical_json(AttemptVerdict(decision="restart", reason="lost", at=time.time())))


@pytest.mark.parametrize(("num_nodes", "hosts"), [(2, {"node2", "node3"}), (3, {"node1", "node2", "node3"})], ids=["enough others", "too few others"])
def test_a_node_that_was_lost_twice_is_avoided_where_there_are_others(make_job: MakeJob, num_nodes: int, hosts: set[str]) -> None:
    job = make_job(num_nodes=num_nodes, ranks=1, options={"steps": 5}, lost_after_s=60.0)
    for attempt in range(2):
        lost_before(job, "node1", attempt=attempt)
    record = job.run()
    assert {beat.host for beat in read_heartbeats(job.storage, job.attempt(2))} == hosts
    went_through(job, record, attempts=[2])
