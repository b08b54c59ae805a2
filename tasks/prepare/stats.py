"""Exact figures of a preparation: what each step read, changed and refused, what is left by source and split. Merged over groups. Pure."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from schemas.frozen import Frozen, added_later
from schemas.manifest import SPLITS, Split
from tasks.prepare.steps import Outcome
from tasks.validate.stats import CorpusStats, Lengths, LengthTally, SourceStats


class StepStats(Frozen):
    """What one step did."""

    name: str
    """The step."""
    read: int = 0
    """Documents that came to it."""
    changed: int = 0
    """Documents that stay with another text."""
    refused: dict[str, int] = {}
    """Documents refused, by reason."""
    counts: dict[str, int] = {}
    """What was done in documents, by kind: masked addresses, lines cut out."""

    @property
    def num_refused(self) -> int:
        """Documents refused."""
        return sum(self.refused.values())


class LargeCluster(Frozen):
    """A set of documents that are the same, or nearly."""

    documents: int
    """Its size."""
    kept: str
    """`doc_id` of the one that stays."""
    split: Split
    """That one's split."""
    group: int
    """That one's group."""


class DuplicateStats(Frozen):
    """What was found by comparing documents with each other."""

    compared: int = 0
    """Documents compared."""
    clusters: int = 0
    """Sets of two or more."""
    refused: dict[str, int] = {}
    """Documents refused, by reason."""
    refused_for_held_out: int = 0
    """Training documents among them that resemble a held-out one."""
    largest: tuple[LargeCluster, ...] = ()
    """The largest sets, by size."""


class PreparationStats(CorpusStats):
    """`stats.json`: by source what was read, refused and kept, as of `validate`, and what each step did."""

    compared_with: dict[str, int] = added_later({})
    """Texts that training documents were compared with, by what they are of: a split, a file, the prompts. Empty: that is not declared."""
    steps: tuple[StepStats, ...] = ()
    """Steps that look at documents one by one, in order."""
    duplicates: DuplicateStats | None = None
    """The comparison of documents with each other; null where it is not declared."""


@dataclass
class StepTally:
    """Counts what a step does, as it does it."""

    name: str
    read: int = 0
    changed: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, text: str, outcome: Outcome) -> None:
        """Counts what became of one document. `text`: as it came."""
        self.read += 1
        if outcome.text is None:
            self.refused[outcome.reason] += 1
        elif outcome.text != text:
            self.changed += 1
        if outcome.counts:
            self.counts.update(outcome.counts)

    def stats(self) -> StepStats:
        """Returns the counts."""
        refused, counts = dict(sorted(self.refused.items())), dict(sorted(self.counts.items()))
        return StepStats(name=self.name, read=self.read, changed=self.changed, refused=refused, counts=counts)


@dataclass
class SourceTally:
    """Counts the documents of one source as they come."""

    source: str
    read: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    left: dict[Split, LengthTally] = field(default_factory=lambda: {split: LengthTally() for split in SPLITS})

    def keep(self, text: str, *, text_bytes: int, split: Split) -> None:
        """Counts a document that stays."""
        self.left[split].add(chars=len(text), text_bytes=text_bytes)

    def stats(self) -> SourceStats:
        """Returns the counts; raw files are `validate`'s to count."""
        accepted = {split: tally.lengths() for split, tally in self.left.items()}
        return SourceStats(source=self.source, read=self.read, reasons=dict(sorted(self.reasons.items())), accepted=accepted)


def merge_steps(parts: Iterable[Sequence[StepStats]]) -> tuple[StepStats, ...]:
    """Returns the counts of the same steps over several sets of documents. A step that only some sets came to is merged, too."""
    merged: dict[str, StepTally] = {}
    for steps in parts:
        for step in steps:
            tally = merged.setdefault(step.name, StepTally(step.name))
            tally.read += step.read
            tally.changed += step.changed
            tally.refused.update(step.refused)
            tally.counts.update(step.counts)
    return tuple(tally.stats() for tally in merged.values())


def without(stats: SourceStats, *, removed: dict[str, int], left: dict[Split, Lengths], splits: Sequence[Split]) -> SourceStats:
    """Returns the figures of a source after documents were removed from some splits.

    Args:
        stats: before.
        removed: documents by reason.
        left: what is left in the splits concerned.
        splits: those splits.
    """
    reasons = Counter(stats.reasons)
    reasons.update(removed)
    accepted = {split: left.get(split, Lengths()) if split in splits else lengths for split, lengths in stats.accepted.items()}
    return stats.model_copy(update={"reasons": dict(sorted(reasons.items())), "accepted": accepted})
