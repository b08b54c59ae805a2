"""Takes an attempt back out of a queue that does not give its nodes, once, so that a smaller one can be asked for.

First the attempt's claim is taken: from then on its job, should it start after all, finds it taken and ends. Then the launcher is told to let go of
the job, until it has. Then the exit record follows, and the next attempt. Whoever dies on the way is followed by another supervisor, which finds
the claim, and goes on from there.
"""

import logging
import math

from cluster.closing import claim_to_close, close_unbegun
from cluster.elastic import not_given
from cluster.launchers.protocol import JobReport, JobState, Launcher
from cluster.layout import ArtifactLayout
from cluster.storage import Storage
from cluster.submission import Patience
from schemas.attempt import Cause, Claim, ExitRecord, Submitted
from schemas.job import JobSpec

logger = logging.getLogger(__name__)

_TELL_AGAIN_S = 5.0
"""A launcher that still has the job is told again so often."""
_GONE = frozenset({JobState.ENDED, JobState.ABSENT})


class QueueWatch:
    """How long one attempt waits for its nodes, and its way out of the queue."""

    def __init__(self, spec: JobSpec, *, storage: Storage, launcher: Launcher, patience: Patience) -> None:
        """Args: spec: the attempt that is followed. patience: for its clocks."""
        self._spec, self._storage, self._launcher, self._patience = spec, storage, launcher, patience
        self._waits_since: float | None = None
        """By the supervisor's clock, since when nothing but nodes is missing."""
        self._closed_since: float | None = None
        """When the claim that closes it was seen first."""
        self._told_at = -math.inf

    def see(self, job: JobReport, submitted: Submitted | None) -> None:
        """Takes what the launcher says of an attempt that nobody has claimed, and claims it when it has waited for too long.

        What others have seen of the wait counts as far as the submission tells; time on hold does not, as far as it was seen here.
        """
        if self._spec.withdraw_after_s is None or job.state is not JobState.PENDING:
            return
        now = self._patience.clock()
        if job.held:
            self._waits_since = now
        elif self._waits_since is None:
            since = submitted.at if submitted is not None else self._spec.intended_at
            self._waits_since = now - max(0.0, self._patience.wall() - since)
        if now - self._waits_since <= self._spec.withdraw_after_s or self._patience.stop_requested():
            return
        attempt = ArtifactLayout(self._spec.artifact_key).attempt(self._spec.step_name, self._spec.attempt)
        if claim_to_close(self._storage, attempt, spec=self._spec, cause=Cause.QUEUE):
            logger.warning("%s: attempt %s is withdrawn", not_given(self._spec), self._spec.key)

    def finish(self, job: JobReport, claim: Claim) -> ExitRecord | None:
        """Returns the exit record of an attempt that was claimed to close it, once the launcher has let go of its job.

        A launcher that does not answer, or does not let go, is waited for no longer than `lost_after`: its job ends at the claim.
        """
        now = self._patience.clock()
        if self._closed_since is None:
            self._closed_since = now
        is_told = self._told_at > -math.inf
        if is_told and (job.state in _GONE or now - self._closed_since > self._spec.lost_after_s):
            return close_unbegun(self._storage, self._spec, claim=claim)
        if now - self._told_at >= _TELL_AGAIN_S:
            self._launcher.cancel(self._spec.key)
            self._told_at = now
        return None
