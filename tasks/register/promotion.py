"""Alias moves, each in an append-only log of numbered immutable objects: `registry/promotions/{model}/000012.json`.

The entry is written before the alias moves. A crash in between leaves an entry whose move is missing; the next start that
wants the same move sees the entry and makes up for it, so the log holds no move twice and misses none. Of several moves at once the one that
is last in the log stands: whoever has set the alias looks at the log again, so whoever sets it last has seen that entry.
"""

import time
from collections.abc import Sequence
from urllib.parse import quote

from cluster.storage import AlreadyExistsError, Storage
from schemas.canonical import canonical_json
from schemas.errors import InputError
from schemas.frozen import Frozen
from tasks.register.registry import VersionStore

CANDIDATE, CHAMPION = "candidate", "champion"


class Promotion(Frozen):
    """One move of one alias."""

    number: int
    """Position in the log of the model, from 0."""
    model_name: str
    """Registered model."""
    alias: str
    """The alias."""
    version: int
    """Where it was to point from then on."""
    previous: int | None
    """Where it pointed before; null: nowhere."""
    root_hash: str
    """Content hash of the version; empty for a rollback by hand."""
    run_id: str
    """The run that moved it, or who rolled it back."""
    reason: str
    """Why."""
    at: float
    """Seconds since the Unix epoch."""

    @property
    def is_rollback(self) -> bool:
        """Whether somebody went back by hand."""
        return not self.root_hash


def history(storage: Storage, model_name: str) -> tuple[Promotion, ...]:
    """Returns all moves of a registered model's aliases, in order."""
    folder = _folder(model_name)
    return tuple(Promotion.model_validate_json(storage.read(f"{folder}/{name}")) for name in storage.names(folder))


def promote(
    registry: VersionStore, storage: Storage, *, model_name: str, alias: str, version: int, root_hash: str, run_id: str, reason: str
) -> Promotion:
    """Points `alias` to `version` and returns the log's entry of that move; a move that is logged already is only completed.

    The entry is this move's also when a later one has overtaken it: where the alias points now, the registry tells.
    """
    logged = _newest(storage, model_name, alias=alias)
    previous = registry.alias(model_name, alias)
    # An alias that still points where the newest entry says it came from is a move cut short; anywhere else, somebody moved it.
    if logged is None or logged.version != version or previous not in (version, logged.previous):
        logged = _append(
            storage,
            Promotion(
                number=0,
                model_name=model_name,
                alias=alias,
                version=version,
                previous=previous,
                root_hash=root_hash,
                run_id=run_id,
                reason=reason,
                at=time.time(),
            ),
        )
    elif previous == version:
        return logged
    _point(registry, storage, logged)
    return logged


def rollback(registry: VersionStore, storage: Storage, *, model_name: str, who: str, alias: str = CHAMPION) -> Promotion:
    """Points `alias` back to the version it had before the version it has now, logs the move and returns the entry, as `promote` does.

    Again goes further back: never forward to a version that was rolled back from. Passed over are versions that the registry has no more, or under
    whose number it has another model than was promoted: a registry that was lost and begun anew gives numbers a second time.

    Raises:
        InputError: the log knows no earlier version that is there.
    """
    current = registry.alias(model_name, alias)
    moves = history(storage, model_name)
    known = earlier_versions(moves, alias=alias, current=current)
    promoted = {move.version: move.root_hash for move in moves if move.root_hash}
    earlier = next((version for version in known if _is_still(registry, model_name, version, promoted.get(version))), None)
    if earlier is None:
        gone = f"; {', '.join(map(str, known))} of its log are not in the registry any more, or are other models there" if known else ""
        mend = f"headrace rollback {model_name} --history"
        raise InputError(f"{model_name}@{alias} has no earlier version", why=f"it is at version {current}, the first of its log{gone}", mend=mend)
    reason = f"rolled back from version {current}"
    return promote(registry, storage, model_name=model_name, alias=alias, version=earlier, root_hash="", run_id=who, reason=reason)


def earlier_versions(entries: Sequence[Promotion], *, alias: str, current: int | None) -> tuple[int, ...]:
    """Returns the versions that `alias` may be rolled back to from `current`, newest first. Pure.

    A move forward is laid on top of the version it came from; a rollback takes off what lies above the version it went to.
    """
    stack: list[int] = []
    for entry in entries:
        if entry.alias != alias:
            continue
        if entry.previous in stack:
            del stack[stack.index(entry.previous) + 1 :]  # what lies above was logged, and its move never made
        elif entry.previous is not None:
            stack.append(entry.previous)  # moved there by hand, without a log
        if entry.version in stack:
            index = stack.index(entry.version)
            del stack[index : None if entry.is_rollback else index + 1]
        stack.append(entry.version)
    below = stack[: stack.index(current)] if current in stack else stack
    return tuple(reversed(below))


def _is_still(registry: VersionStore, model_name: str, version: int, promoted: str | None) -> bool:
    """Whether a version is there, and is what was promoted under its number; None: it was promoted elsewhere, and nobody knows what it was."""
    found = registry.content_of(model_name, version)
    return found is not None and (promoted is None or found == promoted)


def _newest(storage: Storage, model_name: str, *, alias: str) -> Promotion | None:
    return next((entry for entry in reversed(history(storage, model_name)) if entry.alias == alias), None)


def _point(registry: VersionStore, storage: Storage, logged: Promotion) -> None:
    """Makes a logged move, and after it what others have logged meanwhile."""
    while True:
        registry.set_alias(logged.model_name, logged.alias, version=logged.version)
        newest = _newest(storage, logged.model_name, alias=logged.alias)
        if newest is None or newest.version == logged.version:
            return
        logged = newest


def _append(storage: Storage, promotion: Promotion) -> Promotion:
    """Writes the move under the next free number."""
    folder = _folder(promotion.model_name)
    number = len(storage.names(folder))
    while True:
        numbered = promotion.model_copy(update={"number": number})
        try:
            storage.create_exclusive(f"{folder}/{number:06d}.json", canonical_json(numbered))
        except AlreadyExistsError:
            number += 1
            continue
        return numbered


def _folder(model_name: str) -> str:
    return f"registry/promotions/{quote(model_name, safe='')}"
