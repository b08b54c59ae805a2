"""Secrets stay where they are: resolved where they are used, never stored, never said, never handed to compute."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.environment import compute_environment
from cluster.object_storage import FsspecStorage
from cluster.storage import open_storage
from schemas.errors import ConfigError, UnreachableError
from schemas.recipe import load_recipe
from tests.fakes.tiny_pipeline import Project, make_project

SECRET = "canary/5up3r@s3cret"


@pytest.fixture
def secret(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("HEADRACE_TEST_SECRET", SECRET)
    return "${env:HEADRACE_TEST_SECRET}"


def test_a_secret_in_the_roots_url_is_resolved_where_it_is_opened_and_kept_as_its_reference(secret: str) -> None:
    storage = open_storage(f"memory://bucket-{secret}")
    storage.create_exclusive("a", b"1")
    assert storage.url == f"memory://bucket-{secret}"
    assert open_storage(f"memory://bucket-{SECRET}").read("a") == b"1"
    assert open_storage(storage.url).read("a") == b"1"


def test_a_folder_that_only_the_machine_knows_is_kept_as_its_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_TEST_SCRATCH", str(tmp_path))
    storage = open_storage("${env:HEADRACE_TEST_SCRATCH}/data")
    storage.create_exclusive("a", b"1")
    assert storage.url == "${env:HEADRACE_TEST_SCRATCH}/data"
    assert (tmp_path / "data" / "a").read_bytes() == b"1"
    monkeypatch.delenv("HEADRACE_TEST_SCRATCH")
    with pytest.raises(ConfigError, match="is not set"):
        open_storage(storage.url)


def test_what_a_library_says_of_a_url_does_not_give_the_secret_away(secret: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    def fails(url: str) -> Any:
        raise ValueError(f"no such thing: {url}")

    monkeypatch.setattr(fsspec.core, "url_to_fs", fails)
    with pytest.raises(UnreachableError) as caught:
        FsspecStorage(f"s3://me:{secret}@host/bucket")
    assert SECRET not in str(caught.value)
    assert secret in caught.value.why
    assert caught.value.__cause__ is None, "loggers write the cause, too"


def test_tracking_resolves_its_secret_at_use_and_never_says_it(secret: str) -> None:
    from tasks.mlflow_connection import MlflowConnection, TrackingTarget
    from tasks.tracking import flat_params
    from tests.fakes.in_process_work import config_with

    config = config_with(tracking={"mlflow_uri": f"http://me:{secret}@127.0.0.1:9"})
    target = TrackingTarget.of(config)
    assert SECRET not in repr(target) + repr(flat_params(config))
    connection = MlflowConnection(target)
    with pytest.raises(UnreachableError) as caught, connection.reaching("asked"):
        raise OSError(f"http://me:{SECRET}@127.0.0.1:9 refused")
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return make_project(tmp_path_factory.mktemp("secrets") / "project")


def test_files_of_the_users_folder_are_not_run_in_the_place_of_libraries(tmp_path: Path) -> None:
    """A recipe may lie in a folder that was downloaded with the text."""
    canary = tmp_path / "canary"
    for name in ("sitecustomize.py", "usercustomize.py", "random.py", "torch.py", "tasks.py", "cluster.py"):
        (tmp_path / name).write_text(f"import os\nos.mkdir({str(canary)!r})\n")
    given = compute_environment(os.environ, extra={}, project_dir=str(tmp_path), threads=1, python=sys.executable)
    program = "import random, sys, tasks.entry, cluster.agent.zygote; print(sys.modules['random'].__file__)"
    done = subprocess.run((sys.executable, "-c", program), cwd=tmp_path, env=given, capture_output=True, text=True, check=True)
    assert str(tmp_path) not in done.stdout
    assert not canary.exists()


@pytest.mark.parametrize("name", ["SLURM_JWT", "NCCL_SECRET", "TORCH_ACCESS_TOKEN", "AWS_SECRET_ACCESS_KEY", "HEADRACE_TEST_SECRET"])
def test_compute_inherits_no_credential(name: str) -> None:
    inherited = {name: SECRET, "SLURM_JOB_ID": "7", "NCCL_DEBUG": "INFO"}
    given = compute_environment(inherited, extra={}, project_dir="/home/ada", threads=1, python="/usr/bin/python3")
    assert SECRET not in given.values()
    assert given.items() >= {"SLURM_JOB_ID": "7", "NCCL_DEBUG": "INFO"}.items()


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("corpus.sources", "['/x/${env:HEADRACE_TEST_SECRET}']", "secrets are resolved in storage.root and tracking.mlflow_uri only"),
        ("model.config.note", "'${env:HEADRACE_TEST_SECRET}'", "secrets are resolved in"),
        ("tracking.experiment", "'${file:/etc/hostname}'", "secrets are resolved in"),
        ("tracking.mlflow_uri", "'http://me:${file:secret}@host'", "must be absolute"),
        ("tracking.mlflow_uri", "'http://me:hunter2@host/${env:HEADRACE_TEST_SECRET}'", "holds a password in plain"),
        ("tracking.mlflow_uri", "'http://me:hunter2${env:HEADRACE_TEST_SECRET}@host'", "holds a password in plain"),
    ],
)
@pytest.mark.usefixtures("secret")
def test_secrets_that_would_be_stored_or_have_no_effect_are_refused(project: Project, key: str, value: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        load_recipe(project.recipe, [f"{key}={value}"])
    assert "hunter2" not in str(caught.value)
    assert SECRET not in str(caught.value)
