"""Supervisors as real processes: killed in the middle, and racing each other. There is one job all the same."""

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.logs import read_logs
from schemas.exit_code import ExitCode
from schemas.job import JobSpec
from tests.fakes.child_process import running
from tests.fakes.job_request import gang_request
from tests.fakes.live_job import LiveJob, wait_until

pytestmark = pytest.mark.slow

SUPERVISE = """
import sys
from schemas.job import JobSpec
from tests.fakes.live_job import LiveJob
record = LiveJob(JobSpec.model_validate_json(sys.stdin.read())).run()
sys.exit(int(record.exit_code))
"""

Supervise = Callable[[JobSpec], "subprocess.Popen[bytes]"]


@pytest.fixture
def job(tmp_path: Path) -> Iterator[LiveJob]:
    job = LiveJob(gang_request(tmp_path))
    yield job
    job.sweep()


@pytest.fixture
def supervise(job: LiveJob) -> Iterator[Supervise]:
    """Starts supervisors; those that are left when the test ends are killed before the job that they would start again."""
    with contextlib.ExitStack() as left:

        def start(request: JobSpec) -> "subprocess.Popen[bytes]":
            process = left.enter_context(running(sys.executable, "-c", SUPERVISE, stdin=subprocess.PIPE, cwd=Path(__file__).parents[2]))
            assert process.stdin is not None
            with process.stdin as stream:
                stream.write(request.model_dump_json().encode())
            return process

        yield start


def test_a_killed_supervisor_is_replaced_and_the_job_adopted(job: LiveJob, supervise: Supervise) -> None:
    first = supervise(job.lasting().request)
    wait_until(lambda: len(job.family()) == 4)
    before = {process.pid for process in job.family()}
    first.kill()
    first.wait()
    assert {process.pid for process in job.family()} == before
    job.let_go()
    record = job.run()
    assert record.exit_code is ExitCode.DONE
    assert job.attempts == (0,)
    assert record.incidents == ()
    assert {line.epoch for line in read_logs(job.storage, job.attempt())} == {0}


def test_racing_supervisors_make_one_effective_job(job: LiveJob, supervise: Supervise) -> None:
    both = [supervise(job.request.model_copy(update={"run_id": run_id})) for run_id in ("run-a", "run-b")]
    assert [process.wait() for process in both] == [0, 0]
    assert job.attempts == (0,)
    assert [(line.epoch, line.text) for line in read_logs(job.storage, job.attempt(), rank=0)] == [(0, "rank 0 of 2 starts epoch 0 from -1")]
