"""Asks MLflow which of the registrations that storage knows of are still there. A version that was deleted in MLflow keeps nothing.

Who cannot be asked by anybody here (a database in another machine's or another user's state folder) is not asked, and its models count as
registered. A server, or a database of one's own, that does not answer stops everything: nothing is known, and nothing is guessed.
"""

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import ValidationError

from cluster.storage import Storage
from schemas.errors import InputError, UnreachableError
from schemas.reference import resolve_secrets
from tasks.mlflow_connection import MlflowConnection, TrackingTarget
from tasks.mlflow_registry import ModelRegistry
from tasks.register.registry import RegistryClaim
from tasks.runs import Run

logger = logging.getLogger(__name__)

HasVersions = Callable[[TrackingTarget, RegistryClaim], bool]
"""Whether MLflow has a version of a claim's content. Raises UnreachableError."""


def ask_mlflow(target: TrackingTarget, claim: RegistryClaim) -> bool:
    """Whether the model that was claimed has a version with this content. Raises UnreachableError."""
    return bool(ModelRegistry(MlflowConnection(target)).versions(claim.model_name, root_hash=claim.root_hash))


def unregistered(storage: Storage, claims: Sequence[RegistryClaim], *, has_versions: HasVersions = ask_mlflow) -> frozenset[str]:
    """Returns the root hashes that were claimed, and of which MLflow has no version.

    Raises:
        UnreachableError: an MLflow that can be asked from here does not answer.
    """
    gone = set()
    for claim in claims:
        target = _target_of(storage, claim)
        if target is not None and not _has_version(target, claim, has_versions=has_versions):
            gone.add(claim.root_hash)
    return frozenset(gone)


def _has_version(target: TrackingTarget, claim: RegistryClaim, *, has_versions: HasVersions) -> bool:
    try:
        return has_versions(target, claim)
    except UnreachableError as error:
        raise UnreachableError(
            f"{error.what}: which models are registered cannot be told",
            why=f"what a registered model was made from must stay, and {claim.model_name} may be one. {error.why}",
            mend="start MLflow again, or check its credentials; nothing was removed",
        ) from error


def _target_of(storage: Storage, claim: RegistryClaim) -> TrackingTarget | None:
    """Returns where the claim's model is registered; None where that cannot be asked from here, or nobody knows any more where it is."""
    try:
        target = TrackingTarget.of(Run(storage, claim.run_id).config())
    except (InputError, ValidationError) as error:
        logger.info("%s counts as registered: %s", claim.model_name, error)
        return None
    address = urlsplit(resolve_secrets(target.uri))
    if address.scheme != "sqlite":
        return target
    database = Path(address.path[1:] if address.path.startswith("//") else address.path)
    if os.access(database, os.R_OK | os.W_OK):
        return target
    logger.info("%s counts as registered: %s is not to be had from here", claim.model_name, database)
    return None
