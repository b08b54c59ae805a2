"""Closes attempts that cannot close themselves: takes their claim when nobody has it, and writes their exit record.

Both are fences. A late job of a closed attempt loses the claim and starts nothing; a late agent sees the exit record and stops.
"""

import contextlib
import shutil
import time
from pathlib import Path

from cluster.agent.scratch import NodeScratch
from cluster.attempt import claim_attempt, newest_commit, read_exit, read_heartbeats, read_incidents
from cluster.elastic import not_given
from cluster.launchers.protocol import JobReport, Launcher
from cluster.layout import ArtifactLayout, AttemptLayout
from cluster.liveness import Signs
from cluster.restart import EVIDENCE_LINES
from cluster.storage import AlreadyExistsError, Storage
from schemas.attempt import Cause, Claim, ExitRecord, Incident
from schemas.canonical import canonical_json
from schemas.exit_code import ExitCode
from schemas.job import JobSpec

LEFT_OPEN = "the attempt is over; the supervisor decides what follows"
"""Reason of incidents that end an attempt and decide nothing."""

_BY_SUPERVISOR = "supervisor"
"""Submission token of claims that are taken only to close an attempt; behind a colon follows why."""


def claim_to_close(storage: Storage, attempt: AttemptLayout, *, spec: JobSpec, cause: Cause | None = None) -> bool:
    """Takes the claim of an attempt that nobody has claimed, so that nobody will; False when a job was faster.

    Args:
        storage: shared storage.
        attempt: the attempt.
        spec: its spec.
        cause: what it is going to be closed with. Whoever finds the claim of one that died before it did so closes it with that.
    """
    return claim_attempt(storage, attempt, key=spec.key, submission=f"{_BY_SUPERVISOR}:{cause.value}" if cause is not None else _BY_SUPERVISOR)


def is_to_close(claim: Claim) -> bool:
    """Whether a claim was taken only to close its attempt: nothing has begun, and nothing will."""
    return claim.submission.partition(":")[0] == _BY_SUPERVISOR


def close_unbegun(storage: Storage, spec: JobSpec, *, claim: Claim) -> ExitRecord:
    """Writes the exit record of an attempt whose claim was taken to close it, and returns the one that stands."""
    why = claim.submission.partition(":")[2]
    if why:
        cause = Cause(why)
    else:
        wished = storage.exists(ArtifactLayout(spec.artifact_key).attempt(spec.step_name, spec.attempt).cancel)
        cause = Cause.CANCELLED if wished else Cause.KILLED
    what = not_given(spec) if cause is Cause.QUEUE else "closed before it began"
    shutil.rmtree(spec.scratch_dir, ignore_errors=True)  # where its launcher made one, nothing is in it
    return close(storage, spec, cause=cause, evidence=(what,))


def close_gone(
    storage: Storage, spec: JobSpec, *, launcher: Launcher, claim: Claim | None, signs: Signs, job: JobReport | None = None
) -> ExitRecord | None:
    """Closes an attempt that is gone and returns its exit record. None when it turned out to be claimed meanwhile: it lives.

    Args:
        storage: shared storage.
        spec: the attempt.
        launcher: asked to stop what may be left of it on other nodes.
        claim: its claim, if there is one.
        signs: why it counts as gone.
        job: what the launcher says of it.
    """
    attempt = ArtifactLayout(spec.artifact_key).attempt(spec.step_name, spec.attempt)
    cause = (job.cause if job is not None else None) or Cause.NODE
    if claim is None and not claim_to_close(storage, attempt, spec=spec, cause=cause):
        return None
    launcher.cancel(spec.key)
    last_words = _last_words(spec)
    told = (job.told if job is not None else "") or signs.job.value
    if claim is None:
        return close(storage, spec, cause=cause, evidence=(f"the job ended before its agent started (launcher: {told})", *last_words))
    agent = f"the agent (pid {claim.pid} on {claim.host})"
    if signs.process_dead:
        shutil.rmtree(spec.scratch_dir, ignore_errors=True)  # it was on this machine, and nobody else will
        killed = (job.cause if job is not None else None) or Cause.KILLED
        return close(storage, spec, cause=killed, evidence=(f"{agent} has ended without an exit record", *last_words))
    evidence = (f"no heartbeat of {agent} for {signs.silent_s:.0f} s", f"launcher: {told}", *last_words)
    return close(storage, spec, cause=cause, evidence=evidence)


def close(storage: Storage, spec: JobSpec, *, cause: Cause, evidence: tuple[str, ...]) -> ExitRecord:
    """Writes the exit record of a claimed attempt that will not write its own, and returns the one that stands.

    Args:
        storage: shared storage.
        spec: the attempt.
        cause: why it ended.
        evidence: what is known; the first line is for people.
    """
    layout = ArtifactLayout(spec.artifact_key)
    attempt = layout.attempt(spec.step_name, spec.attempt)
    beats, past = read_heartbeats(storage, attempt), read_incidents(storage, attempt)
    incident = Incident(
        epoch=max((beat.epoch for beat in beats), default=-1),
        at=time.time(),
        cause=cause,
        rank=-1,
        step=max((rank.step for beat in beats for rank in beat.ranks), default=-1),
        committed_step=sum(beat.items_done for beat in beats) or newest_commit(storage, layout),
        exit_status=0,
        evidence=evidence,
        decision="stop",
        reason=LEFT_OPEN,
    )
    record = ExitRecord(
        key=spec.key,
        exit_code=ExitCode.OUT_OF_MEMORY if cause is Cause.OUT_OF_MEMORY else ExitCode.INTERRUPTED,
        cause=cause,
        message=evidence[0],
        epoch=incident.epoch,
        incidents=(*past, incident),
        ended_at=incident.at,
    )
    with contextlib.suppress(AlreadyExistsError):  # it, or another supervisor, was faster
        storage.create_exclusive(attempt.exit, canonical_json(record))
    standing = read_exit(storage, attempt)
    assert standing is not None
    return standing


def _last_words(spec: JobSpec) -> tuple[str, ...]:
    """Returns the end of the first agent's own log, or of a batch job's that did not get so far, when the scratch folder is on this machine."""
    folder = Path(spec.scratch_dir)
    logs = (NodeScratch(folder / "n0000").agent_log, *sorted(folder.glob("*.out")))
    log = next((log for log in logs if log.exists() and log.stat().st_size > 0), None)
    return tuple(log.read_text(errors="replace").splitlines()[-EVIDENCE_LINES:]) if log is not None else ()
