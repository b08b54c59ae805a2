"""The Kubernetes cluster of the tests (`infra/kubernetes/test_cluster.py`): a real control plane, and nodes that run pods as processes."""

import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lab.cluster import KubernetesTestCluster

_PACKAGE = Path(__file__).resolve().parents[2] / "infra/kubernetes/lab/__init__.py"
if "lab" not in sys.modules:  # it lies outside of the project's packages, beside programs that are nobody's modules
    spec = importlib.util.spec_from_file_location("lab", _PACKAGE, submodule_search_locations=[str(_PACKAGE.parent)])
    assert spec is not None
    assert spec.loader is not None
    sys.modules["lab"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["lab"])

from lab.binaries import cache_folder, folder  # noqa: E402

CACHE = cache_folder(os.environ)
"""Where its programs are: the tests' own environment has homes of its own."""


def programs_there() -> bool:
    """Whether the control plane's programs were built."""
    return folder(CACHE).is_dir()


@contextmanager
def kubernetes_serving(*, nodes: int = 0, **offered: Any) -> Iterator["KubernetesTestCluster"]:
    """A cluster that ends with the body, or with this process, however that ends.

    Args:
        nodes: how many; none: the control plane alone.
        offered: what each node has: `cpus`, `memory`, `gpus`, `labels`.
    """
    from lab.cluster import KubernetesTestCluster

    place = Path(tempfile.mkdtemp(prefix="hr-kubernetes-"))
    cluster = KubernetesTestCluster(place, cache=CACHE)
    try:
        cluster.up(nodes=nodes, owner=os.getpid(), **offered)
        yield cluster
    finally:
        cluster.down()
        shutil.rmtree(place)
