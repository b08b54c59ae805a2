"""What follows the end of an attempt: facts from storage and launcher are gathered here, `cluster.restart.decide` decides."""

from cluster.attempt import counted_history
from cluster.launchers.protocol import JobReport, JobState, Launcher
from cluster.layout import ArtifactLayout
from cluster.restart import INTERRUPTIONS, Decision, decide, idle_starts
from cluster.storage import Storage
from cluster.submission import Patience, note_verdict
from schemas.attempt import Cause, ExitRecord
from schemas.exit_code import ExitCode
from schemas.job import JobKind, JobSpec

KNOWN = frozenset({JobState.PENDING, JobState.RUNNING})
"""The launcher says that the job lives."""
_SETTLE_S = 60.0
"""Longest wait for a launcher to notice the end of a job that has left its exit record; its answers may be half a minute old."""


def verdict_on(record: ExitRecord, *, spec: JobSpec, storage: Storage, launcher: Launcher, patience: Patience) -> Decision:
    """Decides what follows an attempt, and notes it. Only interruptions are left to decide: failures the agent has judged.

    Args:
        record: how it ended.
        spec: the attempt.
        storage: shared storage.
        launcher: asked why the job ended, where that makes a difference.
        patience: how long to wait for its answer.
    """
    layout, told = ArtifactLayout(spec.artifact_key), JobReport(JobState.ENDED)
    if record.cause is Cause.QUEUE:
        decision = Decision("restart", f"{record.message}: the next attempt asks for fewer, and uses up no budget")
    elif record.exit_code is not ExitCode.INTERRUPTED or record.cause not in INTERRUPTIONS or not record.incidents:
        decision = Decision("stop", "done" if record.exit_code is ExitCode.DONE else record.message, exit_code=record.exit_code)
    elif record.cause is Cause.PREEMPTION and (told := _end_by_launcher(record.key, launcher, patience)).cause is Cause.CANCELLED:
        decision = Decision("stop", f"cancelled by somebody in the queue of {launcher.kind}", exit_code=ExitCode.INTERRUPTED)
    else:
        counted = counted_history(storage, layout, spec=spec)
        last = record.incidents[-1]
        past = (*counted.incidents, *record.incidents[:-1])
        starts = past if spec.kind is JobKind.GANG else [incident for incident in past if incident.rank < 0]  # items restart apart
        idle = idle_starts(starts, committed_step=last.committed_step, baseline=counted.baseline)
        cause = told.cause if told.cause is not None and told.cause in INTERRUPTIONS else last.cause
        decision = decide(past, cause=cause, idle=idle, limits=spec.limits)
    note_verdict(storage, layout.attempt(spec.step_name, spec.attempt), decision, cause=told.cause)
    if told.state is JobState.PENDING:  # an administrator has put it back into the queue, where it would only wait to find its attempt over
        launcher.cancel(record.key)
    return decision


def _end_by_launcher(key: str, launcher: Launcher, patience: Patience) -> JobReport:
    """Returns what the launcher says of a job that has ended. To its agents a job that somebody cancels looks like one that is preempted."""
    return patience.ask(launcher, key, while_in=KNOWN | {JobState.UNKNOWN}, most_s=_SETTLE_S)
