"""Brings an attempt, whose intent is written, into a launcher's hands: kept as submitted, submitted until the launcher has it for certain."""

import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from cluster.closing import claim_to_close, close
from cluster.elastic import refused
from cluster.launchers.protocol import JobReport, JobState, Launcher, NoRoomError, Submission
from cluster.layout import ArtifactLayout, AttemptLayout
from cluster.restart import Decision
from cluster.storage import AlreadyExistsError, Storage
from schemas.attempt import AttemptVerdict, Cause, Submitted
from schemas.canonical import canonical_json
from schemas.errors import ConfigError, Problem, UnreachableError
from schemas.job import JobSpec

logger = logging.getLogger(__name__)

_SUBMISSIONS = 3
"""How often an attempt is submitted to a launcher that answers, refuses it for now, and does not have it."""
_ROOM_AGAIN_S = 15.0
"""Pause before a job is submitted again for which there was no room."""
_SUBMIT_AGAIN_S = 1.0
"""Pause before the second submission; the next one is as much longer."""


@dataclass(frozen=True)
class Patience:
    """How a supervisor waits: until it is asked to stop."""

    clock: Callable[[], float]
    """Monotonic seconds."""
    sleep: Callable[[float], None]
    """Waits."""
    poll_s: float
    """Seconds between two looks."""
    stop_requested: Callable[[], bool]
    """Whether to stop gracefully."""
    wall: Callable[[], float] = time.time
    """Seconds since the Unix epoch."""

    def pause(self, seconds: float) -> None:
        """Waits, unless somebody wishes a stop."""
        deadline = self.clock() + seconds
        while (left := deadline - self.clock()) > 0 and not self.stop_requested():
            self.sleep(min(left, self.poll_s))

    def ask(self, launcher: Launcher, key: str, *, while_in: frozenset[JobState], most_s: float) -> JobReport:
        """Returns what a launcher answers once it is none of `while_in`, or after `most_s` at the latest."""
        deadline = self.clock() + most_s
        while True:
            report = launcher.query([key])[key]
            if report.state not in while_in or self.clock() > deadline or self.stop_requested():
                return report
            self.sleep(self.poll_s)


def submit_attempt(spec: JobSpec, *, storage: Storage, launcher: Launcher, patience: Patience) -> None:
    """Submits an attempt whose spec is in storage, and notes what the launcher answered.

    Raises:
        ConfigError: the launcher will never take it, and there is no smaller one to try, for which this one would only be closed. The attempt
            is closed: the next start submits what has been mended meanwhile.
        UnreachableError: the launcher did not take it, or nobody could be asked whether it did.
    """
    attempt = ArtifactLayout(spec.artifact_key).attempt(spec.step_name, spec.attempt)
    submission = launcher.render(spec)
    with contextlib.suppress(AlreadyExistsError):  # a submitter that died meanwhile kept it
        storage.create_exclusive(attempt.submission, submission.text.encode())
    try:
        job_id = _job_of(spec, submission, launcher=launcher, patience=patience)
    except ConfigError as error:
        has_smaller = spec.withdraw_after_s is not None
        _close_refused(spec, error, storage=storage, launcher=launcher, cause=Cause.QUEUE if has_smaller else Cause.CANCELLED)
        if has_smaller:
            return
        raise
    answer = Submitted(key=spec.key, launcher=launcher.kind, job_id=job_id, at=patience.wall())
    with contextlib.suppress(AlreadyExistsError):  # submitted before; the claim lets one of them work
        storage.create_exclusive(attempt.submitted, canonical_json(answer))
    logger.info("submitted attempt %s as job %s", spec.key, job_id)


def _close_refused(spec: JobSpec, error: ConfigError, *, storage: Storage, launcher: Launcher, cause: Cause) -> None:
    """Closes an attempt that the launcher will never take. Of one that makes room for a smaller one the supervisor decides as if it had waited."""
    attempt, said = ArtifactLayout(spec.artifact_key).attempt(spec.step_name, spec.attempt), tuple(error.what.splitlines())
    if not claim_to_close(storage, attempt, spec=spec, cause=cause):
        return  # a job has begun all the same
    close(storage, spec, cause=cause, evidence=(refused(spec, launcher=launcher.kind), *said) if cause is Cause.QUEUE else said)
    if cause is Cause.CANCELLED:
        note_verdict(storage, attempt, Decision("stop", f"refused by {launcher.kind}"))


def note_verdict(storage: Storage, attempt: AttemptLayout, decision: Decision, *, cause: Cause | None = None) -> None:
    """Notes what was decided once an attempt had ended, unless somebody has; `cause`: why the launcher ended it, where it says so."""
    word: Literal["stop", "restart"] = "stop" if decision.action == "stop" else "restart"
    verdict = AttemptVerdict(decision=word, reason=decision.reason, at=time.time(), cause=cause)
    with contextlib.suppress(AlreadyExistsError):
        storage.create_exclusive(attempt.verdict, canonical_json(verdict))


def _job_of(spec: JobSpec, submission: Submission, *, launcher: Launcher, patience: Patience) -> str:
    """Submits until the launcher has the job for certain, and returns what it calls it.

    A submission that failed may have been taken all the same, at once or later: the launcher is asked, and the claim lets one job work.
    """
    count, began_at = 0, patience.clock()
    while True:
        count += 1
        try:
            return launcher.submit(submission).job_id
        except ConfigError:
            if not spec.excluded_nodes or spec.withdraw_after_s is not None:  # fewer nodes are better than those
                raise
            logger.warning("without %s there are too few nodes: submitted without that wish", ", ".join(spec.excluded_nodes))
            spec = spec.model_copy(update={"excluded_nodes": ()})
            submission = launcher.render(spec)
        except NoRoomError as error:
            count = 0
            _wait_for_room(error, spec=spec, waited_s=patience.clock() - began_at, patience=patience)
        except UnreachableError as error:
            job = patience.ask(launcher, spec.key, while_in=frozenset({JobState.UNKNOWN}), most_s=spec.lost_after_s)
            if job.state not in (JobState.ABSENT, JobState.UNKNOWN):
                logger.warning("%s; it has the job all the same", error)
                return job.job_id
            if job.state is JobState.UNKNOWN or count == _SUBMISSIONS or patience.stop_requested():
                raise
            logger.warning("submitted again soon: %s", error)
            patience.pause(_SUBMIT_AGAIN_S * count)


def _wait_for_room(error: NoRoomError, *, spec: JobSpec, waited_s: float, patience: Patience) -> None:
    """Waits before a job is submitted again that is over a quota, as one waits in a queue: for as long as it takes, unless fewer nodes will do.

    Raises:
        ConfigError: it has waited for so long that fewer nodes are asked for.
        NoRoomError: somebody wishes a stop.
    """
    if spec.withdraw_after_s is not None and waited_s > spec.withdraw_after_s:
        raise ConfigError((Problem("cluster.nodes", str(spec.num_nodes), f"{error.what}: {error.why}"),)) from error
    if patience.stop_requested():
        raise error
    logger.warning("%s, submitted again in %.0f s: %s", error.what, _ROOM_AGAIN_S, error.why)
    patience.pause(_ROOM_AGAIN_S)
