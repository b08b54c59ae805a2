"""Files of an artifact that a work item has begun and not published yet, and what is left of them when it was killed."""

import logging
import os
import re
from collections.abc import Collection
from pathlib import Path

from cluster.storage import TEMPORARY_PREFIX

logger = logging.getLogger(__name__)

_NAME = re.compile(rf"^{re.escape(TEMPORARY_PREFIX)}e(?P<epoch>\d{{6,}})-(?P<pid>\d+)-")


def unfinished_path(final: Path, *, epoch: int, pid: int) -> Path:
    """Returns where a process of a start writes what is to become `final`: in the same folder, under a name of its own."""
    return final.with_name(f"{TEMPORARY_PREFIX}e{epoch:06d}-{pid}-{final.name}")


def remove_unfinished(folder: Path, *, writers: Collection[tuple[int, int]] | None = None) -> None:
    """Removes unfinished files anywhere below `folder`. What cannot be removed, or listed, stays and is told: it is no part of anything.

    What `Storage.create_exclusive` is about to create has other names, and is left alone.

    Args:
        writers: (epoch, pid) of those whose files go; None: all items', when none of them writes any more.
    """
    for place, _, names in os.walk(folder, onerror=_tell):
        for name in names:
            match = _NAME.match(name)
            if match is not None and (writers is None or (int(match["epoch"]), int(match["pid"])) in writers):
                try:
                    (Path(place) / name).unlink(missing_ok=True)
                except OSError as error:
                    _tell(error)


def _tell(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        logger.warning("unfinished files stay: %s", error)
