"""Launchers: the ways a job gets onto machines, behind one protocol."""

from cluster.launchers.protocol import Launcher
from schemas.config import RunConfig
from schemas.errors import ConfigError, Problem
from schemas.execution_config import ClusterKind

LAUNCHED = (ClusterKind.LOCAL, ClusterKind.SLURM)
"""The kinds of cluster that there is a launcher for."""


def launcher_for(config: RunConfig) -> Launcher:
    """Returns the launcher that `cluster.kind` names.

    Raises:
        ConfigError: there is none of that kind in this version.
        UnreachableError: its commands are not on this machine.
    """
    kind = config.cluster.kind
    if kind is ClusterKind.LOCAL:
        from cluster.launchers.local import LocalLauncher

        return LocalLauncher(config.cluster)
    if kind is ClusterKind.SLURM:
        from cluster.launchers.slurm import SlurmLauncher, require_commands

        require_commands()
        return SlurmLauncher(config.cluster)
    there = ", ".join(LAUNCHED)
    raise ConfigError((Problem("cluster.kind", repr(kind.value), f"this version has launchers for: {there}", nearest=ClusterKind.LOCAL.value),))
