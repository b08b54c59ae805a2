"""Exact figures of a corpus: counted while scanning, merged over groups, laid out as the table that is judged. Pure."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from schemas.frozen import Frozen, added_later
from schemas.manifest import SPLITS, Split
from tasks.validate.figures.corpus import CorpusFigures
from tasks.validate.problem import Reason

_LENGTH_BUCKETS = 32


class Lengths(Frozen):
    """The accepted documents of one source in one split."""

    documents: int = 0
    """Documents."""
    text_bytes: int = 0
    """UTF-8 bytes of their texts."""
    chars: int = 0
    """Characters."""
    min_chars: int | None = None
    """Characters of the shortest; null without documents."""
    max_chars: int | None = None
    """Characters of the longest; null without documents."""
    by_length: tuple[int, ...] = ()
    """Documents by length: entry k counts those of 2^(k-1) … 2^k - 1 characters."""


class SourceStats(Frozen):
    """What was read from one source and what became of it."""

    source: str
    """Its name."""
    files: int = 0
    """Raw files."""
    raw_bytes: int = 0
    """Stored bytes of the raw files."""
    unreadable_bytes: int = 0
    """Stored bytes of files of which not one record could be read."""
    read: int = 0
    """Records."""
    reasons: dict[str, int] = {}
    """Quarantined records by reason."""
    accepted: dict[Split, Lengths] = {}
    """Accepted documents by split."""
    encodings: dict[str, int] = added_later({})
    """Raw files by what they were read as, `unknown` if that could not be told; none of those that are UTF-8 by default."""

    @property
    def num_accepted(self) -> int:
        """Accepted documents."""
        return sum(lengths.documents for lengths in self.accepted.values())

    @property
    def num_quarantined(self) -> int:
        """Quarantined records."""
        return sum(self.reasons.values())

    @property
    def lengths(self) -> Lengths:
        """The accepted documents of all splits."""
        return merge_lengths(self.accepted.values())


class CorpusStats(Frozen):
    """`stats.json`: the figures of every source and of the whole."""

    schema_version: int = 1
    """Version of this type."""
    sources: tuple[SourceStats, ...]
    """In the order of the recipe."""
    total: SourceStats
    """All sources, under the name `total`."""
    figures: CorpusFigures | None = None
    """What texts and columns look like; null in stages that do not count it, and in corpora from before it was counted."""


@dataclass
class LengthTally:
    """Counts documents as they come."""

    documents: int = 0
    text_bytes: int = 0
    chars: int = 0
    min_chars: int | None = None
    max_chars: int | None = None
    by_length: list[int] = field(default_factory=lambda: [0] * _LENGTH_BUCKETS)

    def add(self, *, chars: int, text_bytes: int) -> None:
        """Counts one document."""
        self.documents += 1
        self.text_bytes += text_bytes
        self.chars += chars
        if self.min_chars is None or chars < self.min_chars:
            self.min_chars = chars
        if self.max_chars is None or chars > self.max_chars:
            self.max_chars = chars
        self.by_length[chars.bit_length()] += 1

    def add_all(self, *, chars: NDArray[np.int64], text_bytes: int) -> None:
        """Counts documents, at least one: their lengths [documents] and the bytes of all."""
        self.documents += len(chars)
        self.text_bytes += text_bytes
        self.chars += int(chars.sum())
        shortest, longest = int(chars.min()), int(chars.max())
        self.min_chars = shortest if self.min_chars is None else min(self.min_chars, shortest)
        self.max_chars = longest if self.max_chars is None else max(self.max_chars, longest)
        for bucket, count in enumerate(np.bincount(np.frexp(chars)[1])):  # the exponent of frexp is an integer's bit length
            self.by_length[bucket] += int(count)

    def lengths(self) -> Lengths:
        """Returns the counts."""
        last = max((index for index, count in enumerate(self.by_length) if count), default=-1)
        return Lengths(
            documents=self.documents,
            text_bytes=self.text_bytes,
            chars=self.chars,
            min_chars=self.min_chars,
            max_chars=self.max_chars,
            by_length=tuple(self.by_length[: last + 1]),
        )


@dataclass
class SourceTally:
    """Counts the records of one source as they come."""

    source: str
    files: int = 0
    raw_bytes: int = 0
    unreadable_bytes: int = 0
    read: int = 0
    reasons: Counter[Reason] = field(default_factory=Counter)
    encodings: Counter[str] = field(default_factory=Counter)
    accepted: dict[Split, LengthTally] = field(default_factory=lambda: {split: LengthTally() for split in SPLITS})

    def stats(self) -> SourceStats:
        """Returns the counts."""
        return SourceStats(
            source=self.source,
            files=self.files,
            raw_bytes=self.raw_bytes,
            unreadable_bytes=self.unreadable_bytes,
            read=self.read,
            reasons={reason.value: count for reason, count in sorted(self.reasons.items())},
            accepted={split: tally.lengths() for split, tally in self.accepted.items()},
            encodings=dict(sorted(self.encodings.items())),
        )


def merge_lengths(parts: Iterable[Lengths]) -> Lengths:
    """Returns the counts of several disjoint sets of documents together."""
    present = [part for part in parts if part.documents]
    buckets = max((len(part.by_length) for part in present), default=0)
    return Lengths(
        documents=sum(part.documents for part in present),
        text_bytes=sum(part.text_bytes for part in present),
        chars=sum(part.chars for part in present),
        min_chars=min((part.min_chars for part in present if part.min_chars is not None), default=None),
        max_chars=max((part.max_chars for part in present if part.max_chars is not None), default=None),
        by_length=tuple(sum(part.by_length[index] for part in present if index < len(part.by_length)) for index in range(buckets)),
    )


def merge_stats(parts: Iterable[SourceStats], *, source: str) -> SourceStats:
    """Returns the counts of several disjoint sets of records together, under one name."""
    present = list(parts)
    reasons: Counter[str] = Counter()
    encodings: Counter[str] = Counter()
    for part in present:
        reasons.update(part.reasons)
        encodings.update(part.encodings)
    return SourceStats(
        source=source,
        files=sum(part.files for part in present),
        raw_bytes=sum(part.raw_bytes for part in present),
        unreadable_bytes=sum(part.unreadable_bytes for part in present),
        read=sum(part.read for part in present),
        reasons=dict(sorted(reasons.items())),
        accepted={split: merge_lengths(part.accepted[split] for part in present if split in part.accepted) for split in SPLITS},
        encodings=dict(sorted(encodings.items())),
    )


def corpus_stats(parts: Iterable[SourceStats], *, source_names: tuple[str, ...], figures: CorpusFigures | None = None) -> CorpusStats:
    """Returns the figures of the corpus from those of its groups. `figures`: what else is known of it.

    Raises:
        AssertionError: accepted + quarantined ≠ read somewhere: a defect of ours that must never go unnoticed.
    """
    by_source: Mapping[str, list[SourceStats]] = {name: [] for name in source_names}
    for part in parts:
        by_source[part.source].append(part)
    sources = tuple(merge_stats(found, source=name) for name, found in by_source.items())
    total = merge_stats(sources, source="total")
    for stats in (*sources, total):
        counts = f"{stats.source}: {stats.num_accepted} accepted + {stats.num_quarantined} quarantined, {stats.read} read"
        assert stats.num_accepted + stats.num_quarantined == stats.read, counts
    return CorpusStats(sources=sources, total=total, figures=figures)
