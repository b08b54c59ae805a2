"""Jobs that take longer than their allocation, or have items that fail."""

from pathlib import Path
from typing import Any

import pytest

from schemas.attempt import Cause
from schemas.exit_code import ExitCode
from tests.chaos.slurm_trouble import (
    MakeJob,
    leaves_nothing,
    record_of,
    slurm_job,
    sweep,
    went_through,
)
from tests.fakes.job_request import array_request
from tests.fakes.live_job import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.slurm, pytest.mark.usefixtures("cluster")]

exhaustive = pytest.mark.exhaustive


@exhaustive
def test_the_end_of_an_allocation_is_committed_and_the_next_one_goes_on(make_job: MakeJob) -> None:
    # 25 seconds of steps, and 18 until ranks are asked to stop: a busy machine, too, gets them to work in that time
    job = make_job(options={"steps": 500, "commit_every": 1000}, time_limit_s=26.0, grace_s=1.0)
    record = job.run()
    assert record.exit_code is ExitCode.DONE
    ended = [record_of(job, number) for number in job.attempts[:-1]]
    assert ended
    assert {(each.exit_code, each.cause) for each in ended} == {(ExitCode.INTERRUPTED, Cause.TIME_LIMIT)}
    steps = [each.incidents[-1].committed_step for each in ended]
    assert steps == sorted(set(steps)), "each allocation commits more"
    went_through(job, record, attempts=list(job.attempts))


@exhaustive
def test_two_hundred_items_on_two_nodes_with_failing_ones(cluster: Any, tmp_path: Path) -> None:
    faults = [{"item": item, "kind": kind, "times": 1} for item, kind in [(3, "raise"), (50, "kill"), (111, "exit:9"), (199, "segv")]]
    request = array_request(tmp_path, items=200, at_a_time=2, num_nodes=2, options={"item_s": 0.05, "faults": faults})
    job = slurm_job(request.model_copy(update={"limits": request.limits.model_copy(update={"max_failures": 10})}), patience_s=400.0)
    try:
        record = job.run()
        assert record.exit_code is ExitCode.DONE, record.message
        assert job.attempts == (0,)
        assert sorted(incident.rank for incident in record.incidents) == [3, 50, 111, 199]
        assert len(job.storage.names(f"{job.layout.key}/items")) == 200
        wait_until(lambda: leaves_nothing(job))
    finally:
        sweep(job)
