"""The steps that look at one document at a time: what they have in common, and which of them a recipe declares, in which order.

A step is pure: what it says of a document depends on that document, on its configuration and on data that it was built from,
never on other documents of the batch, on the machine or on the time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

from schemas.manifest import Split
from schemas.preparation_config import Normalization, PreparationConfig

if TYPE_CHECKING:
    from tasks.prepare.ngram_index import NgramIndex

_NO_COUNTS: Mapping[str, int] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a step makes of one document."""

    text: str | None
    """The text, changed or not; None: refused."""
    reason: str = ""
    """Why it is refused: a short kebab-case name that begins with the step's (`gopher-word-count`); empty when it stays."""
    detail: str = ""
    """What was found, in figures, for people; without text of the document, but for a shared n-gram, which is the finding."""
    counts: Mapping[str, int] = field(default_factory=lambda: _NO_COUNTS)
    """What was done in the document, by kind (`{"email": 2}`): summed up in the artifact's figures."""


class Step(Protocol):
    """One step, built from its section of the recipe."""

    @property
    def name(self) -> str:
        """The step's name in figures and notes."""

    def apply(self, texts: Sequence[str]) -> list[Outcome]:
        """Returns what becomes of each document, in order."""


def steps_of(config: PreparationConfig, *, split: Split, ngrams: "NgramIndex | None" = None, talk: bool = False) -> tuple[Step, ...]:
    """Returns the declared steps for documents of one split, in order. Held-out documents are not compared with themselves.

    Args:
        talk: whether the documents are conversations.
        ngrams: the index of all texts to compare with (`NgramIndex.build`), needed where decontamination is declared.
    """
    from tasks.prepare.conversations import AllMessages, EachMessage

    steps: list[Step] = []
    if config.normalization is not Normalization.NONE:
        from tasks.prepare.normalization import NormalizationStep

        normalization = NormalizationStep(config.normalization)
        steps.append(EachMessage(normalization) if talk else normalization)
    if config.language.keep:
        from tasks.prepare.language import LanguageStep

        language = LanguageStep(config.language)
        steps.append(AllMessages(language) if talk else language)
    if config.quality.families and not talk:
        from tasks.prepare.quality import quality_steps

        steps += quality_steps(config.quality)
    if config.pii.mask:
        from tasks.prepare.pii import PiiStep

        pii = PiiStep(config.pii)
        steps.append(EachMessage(pii) if talk else pii)
    if config.decontamination.ngram is not None and split == "train":
        from tasks.prepare.decontamination import DecontaminationStep

        assert ngrams is not None, "decontamination without the texts to compare with"
        decontamination = DecontaminationStep(config.decontamination, ngrams)
        steps.append(AllMessages(decontamination) if talk else decontamination)
    return tuple(steps)
