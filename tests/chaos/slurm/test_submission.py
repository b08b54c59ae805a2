"""Submission: whatever `sbatch` does, and whoever dies around it, one job takes effect; what Slurm will never take is refused with its key."""

import signal
from collections.abc import Callable
from typing import Any

import pytest

from cluster.attempt import read_submitted
from cluster.job_view import JobView
from cluster.launchers.slurm_queue import ANSWER_S
from schemas.attempt import Cause
from schemas.cluster_config import ClusterConfig
from schemas.errors import ConfigError
from tests.chaos.slurm_trouble import (
    SOON_S,
    MakeJob,
    Shims,
    job_ids,
    record_of,
    supervising,
    went_through,
    works,
)
from tests.fakes.live_job import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.slurm, pytest.mark.usefixtures("cluster")]

exhaustive = pytest.mark.exhaustive


@pytest.mark.parametrize(
    ("wish", "jobs"),
    [
        ("take-and-fail", 1),
        ("take-twice", 2),
        pytest.param("fail", 1, marks=exhaustive),
        pytest.param("hang", 1, marks=exhaustive),
        pytest.param("take-and-hang", 1, marks=exhaustive),
    ],
)
def test_whatever_sbatch_says_one_job_takes_effect(make_job: MakeJob, shims: Shims, wish: str, jobs: int) -> None:
    job = make_job(lost_after_s=30.0, answer_s=SOON_S if "hang" in wish else ANSWER_S)
    shims.let("sbatch", wish, once=True)
    record = job.run()
    went_through(job, record, attempts=[0])
    assert len(job_ids(job, active=False)) == jobs
    submitted = read_submitted(job.storage, job.attempt(0))
    assert submitted is not None
    assert submitted.job_id in job_ids(job, active=False)


@pytest.mark.parametrize("when", [pytest.param(works, id="beside the job"), pytest.param(None, id="after its end", marks=exhaustive)])
def test_a_submission_that_arrives_late_starts_nothing(make_job: MakeJob, shims: Shims, when: Callable[[JobView], bool] | None) -> None:
    job = make_job()
    shims.let("sbatch", "take-late", once=True)
    if when is not None:
        job.lasting().when(when, lambda: (shims.arrive(), job.let_go()))
    record = job.run()
    if when is None:
        shims.arrive()
    wait_until(lambda: job_ids(job) == [])
    went_through(job, record, attempts=[0])
    assert len(job_ids(job, active=False)) == 2


@pytest.mark.parametrize("wish", ["take-and-die", pytest.param("die", marks=exhaustive)])
def test_a_submitter_killed_around_the_submission_is_replaced_and_one_job_takes_effect(make_job: MakeJob, shims: Shims, wish: str) -> None:
    job = make_job()
    shims.let("sbatch", wish, once=True)
    with supervising(job.request) as submitter:
        assert submitter.wait() == -signal.SIGKILL
    assert not job.storage.exists(job.attempt().submitted)
    went_through(job, job.run(), attempts=[0])
    assert len(job_ids(job, active=False)) == 1


@exhaustive
def test_a_submitter_killed_after_the_submission_is_replaced_and_the_job_adopted(make_job: MakeJob) -> None:
    job = make_job(options={"steps": 80})
    with supervising(job.request):
        wait_until(lambda: job.attempts != () and job.storage.exists(job.attempt().submitted))
    went_through(job, job.run(), attempts=[0])
    assert len(job_ids(job, active=False)) == 1


def test_two_supervisors_make_one_effective_job(make_job: MakeJob) -> None:
    job = make_job()
    requests = [job.request.model_copy(update={"run_id": run_id}) for run_id in ("run-a", "run-b")]
    with supervising(requests[0]) as first, supervising(requests[1]) as second:
        assert [first.wait(), second.wait()] == [0, 0]
    assert job.attempts == (0,)
    went_through(job, record_of(job, 0), attempts=[0])


@pytest.mark.parametrize(
    ("queues", "problem"),
    [
        ({"queue": "closed"}, ("cluster.queue", "'closed'", "")),
        ({"queue": "mian"}, ("cluster.queue", "'mian'", "main")),
        ({"queue": "main", "stages": {"train": {"queue": "gqu"}}}, ("cluster.stages.train.queue", "'gqu'", "gpu")),
    ],
    ids=["takes nobody's jobs", "is not there", "of one stage is not there"],
)
def test_a_partition_that_refuses_a_job_is_named_with_the_key_of_the_recipe(
    make_job: MakeJob, queues: dict[str, Any], problem: tuple[str, str, str]
) -> None:
    job = make_job(cluster=ClusterConfig.model_validate({"kind": "slurm", **queues}))
    with pytest.raises(ConfigError) as error:
        job.run()
    (found,) = error.value.problems
    assert (found.key, found.value, found.nearest) == problem
    assert job_ids(job) == []
    assert record_of(job, 0).cause is Cause.CANCELLED
