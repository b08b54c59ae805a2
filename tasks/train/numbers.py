"""Numbers that cannot be right: what is wrong with an update, and what follows. The same on every rank.

| seen | when | told by |
|---|---|---|
| a loss that is not finite, on any rank | before the weights change | the ranks' agreement |
| a loss far above the usual (`restart.loss_spike_factor`) | before the weights change | the ranks' agreement |
| a global gradient norm that is not finite | before the weights change | DeepSpeed's norm, which all ranks share (`tasks.train.discard`) |

fp16 gradients that overflow are no such case: the loss scale is lowered, and the update is skipped as ever.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from schemas.act import ActKind, OnBadNumbers
from schemas.errors import NumericError
from schemas.execution_config import RestartConfig
from schemas.progress import NoticeKind, RankPhase
from tasks.entry import RankTask
from tasks.train.acts import ActBook
from tasks.train.gang import Gang

logger = logging.getLogger(__name__)

RECENT_LOSSES = 32
"""Losses that the usual is taken from."""
FEWEST_LOSSES = 16
"""Below so many there is no usual: the loss falls steeply at first."""
MOST_SKIPPED_IN_A_ROW = 5
"""More bad updates in a row are not bad batches: the weights are spoiled."""


def trouble_with(loss: float, *, recent: Sequence[float], spike_factor: float | None) -> str:
    """Returns what is wrong with an update's mean loss, to be read after "the loss"; empty when nothing is.

    Args:
        loss: mean over all ranks, nats per token.
        recent: losses of the applied updates before, at most `RECENT_LOSSES`, oldest first.
        spike_factor: `restart.loss_spike_factor`.
    """
    if not math.isfinite(loss):
        return "is not finite"
    if spike_factor is None or len(recent) < FEWEST_LOSSES:
        return ""
    usual = median(recent)
    return f"is {loss:.4g}, more than {spike_factor:g} times the usual {usual:.4g}" if loss > spike_factor * usual else ""


def num_skipped_before(step: int, skipped: frozenset[int]) -> int:
    """Returns how many updates in a row, up to the one before `step`, are in `skipped`."""
    count = 0
    while step - 1 - count in skipped:
        count += 1
    return count


@dataclass
class NumberGuard:
    """Answers to bad numbers as the recipe says, and remembers the answers."""

    policy: RestartConfig
    book: ActBook
    task: RankTask
    gang: Gang
    skipped: frozenset[int] = field(init=False)
    """Updates that are never applied: decided once, in this start or an earlier one."""

    def __post_init__(self) -> None:
        self.skipped = self.book.standing.skipped_updates

    def trouble(self, loss: float, *, recent: Sequence[float]) -> str:
        """Returns what is wrong with an update's mean loss (`trouble_with`)."""
        return trouble_with(loss, recent=recent, spike_factor=self.policy.loss_spike_factor)

    def answer(self, step: int, what: str) -> None:
        """Decides what follows from bad numbers at update `step`. Collective. When it returns, the update is to be skipped.

        Args:
            step: index of the update.
            what: what is wrong, a clause.

        Raises:
            NumericError: the recipe says stop or rewind, or too many updates in a row were bad.
        """
        if step in self.skipped:
            return
        if self.policy.on_bad_numbers is not OnBadNumbers.SKIP:
            self._give_up(step, what, why="the same batch would do so again")
        in_a_row = num_skipped_before(step, self.skipped)
        if in_a_row >= MOST_SKIPPED_IN_A_ROW:
            self._give_up(step, what, why=f"{in_a_row} updates before it were skipped already: the weights are spoiled, not the batches")
        self.book.add(ActKind.SKIPPED_UPDATE, step=step, detail=what, gang=self.gang)
        self.skipped |= {step}
        if self.gang.rank == 0:
            self.task.notice(NoticeKind.BATCH_SKIPPED, f"update {step} is skipped: {what}", step=step, rank=-1)

    def _give_up(self, step: int, what: str, *, why: str) -> None:
        self.task.progress(RankPhase.STEPPING, step=step)  # the agent takes from it where a rewind begins
        mend = "lower training.optimizer.learning_rate, lengthen the warm-up, or see restart.on_bad_numbers; committed checkpoints are intact"
        raise NumericError(f"update {step}: {what}", why=why, mend=mend)
