"""The attempts of an artifact's job, as storage tells: intent, claim, life signs, end, and what of their history counts."""

import re
import time
from dataclasses import dataclass

from cluster.layout import ArtifactLayout, AttemptLayout
from cluster.process import ProcessId, this_process
from cluster.storage import AlreadyExistsError, Storage
from schemas.attempt import AttemptVerdict, Cause, Claim, ExitRecord, Incident, Submitted
from schemas.canonical import canonical_json
from schemas.job import JobSpec
from schemas.progress import Heartbeat, Notice

_FOLDER = re.compile(r"^(?P<job>.+)-(?P<number>\d{4,})$")
_COMMIT = re.compile(r"^step-(\d+)\.json$")
_BEAT = re.compile(r"^n(\d+)-(\d+)\.json$")
_UNCOUNTED = frozenset({Cause.CANCELLED, Cause.QUEUE})
"""Ends of attempts that were ended on purpose."""


@dataclass(frozen=True)
class CountedHistory:
    """What counts against an attempt's budgets."""

    incidents: tuple[Incident, ...]
    """Oldest first: those since the last time the policy said stop."""
    baseline: int
    """Newest committed step before them; -1: none."""


def list_attempts(storage: Storage, layout: ArtifactLayout, *, step_name: str) -> tuple[int, ...]:
    """Returns the numbers of the attempts whose intent is written, ascending."""
    job, numbers = step_name or "job", []
    for name in storage.names(layout.attempts):
        match = _FOLDER.match(name)
        if match and match["job"] == job and storage.exists(layout.attempt(job, int(match["number"])).spec):
            numbers.append(int(match["number"]))
    return tuple(sorted(numbers))


def read_spec(storage: Storage, attempt: AttemptLayout) -> JobSpec:
    """Returns the spec. Raises FileNotFoundError."""
    return JobSpec.model_validate_json(storage.read(attempt.spec))


def read_claim(storage: Storage, attempt: AttemptLayout) -> Claim | None:
    """Returns the claim, or None."""
    return Claim.model_validate_json(storage.read(attempt.claim)) if storage.exists(attempt.claim) else None


def read_submitted(storage: Storage, attempt: AttemptLayout) -> Submitted | None:
    """Returns what the launcher answered, or None."""
    return Submitted.model_validate_json(storage.read(attempt.submitted)) if storage.exists(attempt.submitted) else None


def read_exit(storage: Storage, attempt: AttemptLayout) -> ExitRecord | None:
    """Returns the exit record, or None."""
    return ExitRecord.model_validate_json(storage.read(attempt.exit)) if storage.exists(attempt.exit) else None


def read_verdict(storage: Storage, attempt: AttemptLayout) -> AttemptVerdict | None:
    """Returns what the supervisor decided after the attempt's end, or None."""
    return AttemptVerdict.model_validate_json(storage.read(attempt.verdict)) if storage.exists(attempt.verdict) else None


def read_heartbeats(storage: Storage, attempt: AttemptLayout) -> tuple[Heartbeat, ...]:
    """Returns the newest heartbeat of each node, by node rank."""
    newest: dict[int, str] = {}
    for name in storage.names(attempt.heartbeats):
        match = _BEAT.match(name)
        if match:
            newest[int(match[1])] = name  # names are sorted
    beats = []
    for _, name in sorted(newest.items()):
        try:
            beats.append(Heartbeat.model_validate_json(storage.read(f"{attempt.heartbeats}/{name}")))
        except FileNotFoundError:  # superseded and deleted since the listing; the next look finds its successor
            continue
    return tuple(beats)


def read_incidents(storage: Storage, attempt: AttemptLayout) -> tuple[Incident, ...]:
    """Returns the incidents published so far, in order."""
    names = storage.names(attempt.incidents)
    return tuple(Incident.model_validate_json(storage.read(f"{attempt.incidents}/{name}")) for name in names)


class NoticeFeed:
    """The notices of an attempt as they come. Each is read once."""

    def __init__(self, storage: Storage, attempt: AttemptLayout) -> None:
        """Args: storage, attempt: whose notices."""
        self._storage, self._attempt = storage, attempt
        self._read: dict[str, Notice] = {}

    def read(self) -> tuple[Notice, ...]:
        """Returns the notices published so far, all nodes', oldest first."""
        for name in self._storage.names(self._attempt.notices):
            if name not in self._read:
                self._read[name] = Notice.model_validate_json(self._storage.read(f"{self._attempt.notices}/{name}"))
        return tuple(sorted(self._read.values(), key=lambda notice: notice.at))


def read_notices(storage: Storage, attempt: AttemptLayout) -> tuple[Notice, ...]:
    """Returns the notices published so far, all nodes', oldest first."""
    return NoticeFeed(storage, attempt).read()


def claim_attempt(storage: Storage, attempt: AttemptLayout, *, key: str, submission: str) -> bool:
    """Claims an attempt for the calling process; returns whether it got it."""
    process = this_process()
    claim = Claim(
        key=key,
        host=process.host,
        pid=process.pid,
        pid_started=process.started,
        process_table=process.table,
        submission=submission,
        claimed_at=time.time(),
    )
    try:
        storage.create_exclusive(attempt.claim, canonical_json(claim))
    except AlreadyExistsError:
        return False
    return True


def claimant(claim: Claim) -> ProcessId:
    """Returns the process that holds a claim."""
    return ProcessId(host=claim.host, table=claim.process_table, pid=claim.pid, started=claim.pid_started)


def counted_history(storage: Storage, layout: ArtifactLayout, *, spec: JobSpec) -> CountedHistory:
    """Returns the incidents of the attempts before `spec.attempt` that count against its budgets.

    Budgets span attempts and live with the artifact. They start afresh after a `stop`: somebody read it and started again.
    """
    counted: list[Incident] = []
    baseline = -1
    for number in list_attempts(storage, layout, step_name=spec.step_name):
        if number >= spec.attempt:
            break
        attempt = layout.attempt(spec.step_name, number)
        ended = read_exit(storage, attempt)
        incidents = ended.incidents if ended is not None else read_incidents(storage, attempt)
        counted.extend(incident for incident in incidents if incident.cause not in _UNCOUNTED)
        verdict = read_verdict(storage, attempt)
        if verdict is not None and verdict.decision == "stop":
            baseline = max([baseline, *(incident.committed_step for incident in counted)])
            counted.clear()
    return CountedHistory(incidents=tuple(counted), baseline=baseline)


def committed(storage: Storage, layout: ArtifactLayout) -> tuple[int, ...]:
    """Returns the artifact's committed steps, ascending."""
    matches = (_COMMIT.match(name) for name in storage.names(layout.commits))
    return tuple(sorted(int(match[1]) for match in matches if match))


def newest_commit(storage: Storage, layout: ArtifactLayout) -> int:
    """Returns the artifact's newest committed step; -1: none."""
    return max(committed(storage, layout), default=-1)
