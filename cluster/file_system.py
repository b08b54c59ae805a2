"""What kind of file system a folder lies on, and whether other machines see it."""

from pathlib import Path

NETWORK_FILE_SYSTEMS = ("nfs", "nfs4", "lustre", "gpfs", "beegfs", "cifs", "smb3", "ceph", "fuse.sshfs", "fuse.s3fs", "9p")
"""Kinds that several machines see."""


def file_system_of(folder: Path, *, mounts: str) -> str:
    """Returns the type of the file system that `folder` lies on, from the text of /proc/mounts."""
    best, kind = "", "unknown"
    for line in mounts.splitlines():
        fields = line.split()
        if len(fields) < 3:
            continue
        point = fields[1].replace("\\040", " ")
        if (folder == Path(point) or Path(point) in folder.parents) and len(point) >= len(best):
            best, kind = point, fields[2]
    return kind


def mounts_here() -> str:
    """Returns the text of /proc/mounts."""
    return Path("/proc/mounts").read_text(encoding="utf-8", errors="replace")
