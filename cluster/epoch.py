"""Epochs: one number for every start of ranks, taken by exclusive creation, so that no two starts ever share one."""

import time

from cluster.layout import ArtifactLayout
from cluster.storage import AlreadyExistsError, Storage
from schemas.attempt import EpochRecord
from schemas.canonical import canonical_json


def take_epoch(storage: Storage, layout: ArtifactLayout, *, attempt: int, key: str, world_size: int, rendezvous: str, reason: str) -> EpochRecord:
    """Takes the artifact's next epoch.

    Args:
        storage: shared storage.
        layout: the artifact.
        attempt: the attempt that starts ranks.
        key: its key.
        world_size: ranks, or items at a time.
        rendezvous: host:port of rank 0's store; empty for arrays.
        reason: `first start`, or what ended the epoch before.
    """
    number = newest_epoch(storage, layout) + 1
    while True:
        record = EpochRecord(
            epoch=number, attempt=attempt, key=key, world_size=world_size, rendezvous=rendezvous, started_at=time.time(), reason=reason
        )
        try:
            storage.create_exclusive(layout.epoch(number), canonical_json(record))
        except AlreadyExistsError:
            number += 1
            continue
        return record


def newest_epoch(storage: Storage, layout: ArtifactLayout) -> int:
    """Returns the number of the newest epoch; -1 when none was taken."""
    numbers = [int(name.removesuffix(".json")) for name in storage.names(layout.epochs) if name.endswith(".json")]
    return max(numbers, default=-1)


def read_epoch(storage: Storage, layout: ArtifactLayout, epoch: int) -> EpochRecord:
    """Returns an epoch's record. Raises FileNotFoundError."""
    return EpochRecord.model_validate_json(storage.read(layout.epoch(epoch)))


def read_epochs(storage: Storage, layout: ArtifactLayout) -> tuple[EpochRecord, ...]:
    """Returns the records of all epochs taken so far, ascending."""
    numbers = sorted(int(name.removesuffix(".json")) for name in storage.names(layout.epochs) if name.endswith(".json"))
    return tuple(read_epoch(storage, layout, number) for number in numbers)
