"""What tests need of their machine beyond Python: the markers of such tests, and whether it is there."""

import functools
import os
import shutil
from pathlib import Path

from tests.fakes.kubernetes_cluster import programs_there
from tests.fakes.other_user import python_for_others
from tests.fakes.postgres_server import postgres_programs

NEEDS = {
    "images": "root with the right to mount file systems, and buildah mmdebstrap (apt-get install)",
    "kubernetes": "root, openssl, and Kubernetes' programs (python3 infra/kubernetes/test_cluster.py build)",
    "mount": "root with the right to mount file systems",
    "services": "postgresql, and systemd's systemd-analyze (apt-get install)",
    "slurm": "root, and slurmctld slurmd slurm-client munge (apt-get install)",
    "users": "root, and a Python that other users may run",
}
"""Marker → what its tests need, and how to get it."""


@functools.cache
def lacks(marker: str) -> bool:
    """Whether this machine lacks what tests of a marker need."""
    match marker:
        case "images":
            return not (_may_mount() and all(map(shutil.which, ("buildah", "mmdebstrap"))))
        case "kubernetes":
            return not (_may_mount() and shutil.which("openssl") and programs_there())
        case "mount":
            return not _may_mount()
        case "services":
            return postgres_programs() is None or shutil.which("systemd-analyze") is None
        case "slurm":
            return os.geteuid() != 0 or not all(shutil.which(name) for name in ("slurmctld", "slurmd", "munged", "squeue"))
        case "users":
            return os.geteuid() != 0 or python_for_others() is None
        case _:
            raise KeyError(marker)


def _may_mount() -> bool:
    """Whether this process may mount file systems: CAP_SYS_ADMIN, capability 21 of linux/capability.h, is in force."""
    (effective,) = (line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff:"))
    return bool(int(effective, 16) >> 21 & 1)
