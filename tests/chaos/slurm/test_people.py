"""What people do to jobs: cancel, requeue, hold, suspend."""

import contextlib

import psutil
import pytest

from cluster.attempt import newest_commit, read_verdict
from schemas.attempt import Cause
from schemas.exit_code import ExitCode
from tests.chaos.slurm_trouble import (
    CPU,
    LOST_AFTER_S,
    MakeJob,
    after,
    is_pending,
    job_ids,
    leaves_nothing,
    partition_down,
    slurm,
    starts,
    went_through,
    works,
)
from tests.fakes.live_job import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.slurm, pytest.mark.usefixtures("cluster")]

exhaustive = pytest.mark.exhaustive


@pytest.mark.parametrize("num_nodes", [1, pytest.param(2, marks=exhaustive)])
def test_who_cancels_a_running_job_wants_it_to_end(make_job: MakeJob, num_nodes: int) -> None:
    job = make_job(num_nodes=num_nodes, ranks=1, lost_after_s=60.0).lasting()
    job.when(works, lambda: slurm("scancel", *job_ids(job)))
    record = job.run()
    assert record.exit_code is ExitCode.INTERRUPTED
    assert "cancelled" in record.message
    assert job.attempts == (0,)
    verdict = read_verdict(job.storage, job.attempt(0))
    assert verdict is not None
    assert verdict.decision == "stop"
    wait_until(lambda: leaves_nothing(job))
    went_through(job, job.run(), attempts=[0, 1])


def test_who_cancels_a_waiting_job_wants_it_to_end(make_job: MakeJob) -> None:
    job = make_job(cluster=CPU)
    with partition_down("cpu"):
        job.when(is_pending, lambda: slurm("scancel", *job_ids(job)))
        record = job.run()
    assert (record.exit_code, record.cause) == (ExitCode.INTERRUPTED, Cause.CANCELLED)
    assert job.attempts == (0,)
    assert starts(job) == []


@exhaustive
def test_a_cancelled_job_whose_agents_had_no_time_for_a_word_is_known_by_slurm(make_job: MakeJob) -> None:
    job, family = make_job(num_nodes=2, ranks=1, options={"step_s": 3.0, "commit_every": 1}, lost_after_s=60.0), list[psutil.Process]()

    def look() -> None:
        family.extend(job.family())  # looked for beforehand: a rank that has heard needs no longer than the rest of its step
        (job_id,), seen = job_ids(job), newest_commit(job.storage, job.layout)
        job.when(lambda _view: newest_commit(job.storage, job.layout) > seen, lambda: cancel(job_id))  # a step has just begun

    def cancel(job_id: str) -> None:
        slurm("scancel", job_id)
        for process in family:  # as Slurm does itself after its KillWait
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    job.when(lambda view: view.committed_step >= 1, look)
    record = job.run()
    assert (record.exit_code, record.cause) == (ExitCode.INTERRUPTED, Cause.CANCELLED)
    assert job.attempts == (0,)
    wait_until(lambda: leaves_nothing(job))


def test_slurm_does_not_start_a_job_again_by_itself(make_job: MakeJob) -> None:
    job = make_job().lasting()

    def requeue() -> None:
        with pytest.raises(AssertionError, match="disabled"):
            slurm("scontrol", "requeue", *job_ids(job))
        job.let_go()

    job.when(works, requeue)
    went_through(job, job.run(), attempts=[0])


@exhaustive
def test_a_job_that_is_put_back_into_the_queue_by_force_is_continued_by_a_new_attempt(make_job: MakeJob) -> None:
    job = make_job().lasting()

    def requeue() -> None:
        (job_id,) = job_ids(job)
        slurm("scontrol", "update", f"JobId={job_id}", "Requeue=1")
        slurm("scontrol", "requeue", job_id)

    job.when(works, requeue)
    went_through(job, job.run(), attempts=[0, 1])


@exhaustive
def test_a_job_on_hold_is_waited_for(make_job: MakeJob) -> None:
    job = make_job(cluster=CPU)

    def hold() -> None:
        slurm("scontrol", "hold", *job_ids(job))
        slurm("scontrol", "update", "PartitionName=cpu", "State=UP")
        job.when(lambda view: view.job is not None and "Held" in view.job.told, wait_longer_than_lost)

    def wait_longer_than_lost() -> None:
        job.when(after(LOST_AFTER_S + 1.0), lambda: slurm("scontrol", "release", *job_ids(job)))

    with partition_down("cpu"):
        job.when(is_pending, hold)
        went_through(job, job.run(), attempts=[0])


@exhaustive
@pytest.mark.parametrize(("num_nodes", "lost_after_s"), [(1, LOST_AFTER_S), (2, 60.0)])
def test_a_suspended_job_goes_on_where_it_was(make_job: MakeJob, num_nodes: int, lost_after_s: float) -> None:
    job = make_job(num_nodes=num_nodes, ranks=1, lost_after_s=lost_after_s).lasting()

    def suspend() -> None:
        slurm("scontrol", "suspend", *job_ids(job))
        job.when(lambda view: view.job is not None and view.job.told == "SUSPENDED", lambda: job.when(after(LOST_AFTER_S + 1.0), resume))

    def resume() -> None:
        slurm("scontrol", "resume", *job_ids(job))
        job.let_go()

    job.when(works, suspend)
    went_through(job, job.run(), attempts=[0])
