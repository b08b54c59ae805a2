"""The figures of a corpus by source and split, beside the exact counts of `stats.py`, and how those of groups become those of the whole. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

from schemas.frozen import Frozen
from schemas.manifest import SPLITS, Split
from tasks.validate.figures.characters import Characters, merge_characters
from tasks.validate.figures.columns import Columns, merge_columns
from tasks.validate.figures.distinct import merge_hashes
from tasks.validate.figures.histogram import Histogram, merge_histograms
from tasks.validate.figures.languages import merge_languages
from tasks.validate.figures.refused import Refused, merge_refused
from tasks.validate.figures.sampling import EVERY, Sampling


class SplitFigures(Frozen):
    """The accepted documents of one source in one split."""

    lengths: Histogram = Histogram()
    """Documents by characters."""
    characters: Characters = Characters()
    """What their texts consist of."""
    columns: Columns = Columns()
    """Their other columns."""
    languages: dict[int, str] = {}
    """Hash → language of a few of them (`languages.py`)."""
    hashes: tuple[int, ...] = ()
    """The lowest hashes of different documents (`distinct_of`), where duplicates are kept; otherwise empty, as all documents are different."""


class SourceFigures(Frozen):
    """One source."""

    source: str
    """Its name."""
    splits: dict[Split, SplitFigures] = {}
    """Its accepted documents."""
    refused: Refused = Refused()
    """Its quarantined records."""

    @cached_property
    def whole(self) -> SplitFigures:
        """The accepted documents of all splits."""
        return merge_split_figures(self.splits[split] for split in SPLITS if split in self.splits)


class CorpusFigures(Frozen):
    """All sources, in the order of the recipe."""

    sources: tuple[SourceFigures, ...] = ()
    """Of each source."""
    sampling: Sampling = EVERY
    """Which documents were looked at closely: characters and other columns are of these."""

    @cached_property
    def whole(self) -> SplitFigures:
        """The accepted documents of all sources and splits."""
        return merge_split_figures(source.whole for source in self.sources)

    @cached_property
    def refused(self) -> Refused:
        """The quarantined records of all sources."""
        return merge_refused(source.refused for source in self.sources)


def merge_split_figures(parts: Iterable[SplitFigures]) -> SplitFigures:
    """Returns the figures of several disjoint sets of documents together."""
    present = list(parts)
    return SplitFigures(
        lengths=merge_histograms(part.lengths for part in present),
        characters=merge_characters(part.characters for part in present),
        columns=merge_columns(part.columns for part in present),
        languages=merge_languages(part.languages for part in present),
        hashes=merge_hashes(part.hashes for part in present),
    )


def merge_sources(parts: Iterable[SourceFigures], *, source: str) -> SourceFigures:
    """Returns the figures of several sets of records of one source together, in the order of their groups."""
    present = list(parts)
    splits = {split: merge_split_figures(part.splits[split] for part in present if split in part.splits) for split in SPLITS}
    return SourceFigures(source=source, splits=splits, refused=merge_refused(part.refused for part in present))


def corpus_figures(parts: Iterable[SourceFigures], *, source_names: Sequence[str], sampling: Sampling = EVERY) -> CorpusFigures:
    """Returns the figures of a corpus from those of its groups, given in order."""
    by_source: Mapping[str, list[SourceFigures]] = {name: [] for name in source_names}
    for part in parts:
        by_source[part.source].append(part)
    return CorpusFigures(sources=tuple(merge_sources(found, source=name) for name, found in by_source.items()), sampling=sampling)


def without_removed(scanned: Sequence[SourceFigures], removal: Sequence[SourceFigures], *, splits: Sequence[Split]) -> tuple[SourceFigures, ...]:
    """Returns a group's figures after duplicates of earlier groups were removed from it.

    Args:
        scanned: as the scan left them.
        removal: what is left in the splits that were rewritten, and what was removed.
        splits: those.
    """
    left = {figures.source: figures for figures in removal}
    corrected = []
    for figures in scanned:
        own = left.get(figures.source, SourceFigures(source=figures.source))
        kept = {split: own.splits.get(split, SplitFigures()) if split in splits else found for split, found in figures.splits.items()}
        corrected.append(SourceFigures(source=figures.source, splits=kept, refused=merge_refused((figures.refused, own.refused))))
    return tuple(corrected)
