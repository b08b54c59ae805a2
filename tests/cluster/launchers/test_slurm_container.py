"""Agents in containers on a real Slurm cluster, whose apptainer and pyxis are stood in for: what ranks see there, and that signals reach them."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.attempt import read_exit
from schemas.attempt import Cause
from schemas.cluster_config import ClusterConfig, ContainerRuntime
from schemas.exit_code import ExitCode
from schemas.job import JobSpec
from tests.chaos.slurm_trouble import job_ids, slurm, slurm_job, sweep
from tests.fakes.container_runtimes import IMAGE_PREFIX, install
from tests.fakes.job_request import gang_request
from tests.fakes.live_job import LiveJob

pytestmark = [pytest.mark.slow, pytest.mark.slurm, pytest.mark.usefixtures("slurm_cluster")]

MakeJob = Callable[..., LiveJob]


@pytest.fixture
def make_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeJob]:
    """Makes jobs in containers of a runtime; a secret is in the shell that submits them."""
    image = install(tmp_path / "runtimes")
    monkeypatch.setenv("PATH", f"{tmp_path / 'runtimes'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("HF_TOKEN", "secret")
    made: list[LiveJob] = []

    def make(request: JobSpec, runtime: ContainerRuntime, **cluster: Any) -> LiveJob:
        values = {"kind": "slurm", "queue": "main", "container": runtime, "image": str(image), "setup": ["export NCCL_DEBUG=INFO"], **cluster}
        made.append(slurm_job(request, cluster=ClusterConfig.model_validate(values)))
        return made[-1]

    yield make
    for job in made:
        sweep(job)


@pytest.mark.parametrize("runtime", [ContainerRuntime.APPTAINER, ContainerRuntime.PYXIS])
def test_ranks_see_the_image_and_what_they_need_and_nothing_else(make_job: MakeJob, tmp_path: Path, runtime: ContainerRuntime) -> None:
    (tmp_path / "given").mkdir()
    (tmp_path / "outside").mkdir()
    look_at = ["/given", str(tmp_path / "given"), str(tmp_path / "outside"), str(tmp_path / "project")]
    request = gang_request(tmp_path, ranks=1, num_nodes=2, options={"look_at": look_at})
    request = request.model_copy(update={"argv": ("-m", "tests.fakes.telling_job")})
    record = make_job(request, runtime, mounts=[f"{tmp_path / 'given'}:/given:ro"]).run()
    assert record.exit_code is ExitCode.DONE, record.message
    for rank in range(2):
        told = json.loads((tmp_path / "data" / request.artifact_key / f"told-{rank}.json").read_text())
        assert told["prefix"] == IMAGE_PREFIX, "the image's own Python"
        assert told["folder"] == request.project_dir
        assert (told["seen"], told["written"]) == (["/given", request.project_dir], [request.project_dir])
        environment = told["environment"]
        assert (environment["NCCL_DEBUG"], environment["WORLD_SIZE"]) == ("INFO", "2"), "what `setup` exports, and what the agent tells"
        assert "HF_TOKEN" not in environment
        assert "/nowhere" not in environment["PYTHONPATH"].split(":"), "the image's own would hide the agent"


@pytest.mark.exhaustive
@pytest.mark.parametrize("runtime", [ContainerRuntime.SINGULARITY, ContainerRuntime.PYXIS])
def test_a_job_in_containers_commits_when_it_is_asked_to_end_and_the_next_goes_on(
    make_job: MakeJob, tmp_path: Path, runtime: ContainerRuntime
) -> None:
    job = make_job(gang_request(tmp_path, ranks=1, num_nodes=2, options={"step_s": 0.05, "commit_every": 1000}), runtime).lasting()
    job.when(lambda view: view.step >= 5, lambda: slurm("scancel", "--signal=TERM", *job_ids(job)))
    record = job.run()
    assert record.exit_code is ExitCode.DONE, record.message
    assert job.attempts == (0, 1)
    stopped = read_exit(job.storage, job.attempt(0))
    assert stopped is not None
    assert (stopped.cause, stopped.exit_code) == (Cause.PREEMPTION, ExitCode.INTERRUPTED)
    assert stopped.incidents[-1].committed_step > 0
