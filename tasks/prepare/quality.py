"""The published quality rules as one step of the preparation. Pure.

Each family is in a module of its own (`quality_gopher`, `quality_repetition`, `quality_c4`, `quality_fineweb`). Where our verdicts differ from
those of datatrove, and why, is in docs/pipeline.md.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from schemas.preparation_config import QualityConfig
from tasks.prepare.quality_c4 import trim
from tasks.prepare.quality_fineweb import fineweb_refusal
from tasks.prepare.quality_gopher import Refusal, gopher_refusals
from tasks.prepare.quality_repetition import repetition_refusals
from tasks.prepare.steps import Outcome
from tasks.prepare.word_table import CHARS_PER_WORD, WordTable
from tasks.prepare.words import batches_of

_BATCH_CHARS = 1_000_000
"""Characters whose words are counted at once: some 30 MB of memory."""

Judge = Callable[[Sequence[str], WordTable], list[Refusal | None]]


def quality_steps(config: QualityConfig) -> list["QualityStep"]:
    """Returns the step for the families that are on."""
    return [QualityStep(config)] if config.families else []


class QualityStep:
    """Applies the families that are on, in the order of `QualityConfig.families`; C4's cuts lines out, which the following ones do not see."""

    name = "quality"

    def __init__(self, config: QualityConfig) -> None:
        self._config = config
        self._judges: Mapping[str, Judge] = {
            "gopher": lambda texts, table: gopher_refusals(texts, table, config.gopher_limits),
            "gopher_repetition": lambda texts, table: repetition_refusals(texts, table, config.gopher_repetition_limits),
            "fineweb": self._fineweb,
        }

    def apply(self, texts: Sequence[str]) -> list[Outcome]:
        """Returns each document, shortened where C4's rules say so, or the first rule that it breaks."""
        outcomes: list[Outcome] = []
        for batch in batches_of(texts, max_chars=_BATCH_CHARS):
            outcomes += self._apply(batch)
        return outcomes

    def _apply(self, texts: Sequence[str]) -> list[Outcome]:
        outcomes = [Outcome(text) for text in texts]
        alive = list(range(len(texts)))
        table: WordTable | None = None
        for family in self._config.families:
            if family == "c4":
                table = None  # the texts are others
                for index in alive:
                    outcomes[index] = self._trimmed(texts[index])
            else:
                left = [outcomes[index].text or "" for index in alive]
                table = WordTable.of(left) if table is None else table
                for index, refusal in zip(alive, self._judges[family](left, table), strict=True):
                    if refusal is not None:
                        outcomes[index] = Outcome(None, *refusal, counts=outcomes[index].counts)
            kept = [position for position, index in enumerate(alive) if outcomes[index].text is not None]
            if table is not None and len(kept) < len(alive):
                table = table.select(kept)
            alive = [alive[position] for position in kept]
        return outcomes

    def _trimmed(self, text: str) -> Outcome:
        trimmed = trim(text, self._config.c4_limits)
        counts = {"c4-lines-cut": trimmed.num_cut} if trimmed.num_cut else {}
        if trimmed.refusal is not None:
            return Outcome(None, *trimmed.refusal, counts=counts)
        return Outcome(trimmed.text, counts=counts)

    def _fineweb(self, texts: Sequence[str], table: WordTable) -> list[Refusal | None]:
        words = table.num_words
        words = np.where(table.is_mostly_unspaced, words // CHARS_PER_WORD, words)
        return [fineweb_refusal(text, count, self._config.fineweb_limits) for text, count in zip(texts, words.tolist(), strict=True)]
