"""Ends what is left of a gang that has lost a part for good, where its launcher leaves the rest running.

The rest cannot go on alone, and holds machines.
"""

import logging
import math

from cluster.launchers.protocol import JobReport, Launcher
from cluster.submission import Patience
from schemas.job import JobKind, JobSpec

logger = logging.getLogger(__name__)

_TELL_AGAIN_S = 30.0
"""Who is told to end needs time to say how it ended."""


class Remains:
    """Of one attempt. Agents that are left conclude from the signal who is lost, and say so in the exit record, or leave that to the supervisor."""

    def __init__(self, spec: JobSpec, *, launcher: Launcher, patience: Patience) -> None:
        """Args: spec: the attempt. launcher: that of its job. patience: for its clock."""
        self._spec, self._launcher, self._patience = spec, launcher, patience
        self._told_at = -math.inf

    def see(self, job: JobReport | None) -> None:
        """Takes what the launcher says of an attempt without an exit record of which a node is silent: one witness might be wrong."""
        now = self._patience.clock()
        if job is None or not job.broken or self._spec.kind is not JobKind.GANG or now - self._told_at < _TELL_AGAIN_S:
            return
        logger.warning("attempt %s has lost a part, the rest is ended: %s", self._spec.key, job.broken)
        self._launcher.cancel(self._spec.key)
        self._told_at = now
