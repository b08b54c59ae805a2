"""What a test leaves in shared memory, on a machine where others use it, too."""

import time
from pathlib import Path

import psutil

_FOLDER = Path("/dev/shm")
_PATIENCE_S = 10.0


def shared_memory() -> frozenset[str]:
    """Returns the names that there are, to compare with later."""
    return frozenset(path.name for path in _FOLDER.iterdir())


def left_since(before: frozenset[str]) -> frozenset[str]:
    """Returns the names that came since, but for those that a living process maps which is neither this one nor its child.

    Others' names may be removed, or mapped, a moment after they were made: what stays is looked at again for a while.
    """
    deadline = time.monotonic() + _PATIENCE_S
    while (left := shared_memory() - before - _used_by_others()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


def _used_by_others() -> frozenset[str]:
    this = psutil.Process()
    own = {this.pid, *(child.pid for child in this.children(recursive=True))}
    used = set[str]()
    for pid in set(psutil.pids()) - own:
        try:
            lines = Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines()
        except OSError:  # it ended meanwhile, or is another user's
            continue
        used.update(line.rpartition(f"{_FOLDER}/")[2] for line in lines if f" {_FOLDER}/" in line)
    return frozenset(used)
