"""Launchers: the ways a job gets onto machines, behind one protocol."""

from cluster.launchers.protocol import Launcher
from schemas.cluster_config import ClusterConfig, ClusterKind
from schemas.config import RunConfig
from schemas.stage import Stage

LAUNCHED = (ClusterKind.LOCAL, ClusterKind.SLURM, ClusterKind.KUBERNETES)
"""The kinds of cluster that there is a launcher for."""


def launcher_for(config: RunConfig) -> Launcher:
    """Returns the launcher that `cluster.kind` names.

    Raises:
        ConfigError: what the recipe names to reach its cluster by is not there.
        UnreachableError: its commands are not on this machine, or there is no way to it.
    """
    kind = config.cluster.kind
    if kind is ClusterKind.LOCAL:
        from cluster.launchers.local import LocalLauncher

        return LocalLauncher(config.cluster)
    if kind is ClusterKind.SLURM:
        from cluster.launchers.slurm import SlurmLauncher, require_commands

        require_commands()
        return SlurmLauncher(config.cluster)
    from cluster.launchers.kubernetes import KubernetesLauncher
    from cluster.launchers.kubernetes_api import connect

    return KubernetesLauncher(config.cluster, api=connect(config.cluster))


def machines_see(path: str, cluster: ClusterConfig, *, stage: Stage) -> bool:
    """Whether the machines of a stage have a path of this one. Slurm's share the users' folders; pods have their volumes alone. PURE."""
    if cluster.kind is not ClusterKind.KUBERNETES:
        return True
    from cluster.launchers.kubernetes_manifest import is_mounted

    return is_mounted(path, cluster.kubernetes.pods(stage))
