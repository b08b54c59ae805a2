"""What a batch job inherits of the shell that submits it: the names of the allow list, and nothing else that a user's shell may hold."""

import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.environment import ALLOWED
from cluster.launchers.slurm_script import batch_script
from schemas.cluster_config import StageResources
from tests.chaos.slurm_trouble import slurm
from tests.fakes.job_request import gang_request

SECRETS = ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "MLFLOW_TRACKING_PASSWORD", "SLURM_JWT", "ANYTHING_ELSE")
CANARY = "canary-3f9a"


def directives(tmp_path: Path) -> list[str]:
    """The directives of a job, as they are submitted."""
    text = batch_script(gang_request(tmp_path), StageResources(), extra_directives=(), checkout="/opt/headrace", python="python3")
    return [line for line in text.splitlines() if line.startswith("#SBATCH")]


def test_names_are_listed_and_no_values_and_no_more_than_names(tmp_path: Path) -> None:
    (line,) = (line for line in directives(tmp_path) if "--export" in line)
    names = line.removeprefix('#SBATCH --export="').removesuffix('"').split(",")
    assert names == list(ALLOWED)
    assert not {"ALL", "NIL", "NONE"} & set(names)
    assert all(re.fullmatch(r"[A-Z][A-Z0-9_]*", name) for name in names)
    assert not set(SECRETS) & set(names)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that jobs may write in."""
    path = Path(tempfile.mkdtemp(prefix="hr-env-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.mark.slow
@pytest.mark.slurm
@pytest.mark.usefixtures("slurm_cluster")
def test_a_job_and_its_steps_see_the_allow_list_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SECRETS:
        if name != "SLURM_JWT":  # Slurm's own programs would log in with it
            monkeypatch.setenv(name, CANARY)
    monkeypatch.setenv("HF_HOME", "/shared/huggingface")
    (export,) = (line for line in directives(folder) if "--export" in line)
    program = folder / "job.sh"
    steps = f"env >{folder}/batch\nsrun --export=ALL env >{folder}/step\nscontrol show job $SLURM_JOB_ID >{folder}/shown\n"
    program.write_text(f"#!/bin/bash\n{export}\n#SBATCH --partition=main\n#SBATCH --output={folder}/out\n{steps}")
    slurm("sbatch", "--wait", "--parsable", str(program))
    for place in ("batch", "step", "shown"):
        told = (folder / place).read_text()
        assert told, (folder / "out").read_text()
        assert CANARY not in told, f"a secret is in {place}"
        assert place == "shown" or "HF_HOME=/shared/huggingface" in told
