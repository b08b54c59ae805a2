"""Kills ranks of a running job on purpose: what the demo and `verify-resume` do to show that nothing is lost."""

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from cluster.process import started_at
from cluster.storage import Storage
from schemas.errors import HeadraceError
from schemas.job import RankPhase, RankProgress
from tasks.views import job_progress

logger = logging.getLogger(__name__)

_POLL_S = 0.2


@dataclass(frozen=True)
class Kill:
    """One kill."""

    rank: int
    """The rank that was killed."""
    step: int
    """The step it had reached, by its last heartbeat."""
    pid: int
    """Its process."""


def kill_rank(
    storage: Storage, *, artifact_key: Callable[[], str | None], rank: int, at_step: int, epoch: int, cancelled: threading.Event
) -> Kill | None:
    """Waits until `rank` has reached `at_step` in `epoch` or a later one, sends it SIGKILL, and returns what was killed.

    Args:
        artifact_key: the training artifact's folder, or None while it is not known yet.
        rank: the victim; must run on this machine.
        at_step: least step.
        epoch: least epoch: each start of ranks can be killed once.
        cancelled: ends the wait; None is returned then.
    """
    while not cancelled.wait(_POLL_S):
        try:
            key = artifact_key()
            victim = _find(storage, key, rank=rank, epoch=epoch) if key else None
        except (OSError, HeadraceError) as error:  # storage that does not answer, or an object removed since it was listed: look again
            logger.info("looking for rank %d again: %s", rank, error)
            continue
        if victim is None or victim.phase is not RankPhase.STEPPING or victim.step < at_step or not is_still(victim):
            continue
        try:
            os.kill(victim.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):  # ended between the look and the kill; its pid may be another user's by now
            continue
        return Kill(rank=rank, step=victim.step, pid=victim.pid)
    return None


def is_still(progress: RankProgress) -> bool:
    """Whether the pid that a rank told is still its own.

    What a rank tells is seconds old when it is read. By then the rank may have ended and its pid may be another process's,
    which has started after the rank last spoke.
    """
    started = started_at(progress.pid)
    return started is not None and psutil.boot_time() + started <= progress.at


def _find(storage: Storage, key: str, *, rank: int, epoch: int) -> RankProgress | None:
    """The rank's progress, when its process lives on this machine in an epoch that may be killed."""
    job = job_progress(storage, key, now=time.time())
    if job is None or not job.alive:
        return None
    for beat in job.heartbeats:
        if beat.host == socket.gethostname() and beat.epoch >= epoch:
            for progress in beat.ranks:
                if progress.rank == rank:
                    return progress
    return None
