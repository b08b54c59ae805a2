"""Removes locks of compilations that were killed: a later start of ranks would wait for them for ever.

torch compiles an operator under a file `lock`, which it creates exclusively, keeps open, and removes at the end
(`torch.utils.file_baton`, `torch.utils.cpp_extension`). Nothing in the file says who it was; that nobody has it open any more does.
"""

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from cluster.file_system import NETWORK_FILE_SYSTEMS, file_system_of, mounts_here

logger = logging.getLogger(__name__)

_LOCKS = ("*/lock", "*/*/lock")
"""Below the folder that TORCH_EXTENSIONS_DIR names, and below torch's own, which has one more level: Python's version and the device."""


def remove_dead_locks(environment: Mapping[str, str]) -> tuple[Path, ...]:
    """Removes the locks that no process holds any more and returns them. What another machine or user may hold is only told.

    Args:
        environment: of the compute processes.
    """
    locks = {path: found for pattern in _LOCKS for path in _folder(environment).glob(pattern) if (found := _stat(path)) is not None}
    if not locks:
        return ()
    held, removed, mounts = set(_open_files()), [], mounts_here()
    for path, found in locks.items():
        if (found.st_dev, found.st_ino) in held:
            continue
        kind = file_system_of(path.parent, mounts=mounts)
        if kind in NETWORK_FILE_SYSTEMS or found.st_uid != os.getuid():
            whose = f"other machines may hold it ({kind})" if kind in NETWORK_FILE_SYSTEMS else f"it belongs to user {found.st_uid}"
            logger.warning("a compilation holds %s, or was killed: %s. Remove it if nothing is compiled", path, whose)
            continue
        path.unlink(missing_ok=True)
        logger.warning("removed %s: the process that compiled there was killed", path)
        removed.append(path)
    return tuple(removed)


def _folder(environment: Mapping[str, str]) -> Path:
    """Returns where torch compiles."""
    if named := environment.get("TORCH_EXTENSIONS_DIR"):
        return Path(named)
    caches = environment.get("XDG_CACHE_HOME") or Path(environment.get("HOME", "/")) / ".cache"
    return Path(caches, "torch_extensions")


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.lstat()
    except FileNotFoundError:  # released meanwhile
        return None


def _open_files() -> Iterator[tuple[int, int]]:
    """Yields device and inode of every file that a process of this machine has open, as far as we may know."""
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            with contextlib.suppress(OSError):  # it has ended, or is another user's
                for descriptor in os.scandir(process / "fd"):
                    with contextlib.suppress(OSError):  # closed meanwhile
                        found = descriptor.stat()
                        yield found.st_dev, found.st_ino
