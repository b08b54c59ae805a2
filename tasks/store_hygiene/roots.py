"""What is wanted for its own sake: registered models, aliases, pins, unfinished and recent runs. Reads storage; MLflow was asked before.

Whatever of this cannot be read stops everything: what nobody knows to be unwanted is not removed.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import unquote

from pydantic import ValidationError

from cluster.layout import RunLayout
from cluster.lease import live_holder, newest_term
from cluster.storage import Storage
from schemas.errors import VerificationError
from schemas.journal import Event, EventKind, RunFile
from schemas.stage import Stage
from tasks.register.promotion import Promotion, history
from tasks.register.registry import RegistryClaim
from tasks.runs import Pointer, Run, list_runs
from tasks.store_hygiene.inventory import StoredArtifact
from tasks.store_hygiene.pin_log import standing_pins

_TURNS = (EventKind.RUN_STARTED, EventKind.RUN_RESUMED, EventKind.RUN_FINISHED, EventKind.RUN_FAILED, EventKind.RUN_GIVEN_UP)


@dataclass(frozen=True)
class Root:
    """An artifact that is wanted, and why."""

    key: str
    why: str


def collect_roots(storage: Storage, artifacts: Collection[StoredArtifact], *, keep_runs: int, unregistered: Collection[str] = ()) -> tuple[Root, ...]:
    """Returns every root.

    Args:
        storage: the store.
        artifacts: what it holds.
        keep_runs: how many of each user's runs count as recent.
        unregistered: root hashes that were claimed, and of which MLflow says that no version has them (any more).

    Raises:
        VerificationError: a claim, a pin, a promotion or a run cannot be read, naming all of them.
    """
    findings: list[str] = []
    roots = [
        *_of_registry(storage, artifacts, unregistered=unregistered, findings=findings),
        *(Root(key, f"pinned by {pin.by}" + (f": {pin.reason}" if pin.reason else "")) for pin in standing_pins(storage) for key in pin.keys),
        *_of_runs(storage, keep_runs=keep_runs, findings=findings),
    ]
    if findings:
        mend = "restore the files from a copy; a run that nobody needs may be removed with its folder"
        raise VerificationError(tuple(findings), subject="what the store must keep cannot be told", mend=mend)
    return tuple(roots)


def read_claims(storage: Storage) -> tuple[RegistryClaim, ...]:
    """Returns all claims of registrations. Raises VerificationError for one that cannot be read."""
    claims = []
    for name in storage.names("registry"):
        if name.endswith(".json"):
            try:
                claims.append(RegistryClaim.model_validate_json(storage.read(f"registry/{name}")))
            except ValidationError as error:
                finding = f"registry/{name}: is not a claim"
                raise VerificationError((finding,), subject="the registry's claims", mend="restore the file from a copy") from error
    return tuple(claims)


# ---- the registry -----------------------------------------------------------------------------------------------------


def _of_registry(storage: Storage, artifacts: Collection[StoredArtifact], *, unregistered: Collection[str], findings: list[str]) -> Iterator[Root]:
    claimed = {claim.root_hash: f"registered as {claim.model_name}" for claim in read_claims(storage) if claim.root_hash not in unregistered}
    for name in storage.names("registry/promotions"):
        try:
            moves = history(storage, unquote(name))
        except ValidationError:
            findings.append(f"registry/promotions/{name}: holds something that is no promotion")
            continue
        for alias, root_hash in aliased(moves).items():
            claimed[root_hash] = f"{unquote(name)}@{alias}"
    for artifact in artifacts:
        why = claimed.get(root_hash_of(artifact) or "")
        if why is not None:
            yield Root(artifact.key, why)


def aliased(moves: Sequence[Promotion]) -> Mapping[str, str]:
    """Returns alias → root hash of the version that it points to now, by the log of its moves. Pure. A rollback names a version only."""
    hashes = {move.version: move.root_hash for move in moves if move.root_hash}
    newest = {move.alias: move.version for move in moves}
    return {alias: hashes[version] for alias, version in newest.items() if version in hashes}


def root_hash_of(artifact: StoredArtifact) -> str | None:
    """Returns the root hash of the model that an export holds or a registration registers; None for anything else."""
    record = artifact.record
    if record is None or artifact.stage not in (Stage.EXPORT, Stage.REGISTER):
        return None
    return record.content_hash if artifact.stage is Stage.EXPORT else record.input(Stage.EXPORT).content_hash


# ---- runs -------------------------------------------------------------------------------------------------------------


def _of_runs(storage: Storage, *, keep_runs: int, findings: list[str]) -> Iterator[Root]:
    """Yields what recent, unfinished and controlled runs point to."""
    counted: Counter[str] = Counter()
    for run_id in list_runs(storage):  # newest first
        run = Run(storage, run_id)
        try:
            user = owner_of(run).rpartition("@")[0]
            counted[user] += 1
            why = _why_kept(run, is_recent=counted[user] <= keep_runs)
            pointers = _pointers(run) if why else ()
        except ValidationError as error:
            findings.append(f"{run.layout.key}: {error.title} cannot be read")
            continue
        yield from (Root(pointer.key, why) for pointer in pointers)


def owner_of(run: Run) -> str:
    """Returns user@host of who began a run; of one of an earlier version, who controlled it last. Empty when nothing tells."""
    by = RunFile.model_validate_json(run.storage.read(run.layout.config)).created_by
    term = newest_term(run.storage, run.layout.control) if not by else None
    return term.owner if term is not None else by


def keys_of(run: Run) -> tuple[str, ...]:
    """Returns the folders of the artifacts that a run uses, in the order of stages."""
    return tuple(pointer.key for pointer in _pointers(run))


def is_finished(events: Iterable[Event]) -> bool:
    """Whether a run is finished, by its journal from the newest event backwards. Pure."""
    return _turn(events) is EventKind.RUN_FINISHED


def _turn(events: Iterable[Event]) -> EventKind | None:
    """Returns the last that happened to a run as a whole."""
    return next((event.kind for event in events if event.kind in _TURNS), None)


def _why_kept(run: Run, *, is_recent: bool) -> str:
    name = run.layout.run_id
    if live_holder(run.storage, run.layout.control) is not None:
        return f"used by {name}, which runs"
    turn = _turn(_newest_first(run))
    if turn is EventKind.RUN_GIVEN_UP:
        return ""
    if is_recent:
        return f"used by the recent run {name}"
    return "" if turn is EventKind.RUN_FINISHED else f"used by the unfinished run {name}"


def _pointers(run: Run) -> tuple[Pointer, ...]:
    return tuple(pointer for stage in Stage if (pointer := run.pointer(stage)) is not None)


def _newest_first(run: Run) -> Iterator[Event]:
    layout: RunLayout = run.layout
    for name in reversed(run.storage.names(layout.journal)):
        yield Event.model_validate_json(run.storage.read(f"{layout.journal}/{name}"))
