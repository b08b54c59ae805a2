"""`make same-weights`: one recipe on this machine, on Slurm and on Kubernetes; equal weights are said to be equal, and others are told."""

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from cluster.storage import FileStorage
from flows.same_weights import Made, check_equal, comparison_screen
from schemas.cluster_config import ClusterKind
from schemas.errors import VerificationError
from schemas.stage import Stage
from tests.fakes.kubernetes_cluster import CACHE
from tests.fakes.stored_chain import StoredChain
from tests.fakes.tiny_pipeline import ROOT

FIRST_LINES = {"slurm": "#!/bin/bash", "kubernetes": "apiVersion: v1"}
"""Of what is submitted for a job, where it is submitted."""


@pytest.fixture
def made(tmp_path: Path) -> dict[ClusterKind, Made]:
    """The same of every cluster."""
    return dict.fromkeys(ClusterKind, StoredChain(FileStorage(tmp_path)).model())


def changed(made: Made, **changes: str) -> Made:
    """What was made, with another training."""
    return {**made, Stage.TRAIN: made[Stage.TRAIN].model_copy(update=changes)}


def test_equal_weights_are_shown_beneath_each_other(made: dict[ClusterKind, Made], tmp_path: Path) -> None:
    check_equal(made, folder=tmp_path)
    screen = comparison_screen(made)
    for stage in (Stage.TRAIN, Stage.EXPORT):
        digest = made[ClusterKind.LOCAL][stage].content_hash
        assert [line.split()[:2] for line in screen if digest in line] == [[kind.value, digest] for kind in ClusterKind]


def test_other_weights_are_told_with_their_cluster(made: dict[ClusterKind, Made], tmp_path: Path) -> None:
    made[ClusterKind.SLURM] = changed(made[ClusterKind.SLURM], content_hash="5" * 64)
    with pytest.raises(VerificationError) as caught:
        check_equal(made, folder=tmp_path)
    assert caught.value.findings == (f"train on slurm: {'5' * 64}; on local: {made[ClusterKind.LOCAL][Stage.TRAIN].content_hash}",)
    assert str(tmp_path) in caught.value.mend


def test_equal_weights_of_another_recipe_prove_nothing(made: dict[ClusterKind, Made], tmp_path: Path) -> None:
    made[ClusterKind.KUBERNETES] = changed(made[ClusterKind.KUBERNETES], fingerprint="5" * 64)
    with pytest.raises(VerificationError, match="train on kubernetes is of another recipe or text than on local"):
        check_equal(made, folder=tmp_path)


def same_weights(folder: Path, *assignments: str) -> "subprocess.CompletedProcess[str]":
    """Runs the command."""
    argv = (sys.executable, "-m", "flows.same_weights", "--steps", "20", "--folder", str(folder))
    words = (word for assignment in assignments for word in ("--set", assignment))
    env = {**os.environ, "HEADRACE_CACHE": str(CACHE)}
    return subprocess.run((*argv, *words), cwd=ROOT, env=env, capture_output=True, text=True, timeout=900)


@pytest.mark.slow
def test_where_the_first_run_fails_no_cluster_is_started(tmp_path: Path) -> None:
    done = same_weights(tmp_path, "training.micro_batch=6")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "the run on local ended with 2: nothing is compared" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "slurm").exists()


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.slurm
@pytest.mark.kubernetes
def test_one_machine_slurm_and_kubernetes_make_the_same_weights(tmp_path: Path) -> None:
    done = same_weights(
        tmp_path,
        f"corpus.sources=[{{path: {sysconfig.get_paths()['stdlib']}/asyncio, format: text, include: ['*.py']}}]",
        "corpus.splits={validation: 0.1, test: 0.2}",
        "evaluation.max_bytes=20000",
        "evaluation.max_new_tokens=4",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("equal, bit for bit\n")
    train, export = re.findall(r"^\w+: weights.*\n((?:  .*\n){3})", done.stdout, re.MULTILINE)
    for rows in (train, export):
        assert [row.split()[0] for row in rows.splitlines()] == [kind.value for kind in ClusterKind]
        assert len({row.split()[1] for row in rows.splitlines()}) == 1
    assert train.count("20 steps, 2 ranks") == 3
    models = [*tmp_path.glob("*/data/export/*/model/model.safetensors")]
    assert len(models) == 3
    assert len({model.read_bytes() for model in models}) == 1
    for kind, first_line in FIRST_LINES.items():
        (submission,) = tmp_path.glob(f"{kind}/data/train/*/attempts/job-0000/submission.txt")
        assert submission.read_text().startswith(first_line)
