"""How much more a folder takes: bytes and inodes that its file system has left, and that the quotas of this user and of the folder's group leave.

Quotas are asked of the programs that know them: `quota` (local file systems, XFS, NFS) and Lustre's `lfs`. Where neither is installed, or
they say nothing of this folder, only the file system counts. A site with another program adds a reader here.
"""

import logging
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.file_system import file_system_of, mounts_here
from cluster.process import user_name

logger = logging.getLogger(__name__)

_PATIENCE_S = 10.0
_HEADING = re.compile(r"^Disk quotas for (?P<kind>user|group) .* \([ug]id (?P<id>\d+)\):")
_COLUMNS = 8
"""Numbers in a line of `quota` and of `lfs quota`: used, soft, hard and grace, of blocks of 1 KiB and of files."""

Ask = Callable[[Sequence[str]], str]
"""Runs a program and returns what it prints; empty when it cannot be run."""


@dataclass(frozen=True)
class Room:
    """What is left, by one who counts."""

    source: str
    """Who counts, for people: `the file system of /shared`, `the quota of user ada`."""
    free_bytes: int | None
    """None: no limit."""
    free_inodes: int | None
    """Files and folders; None: no limit."""


def rooms_of(folder: Path, *, ask: Ask | None = None, mounts: str | None = None) -> tuple[Room, ...]:
    """Returns the room in an existing folder, by everybody who counts.

    Args:
        folder: where something is to be written.
        ask: runs the programs that know quotas. Default: those that are installed.
        mounts: text of /proc/mounts.
    """
    found = os.statvfs(folder)
    inodes = found.f_favail if found.f_files else None  # file systems such as btrfs have no fixed number of them
    system = Room(f"the file system of {folder}", free_bytes=found.f_bavail * found.f_frsize, free_inodes=inodes)
    kind = file_system_of(folder.resolve(), mounts=mounts_here() if mounts is None else mounts)
    return (system, *_quotas(folder, kind=kind, ask=ask or _run))


def _quotas(folder: Path, *, kind: str, ask: Ask) -> Iterator[Room]:
    place, group = _mount_point(folder), folder.stat().st_gid  # files in a setgid folder are charged to its group
    for flag, counted, number, who in (("-u", "user", os.geteuid(), user_name()), ("-g", "group", group, str(group))):
        if kind == "lustre":
            yield from _room_of(ask(("lfs", "quota", "-q", flag, str(number), str(place))).split(), who=f"{counted} {who}")
            continue
        for line in _lines_about(ask(("quota", flag, "-w", "-p", "-f", str(place))), counted=counted, number=number):
            yield from _room_of(line.split(), who=f"{counted} {who}")


def _lines_about(answer: str, *, counted: str, number: int) -> Iterator[str]:
    """Yields the lines of `quota -w -p` on one user or group: it answers for every group of the caller's."""
    is_meant = False
    for line in answer.splitlines():
        if heading := _HEADING.match(line):
            is_meant = (heading["kind"], int(heading["id"])) == (counted, number)
        elif is_meant:
            yield line


def _room_of(words: Sequence[str], *, who: str) -> Iterator[Room]:
    """Yields the room that one line leaves; nothing for a heading, or where there is no limit. A long name of a device comes before the numbers."""
    columns = [_number(word) for word in words[-_COLUMNS:]]
    if len(columns) < _COLUMNS:
        return
    blocks, files = _left(columns[:3]), _left(columns[4:7])
    if blocks is not None or files is not None:
        yield Room(f"the quota of {who}", free_bytes=None if blocks is None else blocks * 1024, free_inodes=files)


def _number(word: str) -> int | None:
    """Returns a number of `quota`, which marks with a star what has passed its limit; None for what is none."""
    digits = word.rstrip("*").strip("[]")
    return int(digits) if digits.isdecimal() else None


def _left(columns: Sequence[int | None]) -> int | None:
    """Returns what is left below the hard limit, or the soft one where there is no hard one; None without a limit."""
    used, soft, hard = columns
    limit = hard or soft
    return None if used is None or not limit else max(0, limit - used)


def _mount_point(folder: Path) -> Path:
    folder = folder.resolve()
    return next(parent for parent in (folder, *folder.parents) if os.path.ismount(parent))


def _run(argv: Sequence[str]) -> str:
    if shutil.which(argv[0]) is None:
        return ""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_PATIENCE_S, check=False, env={**os.environ, "LC_ALL": "C"})
    except (OSError, subprocess.TimeoutExpired) as error:
        logger.warning("%s does not answer: %s", argv[0], error)
        return ""
    return done.stdout  # `quota` ends with 1 when a limit is passed, and when there is none
