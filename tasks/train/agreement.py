"""What the ranks agree on at every update: one small all-reduce, after the gradients and before the weights change.

Whatever follows from an `Agreement` is the same on every rank, so a decision made from it needs no further word.
"""

from dataclasses import dataclass
from enum import Enum

from tasks.train.consumed import NUM_WORDS
from tasks.train.gang import Gang


class SaveState(Enum):
    """How far a rank is with the checkpoint that is being written."""

    NONE = "none"
    """None is being written."""
    WRITING = "writing"
    """Its own share is not durable yet."""
    DURABLE = "durable"
    """Its own share is on storage, synced."""
    FAILED = "failed"
    """Its own share could not be written."""


@dataclass(frozen=True)
class RankWord:
    """What one rank says at an update."""

    loss: float
    """Mean loss of its micro-batches, nats per token."""
    stop: bool
    """Whether it was asked to stop."""
    save: SaveState = SaveState.NONE
    """How far its share of the pending checkpoint is."""
    committed_step: int = -1
    """Newest committed step. Only rank 0 knows it by itself."""
    wants_save: bool = False
    """Whether a checkpoint is due after this update. Only rank 0 is asked: it may depend on a clock."""
    consumed: tuple[float, ...] = (0.0,) * NUM_WORDS
    """Hash of the sequences that it trained on in this step (`ConsumedIds.words`)."""


@dataclass(frozen=True)
class Agreement:
    """What all ranks know after they spoke."""

    mean_loss: float
    """Mean over the ranks, nats per token; not finite when any rank's is not."""
    stopping: bool
    """Whether any rank was asked to stop."""
    all_durable: bool
    """Whether every rank's share of the pending checkpoint is durable."""
    any_failed: bool
    """Whether any rank could not write its share."""
    all_settled: bool
    """Whether no rank writes on: every share of the pending checkpoint is durable or failed."""
    committed_step: int
    """Newest committed step; -1: none."""
    save_due: bool
    """Whether a checkpoint is due after this update."""
    consumed: tuple[float, ...]
    """Sum of the ranks' hashes of the sequences that they trained on in this step."""


def agree(gang: Gang, word: RankWord) -> Agreement:
    """Returns what the ranks' words amount to, equal on every rank. Collective, one all-reduce of ten numbers."""
    leads = gang.rank == 0
    loss, stops, durable, failed, committed, saves, *consumed = gang.sum(
        [
            word.loss,
            float(word.stop),
            float(word.save is SaveState.DURABLE),
            float(word.save is SaveState.FAILED),
            float(word.committed_step if leads else 0),
            float(word.wants_save and leads),
            *word.consumed,
        ]
    )
    return Agreement(
        mean_loss=loss / gang.world_size,
        stopping=stops > 0,
        all_durable=durable == gang.world_size,
        any_failed=failed > 0,
        all_settled=durable + failed == gang.world_size,
        committed_step=int(committed),
        save_due=saves > 0,
        consumed=tuple(consumed),
    )
