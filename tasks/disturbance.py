"""Kills ranks of a running job on purpose: what the demo and `verify-resume` do to show that nothing is lost."""

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from cluster.agent.scratch import EpochScratch, NodeScratch
from cluster.attempt import read_spec
from cluster.layout import ArtifactLayout
from cluster.process import started_at
from cluster.storage import Storage
from schemas.errors import HeadraceError
from schemas.progress import RankPhase, RankProgress
from tasks.views import job_progress

logger = logging.getLogger(__name__)

_LOOK_S = 0.2
_WATCH_S = 1.0
_POLL_S = 0.01


@dataclass(frozen=True)
class Kill:
    """One kill."""

    rank: int
    """The rank that was killed."""
    step: int
    """The step it had reached, as it told itself."""
    pid: int
    """Its process."""


def at_once(progress: RankProgress) -> bool:
    """A condition that always holds."""
    del progress
    return True


def kill_rank(
    storage: Storage,
    *,
    artifact_key: Callable[[], str | None],
    rank: int,
    at_step: int,
    epoch: int,
    cancelled: threading.Event,
    when: Callable[[RankProgress], bool] = at_once,
) -> Kill | None:
    """Waits until `rank` has reached `at_step` in `epoch` or a later one, sends it SIGKILL, and returns what was killed.

    Args:
        artifact_key: the training artifact's folder, or None while it is not known yet.
        rank: the victim; must run on this machine.
        at_step: least step.
        epoch: least epoch: each start of ranks can be killed once.
        cancelled: ends the wait; None is returned then.
        when: what else must hold of the victim.
    """
    while not cancelled.wait(_LOOK_S):
        try:
            key = artifact_key()
            scratch = _scratch(storage, key, epoch=epoch) if key else None
        except (OSError, HeadraceError) as error:  # storage that does not answer, or an object removed since it was listed: look again
            logger.info("looking for rank %d again: %s", rank, error)
            continue
        victim = _wait_for(scratch, rank=rank, at_step=at_step, cancelled=cancelled, when=when) if scratch else None
        if victim is None:
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


def _scratch(storage: Storage, key: str, *, epoch: int) -> EpochScratch | None:
    """Where the ranks of this machine tell of themselves, step by step, in a live epoch that may be killed. Heartbeats are a second old."""
    job = job_progress(storage, key, now=time.time())
    if job is None or not job.alive:
        return None
    spec = read_spec(storage, ArtifactLayout(key).attempt(job.job, job.attempt))
    for beat in job.heartbeats:
        if beat.host == socket.gethostname() and beat.epoch >= epoch:
            return NodeScratch(Path(spec.scratch_dir) / f"n{beat.node_rank:04d}").epoch(beat.epoch)
    return None


def _wait_for(
    scratch: EpochScratch, *, rank: int, at_step: int, cancelled: threading.Event, when: Callable[[RankProgress], bool]
) -> RankProgress | None:
    """Returns the rank's progress once it has reached the step; None when it has not within a few looks: the epoch may have ended."""
    deadline = time.monotonic() + _WATCH_S
    while time.monotonic() < deadline and not cancelled.wait(_POLL_S):
        for progress in scratch.progress():
            due = progress.rank == rank and progress.phase is RankPhase.STEPPING and progress.step >= at_step and when(progress)
            if due and is_still(progress):
                return progress
    return None
