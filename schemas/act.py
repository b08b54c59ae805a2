"""Acts: what was done on the way that changes numbers, kept with the training artifact and read at every start of ranks.

A run with acts is no longer calm: another run of the same recipe would end with other weights. So nothing of this kind happens unless the
recipe asks for it (`restart.on_bad_numbers`, `restart.on_out_of_memory`, another number of machines), and what did happen is never forgotten.
PURE: what acts amount to is a fold over them, in their order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from schemas.checkpoint import BatchWindow
from schemas.sealed import Sealed


class OnBadNumbers(StrEnum):
    """What follows when loss or gradients are not finite, or the loss jumps."""

    STOP = "stop"
    """The run stops; nothing of it is committed."""
    SKIP = "skip"
    """The update is not applied: weights and moments stay as they are, training goes on with the next batch."""
    REWIND = "rewind"
    """Training goes back some commits, and never sees the batches in between again."""


class OnOutOfMemory(StrEnum):
    """What follows when memory ran out."""

    STOP = "stop"
    """The run stops: as it is, it would end the same way."""
    SMALLER_MICRO_BATCH = "smaller_micro_batch"
    """The next start takes the next smaller divisor of the micro-batch, at the same global batch."""


class ActKind(StrEnum):
    """What was done."""

    SKIPPED_UPDATE = "skipped update"
    REWIND = "rewind"
    SMALLER_MICRO_BATCH = "smaller micro-batch"
    RESIZED = "resized"
    """Another number of ranks, or another ZeRO stage, than what wrote the state that training went on from."""


class Act(Sealed):
    """`acts/0003.json`: created exclusively before anything follows from it."""

    schema_version: int = 1
    """Version of this type."""
    kind: ActKind
    """What was done."""
    epoch: int
    """The start of ranks during which it was decided."""
    step: int
    """Updates made by then: also the index of the update it is about."""
    detail: str
    """One line for people."""
    at: float
    """Seconds since the Unix epoch."""
    back_to_step: int | None = None
    """Of a rewind: the step that training goes on from; 0 is the beginning."""
    micro_batch_size: int | None = None
    """Of a smaller micro-batch: sequences per rank and forward pass, from now on."""
    world_size: int | None = None
    """Of another size: ranks from now on."""
    zero_stage: int | None = None
    """Of another size: ZeRO stage from now on."""
    state_hash: str | None = None
    """Of another size: hash of the fp32 state (`tasks.train.checkpoint.state_hash`), in the checkpoint's files and as loaded alike."""

    def __str__(self) -> str:
        return f"{self.kind.value} at step {self.step}: {self.detail}"


@dataclass(frozen=True)
class Standing:
    """What all acts so far amount to."""

    skipped_updates: frozenset[int] = frozenset()
    """Steps whose update is never applied."""
    skipped_batches: tuple[BatchWindow, ...] = ()
    """Batches that are never used: ascending, disjoint."""
    micro_batch_size: int | None = None
    """In place of the recipe's; None: the recipe's holds."""
    rewinds: tuple[Act, ...] = ()
    """All rewinds, oldest first."""

    def voids(self, *, step: int, epoch: int) -> bool:
        """Whether a rewind left behind the commit of `step` that was written in `epoch`."""
        return any(rewind.back_to_step is not None and step > rewind.back_to_step and epoch <= rewind.epoch for rewind in self.rewinds)


def standing_of(acts: Sequence[Act]) -> Standing:
    """Returns what acts amount to. `acts`: all of them, in order of their numbers."""
    standing = Standing()
    for act in acts:
        if act.kind is ActKind.SKIPPED_UPDATE:
            updates = standing.skipped_updates | {act.step}
            standing = Standing(updates, standing.skipped_batches, standing.micro_batch_size, standing.rewinds)
        elif act.kind is ActKind.SMALLER_MICRO_BATCH:
            standing = Standing(standing.skipped_updates, standing.skipped_batches, act.micro_batch_size, standing.rewinds)
        elif act.kind is ActKind.REWIND and act.back_to_step is not None:
            standing = _after_rewind(standing, act, back_to_step=act.back_to_step)
    return standing


def _after_rewind(standing: Standing, act: Act, *, back_to_step: int) -> Standing:
    """The batches since the commit are out, and with them the updates that were skipped among them."""
    first = batch_number(back_to_step, standing.skipped_batches)
    stop = batch_number(max(act.step, back_to_step), standing.skipped_batches) + 1
    return Standing(
        skipped_updates=frozenset(step for step in standing.skipped_updates if step < back_to_step),
        skipped_batches=merged((*standing.skipped_batches, BatchWindow(first=first, stop=stop))),
        micro_batch_size=standing.micro_batch_size,
        rewinds=(*standing.rewinds, act),
    )


def acts_behind(acts: Sequence[Act], *, step: int, epoch: int) -> tuple[Act, ...]:
    """Returns the acts that the checkpoint of `step`, written in `epoch`, has behind it. Rewinds and smaller micro-batches end an epoch."""
    return tuple(
        act for act in acts if act.epoch < epoch or (act.epoch == epoch and act.step < step and act.kind in (ActKind.SKIPPED_UPDATE, ActKind.RESIZED))
    )


def batch_number(step: int, skipped: Sequence[BatchWindow]) -> int:
    """Returns the batch of update `step`: the `step`-th, 0-based, that lies in no window.

    Args:
        step: index of the update.
        skipped: ascending, disjoint.
    """
    number = step
    for window in skipped:
        if number >= window.first:
            number += window.stop - window.first
    return number


def merged(windows: Sequence[BatchWindow]) -> tuple[BatchWindow, ...]:
    """Returns windows that hold the same batches, ascending and disjoint."""
    result: list[BatchWindow] = []
    for window in sorted(windows, key=lambda window: window.first):
        if result and window.first <= result[-1].stop:
            result[-1] = BatchWindow(first=result[-1].first, stop=max(result[-1].stop, window.stop))
        else:
            result.append(window)
    return tuple(result)
