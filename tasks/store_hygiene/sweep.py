"""Removes one artifact, so that nobody ever uses half of it; and waits for those who do.

Under the artifact's lease: the mark in `sweeps/` first, then the record, so that it is not done any more, then all else but the leases, then
the mark. Whoever dies on the way leaves either a whole artifact, or one without a record that has a mark: the next one to take its lease, to
build it again or to remove it, removes the rest first.

A run says which artifact it uses (its pointer) before it looks whether somebody holds the lease of it; a sweep takes the lease before it looks
which artifacts are used. So one of the two always sees the other.
"""

import contextlib
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

from cluster.layout import ArtifactLayout, sweep_key
from cluster.lease import REMOVAL, live_holder
from cluster.process import owner_here
from cluster.storage import AlreadyExistsError, Storage
from schemas.canonical import canonical_json
from schemas.pin import SweepMark

_POLL_S = 0.2


def announce_sweep(storage: Storage, key: str) -> None:
    """Marks an artifact as being removed and removes its record. The caller holds its lease, and knows that nobody uses it."""
    with contextlib.suppress(AlreadyExistsError):  # of a sweep that was interrupted
        storage.create_exclusive(sweep_key(key), canonical_json(SweepMark(by=owner_here(), at=time.time())))
    storage.delete(ArtifactLayout(key).record)


def finish_sweep(storage: Storage, key: str, *, held: Callable[[], bool]) -> bool:
    """Removes what a sweep has left of an artifact, all but its leases; returns whether there was one that is over now.

    Args:
        storage: where it lies.
        key: its folder.
        held: whether the caller still holds the lease; asked before each removal, which may take long. Who takes the lease over finishes the
            sweep and may build there at once: nothing more may go then.
    """
    if not storage.exists(sweep_key(key)) or storage.exists(ArtifactLayout(key).record):
        return False
    leases = ArtifactLayout(key).leases.rpartition("/")[2]
    for going in (*(f"{key}/{name}" for name in storage.names(key) if name != leases), sweep_key(key)):
        if not held():
            return False
        storage.delete(going)
    return True


def withdraw_sweep(storage: Storage, key: str) -> None:
    """Takes back the mark of a sweep that was interrupted before it removed anything. The caller holds the lease."""
    if storage.exists(ArtifactLayout(key).record):
        storage.delete(sweep_key(key))


def wait_for_sweep(storage: Storage, key: str, *, stop_requested: Callable[[], bool] = lambda: False) -> None:
    """Returns once nobody is about to remove the artifact in `key`. The caller has said before that it uses it: what is there then, stays.

    Args:
        stop_requested: ends the wait.
    """
    leases = ArtifactLayout(key).leases
    while (holder := live_holder(storage, leases)) is not None and holder.purpose == REMOVAL and not stop_requested():
        time.sleep(_POLL_S)


def may_remove(storage: Storage, key: str) -> str:
    """Returns why this user cannot remove every file of an artifact, as far as the file system tells beforehand; empty when they can."""
    folder = storage.local_path(key)
    if folder is None:
        return ""
    for place in _folders(folder):
        found = place.stat()
        if not os.access(place, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
            return f"this user may not write in {place}"
        if found.st_mode & stat.S_ISVTX and os.geteuid() not in (0, found.st_uid):
            return f"{place} is sticky: only the owners of its files may remove them"
    return ""


def _folders(folder: Path) -> list[Path]:
    return [Path(place) for place, _, _ in os.walk(folder, followlinks=False)]
