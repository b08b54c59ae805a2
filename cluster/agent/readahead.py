"""Brings the newest checkpoint into a node's memory while its ranks start again: they wrote it past the page cache, and are about to read it."""

import logging
import os
import re
import threading
from collections.abc import Container

import psutil

from cluster.attempt import newest_commit
from cluster.layout import ArtifactLayout
from cluster.storage import Storage, open_regular
from schemas.checkpoint import CommitRecord
from schemas.errors import HeadraceError
from schemas.sealed import SealBrokenError

logger = logging.getLogger(__name__)

_OF_RANK = re.compile(r"rank-(\d+)\.")
"""Files that a rank wrote; the others are small."""
_ASKED_BYTES = 128 << 10
"""What Linux reads of a larger wish, where a disk has no larger window for reading ahead: the rest is forgotten."""
_MOST_SHARE = 0.25
"""Of the memory that is free: a larger checkpoint would push out what was read first."""


def read_ahead(storage: Storage, layout: ArtifactLayout, *, ranks: Container[int], world_size: int) -> threading.Thread:
    """Begins to read, in a thread of its own, and returns that. What goes wrong costs only the time that it would have saved.

    Args:
        storage: shared storage.
        layout: the artifact.
        ranks: this node's: each verifies, and mostly loads, the files of the ranks that equal it modulo `world_size`.
        world_size: ranks that start.
    """
    thread = threading.Thread(target=_read_ahead, args=(storage, layout, ranks, world_size), name="read ahead", daemon=True)
    thread.start()
    return thread


def _read_ahead(storage: Storage, layout: ArtifactLayout, ranks: Container[int], world_size: int) -> None:
    if not hasattr(os, "posix_fadvise"):  # macOS
        return
    try:
        step = newest_commit(storage, layout)
        if step < 0:
            return
        commit = CommitRecord.from_bytes(storage.read(layout.commit(step)))
        owned = [entry for entry in commit.files if (match := _OF_RANK.match(entry.path)) and int(match[1]) % world_size in ranks]
        if sum(entry.size for entry in owned) > _MOST_SHARE * psutil.virtual_memory().available:
            return
        for entry in owned:
            path = storage.local_path(f"{layout.key}/{commit.folder}/{entry.path}")
            if path is not None:
                with open_regular(path) as file:
                    for offset in range(0, entry.size, _ASKED_BYTES):  # the kernel reads; this thread only asks
                        os.posix_fadvise(file.fileno(), offset, _ASKED_BYTES, os.POSIX_FADV_WILLNEED)
    except (OSError, HeadraceError, SealBrokenError) as error:
        logger.info("nothing is read ahead: %s", error)
