"""The acts of an artifact (`schemas.act`) in storage: numbered by exclusive creation, read whole."""

import logging

from cluster.layout import ArtifactLayout
from cluster.storage import AlreadyExistsError, Storage
from schemas.act import Act
from schemas.errors import VerificationError
from schemas.sealed import SealBrokenError

logger = logging.getLogger(__name__)

_MEND = "restore it from a copy, or build the model anew with --from train: without it nobody knows which batches were used"


def add_act(storage: Storage, layout: ArtifactLayout, act: Act) -> int:
    """Leaves an act, durably, and returns its number. Nothing may follow from it before."""
    data = act.sealed().to_bytes()
    number = num_acts(storage, layout)
    while True:
        try:
            storage.create_exclusive(layout.act(number), data)
        except AlreadyExistsError:
            number += 1
            continue
        logger.warning("%s", act)
        return number


def num_acts(storage: Storage, layout: ArtifactLayout) -> int:
    """Returns how many acts there are."""
    return len([name for name in storage.names(layout.acts) if name.endswith(".json")])


def read_acts(storage: Storage, layout: ArtifactLayout, *, count: int | None = None) -> tuple[Act, ...]:
    """Returns the acts, in order.

    Args:
        storage: shared storage.
        layout: the artifact.
        count: how many there are, where somebody who saw them all has said so; a listing may come late.

    Raises:
        VerificationError: one is damaged or missing.
    """
    keys = [layout.act(number) for number in range(num_acts(storage, layout) if count is None else count)]
    acts = []
    for key in keys:
        try:
            acts.append(Act.from_bytes(storage.read(key)))
        except (FileNotFoundError, SealBrokenError) as error:
            raise VerificationError((f"{key}: {error}",), subject=layout.key, mend=_MEND) from error
    return tuple(acts)
