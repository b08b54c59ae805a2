"""What the local launcher would start, word by word; and what it says when that fails."""

import sys
from pathlib import Path

import pytest

from cluster.environment import checkout
from cluster.launchers.local import LocalLauncher
from schemas.cluster_config import ClusterConfig, StageResources
from schemas.errors import UnreachableError
from schemas.job import JobSpec
from schemas.stage import Stage
from tests.fakes.job_request import gang_request

RENDERED = (
    "{python} -P -m cluster.agent.agent --storage {tmp}/data --attempt train/fake-0123456789ab/attempts/job-0000 --key demo-train-abc123 "
    "--node-rank {node} --advertise 127.0.0.1 --detach {tmp}/scratch/n000{node}/agent.log\n"
)


@pytest.fixture
def spec(tmp_path: Path) -> JobSpec:
    return gang_request(tmp_path, num_nodes=2).model_copy(update={"key": "demo-train-abc123"})


def test_one_command_per_node(spec: JobSpec, tmp_path: Path) -> None:
    submission = LocalLauncher(ClusterConfig()).render(spec)
    assert submission.text == "".join(RENDERED.format(python=sys.executable, tmp=tmp_path, node=node) for node in (0, 1))
    assert [command.cwd for command in submission.commands] == [spec.project_dir] * 2
    assert [dict(command.env) for command in submission.commands] == [{"PYTHONPATH": str(checkout())}] * 2


def test_a_stage_may_have_an_interpreter_of_its_own(spec: JobSpec) -> None:
    cluster = ClusterConfig(python="/opt/a/python", stages={Stage.TRAIN: StageResources(python="/opt/with space/python")})
    assert LocalLauncher(cluster).render(spec).text.startswith("'/opt/with space/python' -P -m ")
    assert LocalLauncher(cluster).render(spec.model_copy(update={"stage": Stage.VALIDATE})).text.startswith("/opt/a/python -P -m ")


@pytest.mark.parametrize("python", ["/no/such/python", "/bin/false"])
def test_an_interpreter_that_does_not_work_is_an_error_with_its_mend(spec: JobSpec, python: str) -> None:
    launcher = LocalLauncher(ClusterConfig(python=python))
    with pytest.raises(UnreachableError, match=r"cluster\.python"):
        launcher.submit(launcher.render(spec))
