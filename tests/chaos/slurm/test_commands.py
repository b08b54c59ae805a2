"""What Slurm's commands may do to the supervisor: fail, hang and lie."""

import threading
from pathlib import Path

import psutil
import pytest

from cluster.launchers.slurm_queue import SlurmError, call
from cluster.liveness import Life
from schemas.attempt import Cause
from schemas.exit_code import ExitCode
from tests.chaos.slurm_trouble import (
    CPU,
    LOST_AFTER_S,
    SOON_S,
    MakeJob,
    Shims,
    after,
    is_pending,
    job_ids,
    leaves_nothing,
    partition_down,
    record_of,
    slurm,
    starts,
    went_through,
    works,
)
from tests.fakes.live_job import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.slurm, pytest.mark.usefixtures("cluster")]

exhaustive = pytest.mark.exhaustive


@exhaustive
@pytest.mark.parametrize("wish", ["fail", "hang", "lie"])
def test_a_queue_that_cannot_be_asked_for_a_moment_makes_no_new_attempt(make_job: MakeJob, shims: Shims, wish: str) -> None:
    """The job waits for longer than `lost_after`, so that any impatience would show. A lie that lasts as long is believed in the end."""
    job = make_job(cluster=CPU, answer_s=SOON_S)
    for name in ("sacct", "scancel"):
        shims.let(name, wish)

    def trouble() -> None:
        shims.let("squeue", wish)
        job.when(lambda view: view.state is Life.UNKNOWN, end_of_trouble if wish == "lie" else trouble_goes_on)

    def trouble_goes_on() -> None:
        job.when(after(LOST_AFTER_S), end_of_trouble)

    def end_of_trouble() -> None:
        shims.heal()
        slurm("scontrol", "update", "PartitionName=cpu", "State=UP")

    with partition_down("cpu"):
        job.when(is_pending, lambda: job.when(after(LOST_AFTER_S + 1.0), trouble))
        went_through(job, job.run(), attempts=[0])
    assert job.attempts == (0,)


@exhaustive
@pytest.mark.parametrize("wish", ["fail", "hang", "lie"])
def test_a_running_job_speaks_for_itself(make_job: MakeJob, shims: Shims, wish: str) -> None:
    job = make_job(answer_s=SOON_S).lasting()

    def trouble() -> None:
        for name in ("squeue", "sacct", "scancel", "sbatch"):
            shims.let(name, wish)
        job.when(after(LOST_AFTER_S), job.let_go)

    job.when(works, trouble)
    record = job.run()
    shims.heal()
    went_through(job, record, attempts=[0])


@exhaustive
@pytest.mark.parametrize("wish", ["fail", "hang"])
def test_a_job_that_dies_while_nobody_can_be_asked_is_replaced_once_somebody_can(make_job: MakeJob, shims: Shims, wish: str) -> None:
    job = make_job(answer_s=SOON_S).lasting()

    def die() -> None:
        shims.let("squeue", wish)
        job.sweep()
        job.when(lambda view: view.state is Life.UNKNOWN, stay_away)  # later than `lost_after`: it was heard not long ago, and that counts first

    def stay_away() -> None:
        job.when(after(2.0), shims.heal)

    job.when(works, die)
    went_through(job, job.run(), attempts=[0, 1])
    assert Life.UNKNOWN in {view.state for view in job.views}


@exhaustive
def test_of_a_job_that_slurm_denies_for_too_long_only_the_next_attempt_takes_effect(make_job: MakeJob, shims: Shims) -> None:
    """It waits all the while, nobody can cancel it, and it starts in the end: it finds its attempt closed."""
    job = make_job(cluster=CPU)

    def trouble() -> None:
        shims.let("squeue", "lie")
        shims.let("scancel", "fail")
        job.when(lambda view: view.attempt == 1, end_of_trouble)

    def end_of_trouble() -> None:
        shims.heal()
        slurm("scontrol", "update", "PartitionName=cpu", "State=UP")

    with partition_down("cpu"):
        job.when(is_pending, trouble)
        went_through(job, job.run(), attempts=[1])
    assert len(job_ids(job, active=False)) == 2
    assert record_of(job, 0).cause is Cause.NODE


def test_a_cancellation_that_fails_is_repeated_while_the_job_waits(make_job: MakeJob, shims: Shims) -> None:
    job, wished = make_job(cluster=CPU), threading.Event()
    shims.let("scancel", "fail")

    def cancel() -> None:
        wished.set()
        job.when(lambda _view: shims.calls("scancel") >= 3, shims.heal)

    with partition_down("cpu"):
        job.when(is_pending, cancel)
        record = job.run(stop_requested=wished.is_set)
    assert (record.exit_code, record.cause) == (ExitCode.INTERRUPTED, Cause.CANCELLED)
    assert starts(job) == []
    assert leaves_nothing(job)


def test_a_command_that_hangs_is_ended_with_all_that_it_started(shims: Shims, tmp_path: Path) -> None:
    shims.let("squeue", "hang")
    with pytest.raises(SlurmError, match=r"squeue did not answer for 0\.5 s"):
        call(("squeue",), answer_s=0.5)
    folder = str(tmp_path / "commands")
    wait_until(lambda: not any(process.info["cwd"] == folder for process in psutil.process_iter(["cwd"])))
