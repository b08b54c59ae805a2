"""What the store holds: every artifact with its record, whom it belongs to, what it was made from, and whether somebody works on it."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from pydantic import ValidationError

from cluster.layout import ArtifactLayout, AttemptLayout, parse_artifact_folder, sweep_key
from cluster.lease import live_holder, newest_term
from cluster.storage import Storage
from schemas.artifact import ArtifactRecord
from schemas.errors import VerificationError
from schemas.job import JobSpec
from schemas.stage import Stage
from tasks.store import Store


class ArtifactState(StrEnum):
    """What there is of an artifact."""

    FINISHED = "finished"
    """It has a record."""
    UNFINISHED = "unfinished"
    """Somebody began to make it."""
    DAMAGED = "damaged"
    """Its record, or what says how far it is, is not what was written."""
    HALF_REMOVED = "half removed"
    """An interrupted `headrace store gc` left it."""
    UNKNOWN = "unknown"
    """A folder with neither record nor lease: nothing that Headrace makes."""


@dataclass(frozen=True)
class StoredArtifact:
    """One artifact in the store."""

    key: str
    stage: Stage
    name: str
    """The recipe's name."""
    state: ArtifactState
    owner: str = ""
    """user@host of who made it, or began to; empty when nothing tells."""
    newest_at: float = 0.0
    """When it was finished, or last taken up. Seconds since the Unix epoch."""
    inputs: tuple[str, ...] = ()
    """Folders of what it was made from, as its record says, or the jobs of an unfinished one."""
    busy: str = ""
    """Who works on it, or may; empty: nobody."""
    damage: str = ""
    """What is wrong with its record."""
    record: ArtifactRecord | None = None


def take_inventory(storage: Storage, *, held: Collection[str] = ()) -> tuple[StoredArtifact, ...]:
    """Returns every artifact in the store, in the order of stages.

    Folders of which only leases are left are none: they were removed, and who had held them stays on record.

    Args:
        storage: the store.
        held: artifacts whose lease the caller holds itself.
    """
    found: list[StoredArtifact | None] = []
    for stage in Stage:
        for folder in storage.names(stage.value):
            parsed, key = parse_artifact_folder(folder), f"{stage.value}/{folder}"
            if parsed is not None and set(storage.names(key)) - {"leases"}:
                found.append(_look_at(storage, key, stage=stage, name=parsed[0], is_held=key in held))
            elif parsed is None and storage.names(key):
                found.append(StoredArtifact(key=key, stage=stage, name=folder, state=ArtifactState.UNKNOWN))
    return tuple(artifact for artifact in found if artifact is not None)


def by_key(artifacts: Collection[StoredArtifact]) -> Mapping[str, StoredArtifact]:
    """Returns the artifacts by their folders."""
    return {artifact.key: artifact for artifact in artifacts}


def _look_at(storage: Storage, key: str, *, stage: Stage, name: str, is_held: bool) -> StoredArtifact | None:
    layout = ArtifactLayout(key)
    try:
        busy = "" if is_held else _worker(storage, layout)
        if storage.exists(layout.record):
            return _finished(storage, layout, stage=stage, name=name, busy=busy)
        return _unfinished(storage, layout, stage=stage, name=name, busy=busy, is_held=is_held)
    except FileNotFoundError:  # another `store gc` removes it at this moment
        return None
    except (VerificationError, ValidationError) as error:
        damage = " ".join(str(error).split())
        return StoredArtifact(key=key, stage=stage, name=name, state=ArtifactState.DAMAGED, damage=damage)


def _worker(storage: Storage, layout: ArtifactLayout) -> str:
    holder = live_holder(storage, layout.leases)
    return f"{holder.owner} pid {holder.pid} works on it" if holder is not None else ""


def _finished(storage: Storage, layout: ArtifactLayout, *, stage: Stage, name: str, busy: str) -> StoredArtifact:
    record = Store(storage).read(layout.key)
    return StoredArtifact(
        key=layout.key,
        stage=stage,
        name=name,
        state=ArtifactState.FINISHED,
        owner=record.provenance.created_by,
        newest_at=datetime.fromisoformat(record.provenance.created_at).timestamp(),
        inputs=tuple(ref.key for ref in record.inputs),
        busy=busy,
        record=record,
    )


def _unfinished(storage: Storage, layout: ArtifactLayout, *, stage: Stage, name: str, busy: str, is_held: bool) -> StoredArtifact:
    term = newest_term(storage, layout.leases)
    if storage.exists(sweep_key(layout.key)):
        owner = term.owner if term is not None else ""
        return StoredArtifact(key=layout.key, stage=stage, name=name, state=ArtifactState.HALF_REMOVED, owner=owner, busy=busy)
    if term is None:
        return StoredArtifact(key=layout.key, stage=stage, name=name, state=ArtifactState.UNKNOWN)
    specs = list(_specs(storage, layout))
    taken_up = [spec.intended_at for _, spec in specs] + ([] if is_held else [term.at])
    open_job = next((attempt for attempt, _ in specs if not storage.exists(attempt.exit)), None)
    return StoredArtifact(
        key=layout.key,
        stage=stage,
        name=name,
        state=ArtifactState.UNFINISHED,
        owner=term.owner,
        newest_at=max(taken_up, default=0.0),
        inputs=tuple(dict.fromkeys(key for _, spec in specs for key in spec.inputs.values())),
        busy=busy or (f"the job {open_job.key.rpartition('/')[2]} has not said that it ended" if open_job is not None else ""),
    )


def _specs(storage: Storage, layout: ArtifactLayout) -> Iterator[tuple[AttemptLayout, JobSpec]]:
    for name in storage.names(layout.attempts):
        attempt = AttemptLayout(f"{layout.attempts}/{name}")
        if storage.exists(attempt.spec):
            yield attempt, JobSpec.model_validate_json(storage.read(attempt.spec))
