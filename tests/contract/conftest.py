"""Fixtures of the contract suites: one run per implementation."""

from pathlib import Path

import pytest

from cluster.storage import Storage
from tests.contract.launchers import LAUNCHERS, LauncherBench
from tests.contract.storages import STORAGES


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.slow if name == "s3" else ()) for name in STORAGES], ids=str)
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """An empty storage of each kind."""
    if request.param == "s3":
        request.getfixturevalue("s3_bucket")
    return STORAGES[request.param](tmp_path)


@pytest.fixture(params=["local", pytest.param("slurm", marks=pytest.mark.slurm), pytest.param("kubernetes", marks=pytest.mark.kubernetes)])
def bench(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LauncherBench:
    """A launcher of each kind, with a storage that its jobs reach."""
    if request.param == "slurm":
        request.getfixturevalue("slurm_cluster")
    if request.param == "kubernetes":
        monkeypatch.setenv("KUBECONFIG", str(request.getfixturevalue("kubernetes_nodes").kubeconfig))
    return LAUNCHERS[request.param](tmp_path)
