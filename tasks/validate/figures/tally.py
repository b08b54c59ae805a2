"""Counts what is written: every row group of accepted documents and of quarantined records passes here once, as Arrow columns.

So the figures are of what is in the files, whichever way it came there, and cost a few passes over memory that is at hand.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.manifest import SPLITS, Split
from tasks.validate.figures.arrow import bytes_of, integers_of, offsets_of
from tasks.validate.figures.characters import CharacterTally
from tasks.validate.figures.columns import ColumnsTally
from tasks.validate.figures.corpus import SourceFigures, SplitFigures
from tasks.validate.figures.distinct import DistinctTally
from tasks.validate.figures.histogram import Histogram, counts_of
from tasks.validate.figures.languages import LanguageTally
from tasks.validate.figures.refused import RefusedTally
from tasks.validate.figures.sampling import EVERY, Sampling, chosen


@dataclass
class _DocumentTally:
    """The documents of one source in one split."""

    sampling: Sampling
    distinct: DistinctTally | None
    lengths: Counter[int] = field(default_factory=Counter)
    characters: CharacterTally = field(default_factory=CharacterTally)
    columns: ColumnsTally = field(default_factory=ColumnsTally)
    languages: LanguageTally = field(default_factory=LanguageTally)

    def add(self, batch: pa.RecordBatch) -> None:
        """Takes rows of `ACCEPTED_SCHEMA`, at least one."""
        self.lengths.update(counts_of(integers_of(pc.utf8_length(batch.column("text")))))
        if self.distinct is not None:
            self.distinct.add(bytes_of(batch.column("doc_id")))
        looked_at = chosen(batch, one_in=self.sampling.text)
        texts = looked_at.column("text")
        self.characters.add(bytes_of(texts), starts=offsets_of(texts)[:-1])
        self.languages.add(looked_at)
        looked_at = chosen(looked_at.select(["doc_id", "extra"]), one_in=self.sampling.columns)
        extras = looked_at.column("extra")
        there = [] if extras.null_count == len(extras) else extras.drop_null().cast(pa.binary()).to_pylist()
        self.columns.add(there, documents=looked_at.num_rows)

    def figures(self) -> SplitFigures:
        """Returns the counts."""
        return SplitFigures(
            lengths=Histogram(counts=dict(sorted(self.lengths.items()))),
            characters=self.characters.characters(),
            columns=self.columns.columns(),
            languages=self.languages.languages(),
            hashes=() if self.distinct is None else self.distinct.hashes(),
        )


class FiguresTally:
    """Counts what one group leaves."""

    def __init__(self, sampling: Sampling = EVERY, *, keeps_duplicates: bool) -> None:
        """Args:
        sampling: which documents are looked at closely.
        keeps_duplicates: whether documents with equal text may be among the accepted ones.
        """
        self._sampling, self._keeps_duplicates = sampling, keeps_duplicates
        self._documents: dict[str, dict[Split, _DocumentTally]] = {}
        self._refused: dict[str, RefusedTally] = {}

    def accept(self, rows: pa.Table, *, split: Split) -> None:
        """Takes a row group of accepted documents."""
        for source, batch in _by_source(rows):
            tallies = self._documents.setdefault(source, {})
            if split not in tallies:
                tallies[split] = _DocumentTally(self._sampling, DistinctTally() if self._keeps_duplicates else None)
            tallies[split].add(batch)

    def refuse(self, rows: pa.Table) -> None:
        """Takes a row group of quarantined records."""
        for source, batch in _by_source(rows):
            self._refused.setdefault(source, RefusedTally()).add(batch)

    def figures(self) -> tuple[SourceFigures, ...]:
        """Returns the counts by source."""
        found = []
        for source in dict.fromkeys((*self._documents, *self._refused)):
            tallies, refused = self._documents.get(source, {}), self._refused.get(source, RefusedTally())
            splits = {split: tallies[split].figures() for split in SPLITS if split in tallies}
            found.append(SourceFigures(source=source, splits=splits, refused=refused.refused()))
        return tuple(found)


def _by_source(rows: pa.Table) -> Iterator[tuple[str, pa.RecordBatch]]:
    """Yields the rows in runs of one source; a group has its sources one after the other."""
    for batch in rows.to_batches():
        if not batch.num_rows:
            continue
        sources = batch.column("source").dictionary_encode()
        names, codes = sources.dictionary.to_pylist(), integers_of(sources.indices)
        starts = [0, *(np.flatnonzero(np.diff(codes)) + 1).tolist()]
        for start, stop in zip(starts, [*starts[1:], len(codes)], strict=True):
            yield names[codes[start]], batch.slice(start, stop - start)
