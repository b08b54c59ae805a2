"""One version per root hash, although MLflow has no unique key for versions and two processes may register at once.

1. A claim `registry/{root_hash}.json` in storage: of several processes one is first, the others see it and search longer.
2. The version carries the root hash as a tag from the very call that creates it, so a search finds it whatever crashed after.
3. After creating, search again: of several versions with one root hash the lowest stays and the others are removed. Numbers
   are given in order, so whoever made the higher one sees the lower one.

Every step may be the last one before a crash; the next start goes on from what it finds.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from cluster.layout import registry_claim
from cluster.storage import AlreadyExistsError, Storage
from schemas.canonical import canonical_json
from schemas.frozen import Frozen

logger = logging.getLogger(__name__)

ROOT_HASH_TAG = "headrace.root_hash"
_PATIENCE_S = 5.0
_POLL_S = 0.25


class RegistryClaim(Frozen):
    """`registry/{root_hash}.json`: who was the first to register this content. Immutable; says nothing about success."""

    root_hash: str
    """Content hash of the exported model."""
    model_name: str
    """Registered model it was claimed for."""
    run_id: str
    """The run that claimed it."""


class VersionStore(Protocol):
    """What is asked of a model registry; `tasks.mlflow_registry.ModelRegistry` fulfils it."""

    def versions(self, model_name: str, *, root_hash: str) -> tuple[int, ...]:
        """Returns the versions that carry the root hash, ascending."""

    def find_model(self, *, root_hash: str) -> str | None:
        """Returns the id of a completely logged model with the root hash, or None."""

    def create_version(self, model_name: str, *, model_id: str, tags: Mapping[str, str], description: str) -> int:
        """Creates a version with its tags in one call and returns its number."""

    def delete_version(self, model_name: str, version: int) -> None:
        """Removes a version; nothing when there is none."""

    def model_of(self, model_name: str, version: int) -> str:
        """Returns the id of the logged model behind a version."""

    def content_of(self, model_name: str, version: int) -> str | None:
        """Returns the root hash that a version carries, empty when it carries none; None: there is no such version."""

    def alias(self, model_name: str, alias: str) -> int | None:
        """Returns the version that an alias points to, or None."""

    def set_alias(self, model_name: str, alias: str, *, version: int) -> None:
        """Points an alias to a version."""


@dataclass(frozen=True)
class Registered:
    """The one version of a root hash."""

    version: int
    model_id: str
    created: bool
    """Whether this call made it; false: it was there."""


def register_once(
    registry: VersionStore,
    storage: Storage,
    *,
    claim: RegistryClaim,
    tags: Mapping[str, str],
    description: str,
    log_model: Callable[[], str],
    sleep: Callable[[float], None] = time.sleep,
) -> Registered:
    """Returns the one version that stands for the claim's root hash, creating it when there is none.

    Args:
        claim: what is registered, and by whom.
        tags: further tags of the version.
        description: its model card.
        log_model: stores the model with the server and returns its id; called when no logged model has the root hash.
        sleep: waits between searches while another claimant may be at work.
    """
    name, root_hash = claim.model_name, claim.root_hash
    first = _claim(storage, claim)
    found = registry.versions(name, root_hash=root_hash)
    waited = 0.0
    while not found and not first and waited < _PATIENCE_S:
        sleep(_POLL_S)  # whoever was first may be creating it now; if it died, we take over
        waited += _POLL_S
        found = registry.versions(name, root_hash=root_hash)
    own: int | None = None
    if not found:
        model_id = registry.find_model(root_hash=root_hash) or log_model()
        own = registry.create_version(name, model_id=model_id, tags={**tags, ROOT_HASH_TAG: root_hash}, description=description)
    lowest = settle(registry, name, root_hash=root_hash)
    return Registered(version=lowest, model_id=registry.model_of(name, lowest), created=lowest == own)


def settle(registry: VersionStore, model_name: str, *, root_hash: str) -> int:
    """Returns the lowest version with the root hash and removes the others. Safe to run by many at once."""
    lowest, *others = registry.versions(model_name, root_hash=root_hash)
    for version in others:
        logger.info("%s version %d has the same content as version %d and is removed", model_name, version, lowest)
        registry.delete_version(model_name, version)
    return lowest


def _claim(storage: Storage, claim: RegistryClaim) -> bool:
    """Claims the root hash; returns whether this run holds the claim, now or from an earlier start."""
    key = registry_claim(claim.root_hash)
    try:
        storage.create_exclusive(key, canonical_json(claim))
    except AlreadyExistsError:
        return RegistryClaim.model_validate_json(storage.read(key)).run_id == claim.run_id
    return True
