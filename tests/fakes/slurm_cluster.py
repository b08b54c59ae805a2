"""The real Slurm cluster of the tests (`infra/slurm/test_cluster.py`)."""

import importlib.util
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

_PROGRAM = Path(__file__).resolve().parents[2] / "infra/slurm/test_cluster.py"


def load() -> ModuleType:
    """Returns the program as a module: it lies outside of every package."""
    spec = importlib.util.spec_from_file_location("slurm_test_cluster", _PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@contextmanager
def slurm_serving(*, nodes: int, gpus: int = 0) -> Iterator[object]:
    """A cluster, with this process's environment set to use it."""
    folder = Path(tempfile.mkdtemp(prefix="hr-slurm-", dir="/tmp"))  # short: sockets lie below it
    cluster = load().SlurmTestCluster(folder)
    try:
        cluster.up(nodes=nodes, gpus=gpus)
        with pytest.MonkeyPatch.context() as patch:
            for name, value in cluster.variables.items():
                patch.setenv(name, value)
            yield cluster
    finally:
        cluster.down()
        shutil.rmtree(folder)
