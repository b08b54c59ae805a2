"""Files of an artifact that a work item has begun and not published yet, and what is left of them when it was killed."""

import logging
import os
from pathlib import Path

from cluster.storage import TEMPORARY_PREFIX

logger = logging.getLogger(__name__)

_PREFIX = f"{TEMPORARY_PREFIX}e"


def unfinished_path(final: Path, *, epoch: int, pid: int) -> Path:
    """Returns where a process of a start writes what is to become `final`: in the same folder, under a name of its own."""
    return final.with_name(f"{_prefix(epoch, pid)}{final.name}")


def remove_unfinished(folder: Path, *, writer: tuple[int, int] | None = None) -> None:
    """Removes unfinished files anywhere below `folder`. One that cannot be removed stays and is told: it is no part of anything.

    Args:
        writer: (epoch, pid) of the one whose files go; None: everybody's, when nobody writes any more.
    """
    prefix = _PREFIX if writer is None else _prefix(*writer)
    for place, _, names in os.walk(folder):
        for name in names:
            if name.startswith(prefix):
                try:
                    (Path(place) / name).unlink(missing_ok=True)
                except OSError as error:
                    logger.warning("an unfinished file stays: %s", error)


def _prefix(epoch: int, pid: int) -> str:
    return f"{_PREFIX}{epoch:06d}-{pid}-"
