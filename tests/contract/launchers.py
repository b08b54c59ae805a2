"""The launchers that are put to the contract suite."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cluster.launchers.kubernetes import KubernetesLauncher
from cluster.launchers.local import LocalLauncher
from cluster.launchers.protocol import Launcher
from cluster.launchers.slurm import SlurmLauncher
from schemas.cluster_config import ClusterConfig, ClusterKind
from schemas.job import JobSpec
from tests.fakes.job_request import gang_request
from tests.fakes.kubernetes_job import lab_cluster


@dataclass(frozen=True)
class LauncherBench:
    """A launcher and what it takes to try it."""

    launcher: Launcher
    """The launcher."""
    again: Callable[[], Launcher]
    """Makes the launcher anew, as another control process would have it: with no memory of submissions."""
    request: JobSpec
    """A job that its nodes can run: `tests.fakes.gang_job`."""


def _local(tmp_path: Path) -> LauncherBench:
    return LauncherBench(launcher=LocalLauncher(ClusterConfig()), again=lambda: LocalLauncher(ClusterConfig()), request=gang_request(tmp_path))


def _slurm(tmp_path: Path) -> LauncherBench:
    cluster = ClusterConfig(kind=ClusterKind.SLURM, queue="main")
    return LauncherBench(launcher=SlurmLauncher(cluster), again=lambda: SlurmLauncher(cluster), request=gang_request(tmp_path))


def _kubernetes(tmp_path: Path) -> LauncherBench:
    cluster = lab_cluster(tmp_path)
    return LauncherBench(launcher=KubernetesLauncher(cluster), again=lambda: KubernetesLauncher(cluster), request=gang_request(tmp_path))


LAUNCHERS: Mapping[str, Callable[[Path], LauncherBench]] = {"local": _local, "slurm": _slurm, "kubernetes": _kubernetes}
