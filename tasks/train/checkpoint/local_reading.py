"""Finding the newest checkpoint that every rank holds on its own node's disk. Damage, absence, another layout or a sick disk mean: not this one.

Shared storage has what counts: whatever is wrong here is a warning, and the rank says "not here" where all are asked.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from schemas.artifact import FileEntry
from schemas.checkpoint import CommitRecord, LocalRecord
from schemas.errors import VerificationError
from tasks.train.checkpoint.commit import CheckpointStore
from tasks.train.checkpoint.files import own_state_name
from tasks.train.checkpoint.fragments import TrainingTensors
from tasks.train.checkpoint.local_tier import LocalStep, LocalTier
from tasks.train.checkpoint.reader import CheckpointReader, Content
from tasks.train.gang import Gang

logger = logging.getLogger(__name__)

_MOST_STEPS = 4
"""A rank keeps two or three; more are not told to the others."""
_NONE = (-1, -1)
_MASK_63 = (1 << 63) - 1


@dataclass(frozen=True)
class LocalFound:
    """A checkpoint that all ranks can go on from."""

    at: LocalStep
    reader: CheckpointReader


def newest_local(
    tier: LocalTier, *, gang: Gang, tensors: TrainingTensors, above: int, is_void: Callable[[LocalStep], bool], content: Content
) -> LocalFound | None:
    """Returns the newest checkpoint of the nodes' own disks that verifies and holds all that every rank needs, or None. Collective.

    Args:
        tier: this node's disk.
        gang: the ranks; as many must have written it.
        tensors: what is to be filled. Nothing is filled here.
        above: shared storage holds this step, so only newer ones are of use.
        is_void: whether a rewind left a step behind.
        content: keeps what was read.
    """
    for at in _common_steps(tier, gang=gang, above=above, is_void=is_void):
        content.clear()
        reader = _open(tier, at, gang=gang, tensors=tensors, content=content)
        if gang.all(reader is not None) and _same_state(tier, at, gang=gang):
            assert reader is not None
            return LocalFound(at, reader)
        logger.warning("step %d is not whole on the nodes' own disks; it is passed over", at.step)
    content.clear()
    return None


def _common_steps(tier: LocalTier, *, gang: Gang, above: int, is_void: Callable[[LocalStep], bool]) -> list[LocalStep]:
    """Returns the steps that every rank has an intact record of, newest first. Collective."""
    usable = []
    with _a_sick_disk_holds_nothing(tier):
        usable = [at for at in tier.steps(gang.rank) if at.step > above and not is_void(at) and _is_ours(tier.read(gang.rank, at), gang=gang)]
    told = [(at.step, at.epoch) for at in usable[-_MOST_STEPS:]]
    told += [_NONE] * (_MOST_STEPS - len(told))
    rows = gang.gather([number for pair in told for number in pair])
    held = [set(zip(row[::2], row[1::2], strict=True)) - {_NONE} for row in rows]
    return [LocalStep(step, epoch=epoch) for step, epoch in sorted(set.intersection(*held), reverse=True)]


@contextlib.contextmanager
def _a_sick_disk_holds_nothing(tier: LocalTier) -> Iterator[None]:
    """Turns what goes wrong on this node alone into a warning; the ranks then agree to do without."""
    try:
        yield
    except (OSError, VerificationError) as error:
        logger.warning("%s is not used: %s", tier.folder, error)


def _is_ours(record: LocalRecord | None, *, gang: Gang) -> bool:
    return record is not None and record.world_size == gang.world_size


def _open(tier: LocalTier, at: LocalStep, *, gang: Gang, tensors: TrainingTensors, content: Content) -> CheckpointReader | None:
    """Returns a reader of what this node holds, once all that this rank needs of it has verified; None when something is missing or damaged."""
    with _a_sick_disk_holds_nothing(tier):
        return _open_verified(tier, at, gang=gang, tensors=tensors, content=content)


def _open_verified(tier: LocalTier, at: LocalStep, *, gang: Gang, tensors: TrainingTensors, content: Content) -> CheckpointReader | None:
    records = {record.rank: record for record in tier.all_records(at)}
    own = records.get(gang.rank)
    if own is None or not _is_intact(tier, own, content=content):
        return None
    files = tuple(entry for record in records.values() for entry in record.files)
    commit = CommitRecord(step=at.step, epoch=at.epoch, folder=own.folder, files=files, world_size=own.world_size, committed_at=0.0)
    reader = CheckpointReader(CheckpointStore(tier.folder), commit, content=content, state_name=own_state_name(gang.rank))
    others = (records[rank] for rank in reader.sources(tensors) - {gang.rank})  # without ZeRO a rank needs what all have written
    whole = not reader.lacking(tensors) and all(_is_intact(tier, record, content=content) for record in others)
    return reader if whole else None


def _is_intact(tier: LocalTier, record: LocalRecord, *, content: Content) -> bool:
    return all(content.examine(tier.folder / record.folder, entry) == "intact" for entry in record.files)


def _same_state(tier: LocalTier, at: LocalStep, *, gang: Gang) -> bool:
    """Whether all ranks hold the same state: the numbers that are not cut into fragments. Collective."""
    entry: FileEntry | None = None
    with _a_sick_disk_holds_nothing(tier):
        if (record := tier.read(gang.rank, at)) is not None:
            entry = next((entry for entry in record.files if entry.path == own_state_name(gang.rank)), None)
    rows = gang.gather([int(entry.xxh3, 16) & _MASK_63 if entry is not None else -1])
    return len({row[0] for row in rows}) == 1 and rows[0][0] >= 0
