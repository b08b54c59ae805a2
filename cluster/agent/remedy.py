"""Answers to incidents that change numbers: what they are decided from, and the act that is left before anything follows."""

import time
from dataclasses import dataclass

from cluster.acts import add_act, read_acts
from cluster.attempt import committed
from cluster.layout import ArtifactLayout
from cluster.restart import Decision
from cluster.storage import Storage
from schemas.act import Act, ActKind
from schemas.attempt import Cause

_MENDED_BY_ACTS = frozenset({Cause.OUT_OF_MEMORY, Cause.NUMERIC})
"""Causes for which the past is looked up."""


@dataclass(frozen=True)
class Past:
    """What such an answer is decided from."""

    acts: tuple[Act, ...] = ()
    """What was done so far that changed numbers, oldest first."""
    commits: tuple[int, ...] = ()
    """Committed steps, ascending."""


def past_of(storage: Storage, layout: ArtifactLayout, *, cause: Cause) -> Past:
    """Returns the artifact's past as far as an answer to `cause` depends on it."""
    return Past(read_acts(storage, layout), committed(storage, layout)) if cause in _MENDED_BY_ACTS else Past()


def leave_act(storage: Storage, layout: ArtifactLayout, decision: Decision, *, epoch: int, step: int, why: str) -> None:
    """Leaves the act of a decision that changes numbers, durably; does nothing for another.

    Args:
        storage: shared storage.
        layout: the artifact.
        decision: what is done.
        epoch: the start of ranks that ended.
        step: updates made by then.
        why: what happened; its first line is kept.
    """
    kinds = {"smaller micro-batch": ActKind.SMALLER_MICRO_BATCH, "rewind": ActKind.REWIND}
    kind = kinds.get(decision.action)
    if kind is None:
        return
    act = Act(
        kind=kind,
        epoch=epoch,
        step=step,
        detail=f"{decision.reason} ({why.partition(chr(10))[0]})",
        at=time.time(),
        back_to_step=decision.back_to_step,
        micro_batch_size=decision.micro_batch_size,
    )
    add_act(storage, layout, act)
