"""What holds for every test: nothing ambient leaks in, nothing is written outside the test's folder, and each folder's share of the time is shown."""

import os
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.fakes.finished_pipeline import FinishedPipeline, finish_pipeline
from tests.fakes.kubernetes_cluster import kubernetes_serving
from tests.fakes.machine import NEEDS, lacks
from tests.fakes.mlflow_server import MlflowServer, mlflow_serving
from tests.fakes.s3_server import S3Server, s3_serving
from tests.fakes.slurm_cluster import slurm_serving
from tests.fakes.tiny_pipeline import Project

AMBIENT = ("PREFECT_", "MLFLOW_", "AWS_", "KUBE", "HEADRACE_", "WANDB_", "SLURM_")
QUIET = {
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "HF_HUB_OFFLINE": "1",
    "DS_ACCELERATOR": "cpu",
    "OMP_WAIT_POLICY": "PASSIVE",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}

_ALL_TESTS = "HEADRACE_ALL_TESTS" in os.environ

for _name in [name for name in os.environ if name.startswith(AMBIENT)]:
    del os.environ[_name]
os.environ.update(QUIET)

_KEEPS_NO_BYTECODE = sys.dont_write_bytecode
sys.dont_write_bytecode = False  # while tests are collected, whatever the shell says: to compile them all takes longer than to run a thousand

settings.register_profile("untimed", settings(), deadline=None)  # how long an example takes is the machine's affair
settings.register_profile("fast", settings(), deadline=None, max_examples=20)
settings.load_profile("untimed")


@pytest.fixture(autouse=True, scope="session")
def _own_homes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Libraries that keep a home write into the session's temporary folder."""
    homes = tmp_path_factory.mktemp("homes")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("PREFECT_HOME", "HF_HOME", "TORCH_EXTENSIONS_DIR", "MPLCONFIGDIR", "XDG_CACHE_HOME"):
            folder = homes / name.lower()
            folder.mkdir()
            patch.setenv(name, str(folder))
        yield


@pytest.fixture(autouse=True)
def _no_power_cut(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fast tests, which kill no machine, do not wait for the disk: it would take most of their time. A wrong descriptor is told as ever."""
    with pytest.MonkeyPatch.context() as patch:
        if not {"slow", "exhaustive"} & {mark.name for mark in request.node.iter_markers()}:
            patch.setattr(os, "fsync", _look_only)
        yield


def _look_only(descriptor: int) -> None:
    os.fstat(descriptor)


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """One real MLflow server over HTTP; every test has experiments and models of its own there."""
    with mlflow_serving(tmp_path_factory.mktemp("finished")) as server:
        yield server


@pytest.fixture(scope="session")
def finished_pipeline(mlflow_server: MlflowServer) -> FinishedPipeline:
    """The pipeline that was run once. Whoever wants to change something takes a copy."""
    return finish_pipeline(mlflow_server.folder, mlflow_server)


@pytest.fixture(scope="session")
def finished(finished_pipeline: FinishedPipeline) -> Project:
    """Its project."""
    return finished_pipeline.project


@pytest.fixture(scope="session")
def slurm_cluster() -> Iterator[Any]:
    """A real Slurm cluster of three nodes on this machine, with pretended GPUs."""
    with slurm_serving(nodes=3, gpus=2) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def kubernetes_nodes() -> Iterator[Any]:
    """A real control plane of Kubernetes on this machine, with three nodes that run pods, and pretended GPUs."""
    with kubernetes_serving(nodes=3, gpus=2) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One real S3 server; every test has a prefix of its own there."""
    with s3_serving(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def s3_bucket(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The server, as this process's environment names it."""
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    return s3_server


_NOT_RUN = pytest.StashKey[list[str]]()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what this machine cannot run, and says so at the end: with `HEADRACE_ALL_TESTS` set that is an error."""
    lacking = {marker for marker in NEEDS if lacks(marker)}
    left_out = [item for item in items if lacking & {mark.name for mark in item.iter_markers()}]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    config.stash[_NOT_RUN] = [item.nodeid for item in left_out]


def pytest_collection_finish() -> None:
    """From here on it is as the shell says."""
    sys.dont_write_bytecode = _KEEPS_NO_BYTECODE


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fails where everything was to be run."""
    if session.config.stash.get(_NOT_RUN, []) and _ALL_TESTS:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints what was left out, and what each folder of tests cost, so that a share can be held to its bound."""
    if not_run := terminalreporter.config.stash.get(_NOT_RUN, []):
        needs = "; ".join(what for marker, what in NEEDS.items() if lacks(marker))
        terminalreporter.section(f"not run: {len(not_run)} tests need {needs}")
        for name in not_run:
            terminalreporter.write_line(name)
    seconds: dict[str, float] = defaultdict(float)
    tests: dict[str, int] = defaultdict(int)
    for reports in terminalreporter.stats.values():
        for report in reports:
            if not isinstance(report, pytest.TestReport):
                continue
            parts = Path(report.location[0]).parts
            folder = "/".join(parts[1:-1][:2]) or "."
            seconds[folder] += report.duration
            tests[folder] += report.when == "call"
    if not seconds:
        return
    terminalreporter.section("share of each folder")
    for folder, spent in sorted(seconds.items(), key=lambda item: -item[1]):
        terminalreporter.write_line(f"{spent:8.1f} s  {tests[folder]:4d} tests  {folder}")
    terminalreporter.write_line(f"{sum(seconds.values()):8.1f} s  {sum(tests.values()):4d} tests  in all")
