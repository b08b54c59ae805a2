"""Alias moves, each in an append-only log of numbered immutable objects: `registry/promotions/{model}/000012.json`.

The entry is written before the alias moves. A crash in between leaves an entry whose move is missing; the next start that
wants the same move sees the entry and makes up for it, so the log holds no move twice and misses none.
"""

import time
from collections.abc import Iterator
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
    """Where it points now."""
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


def history(storage: Storage, model_name: str) -> tuple[Promotion, ...]:
    """Returns all moves of a registered model's aliases, in order."""
    folder = _folder(model_name)
    return tuple(Promotion.model_validate_json(storage.read(f"{folder}/{name}")) for name in storage.names(folder))


def promote(
    registry: VersionStore, storage: Storage, *, model_name: str, alias: str, version: int, root_hash: str, run_id: str, reason: str
) -> Promotion:
    """Points `alias` to `version` and returns the log's entry of that move; a move that is logged already is only completed."""
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
    if previous != version:
        registry.set_alias(model_name, alias, version=version)
    return logged


def rollback(registry: VersionStore, storage: Storage, *, model_name: str, who: str, alias: str = CHAMPION) -> Promotion:
    """Points `alias` back to the version it had before the version it has now, logs the move and returns the entry.

    Raises:
        InputError: the log knows no earlier version.
    """
    current = registry.alias(model_name, alias)
    earlier = next(_earlier(history(storage, model_name), alias=alias, current=current), None)
    if earlier is None:
        raise InputError(f"{model_name}@{alias} has no earlier version", why=f"its log begins with version {current}", mend="headrace status")
    reason = f"rolled back from version {current}"
    return promote(registry, storage, model_name=model_name, alias=alias, version=earlier, root_hash="", run_id=who, reason=reason)


def _earlier(entries: tuple[Promotion, ...], *, alias: str, current: int | None) -> Iterator[int]:
    """Yields the versions that the alias left for its current one, newest first."""
    for entry in reversed(entries):
        if entry.alias == alias and entry.version == current and entry.previous not in (None, current):
            assert entry.previous is not None
            yield entry.previous


def _newest(storage: Storage, model_name: str, *, alias: str) -> Promotion | None:
    return next((entry for entry in reversed(history(storage, model_name)) if entry.alias == alias), None)


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
