"""From encoded documents to the shards of one (group, split): packed as the facts say, and, where they say so, one source after the other."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from tasks.tokenize.best_fit import BestFitPacker
from tasks.tokenize.facts import ShardFacts
from tasks.tokenize.packing import PackedShard, Packer
from tasks.tokenizer.corpus import Columns
from tasks.tokenizer.engine import Encoded


class _Packs(Protocol):
    """What lays documents into rows."""

    def add(self, encoded: Encoded, *, sizes: npt.NDArray[np.int64]) -> list[PackedShard]:
        """Appends documents and returns the shards that became full."""

    def finish(self) -> list[PackedShard]:
        """Returns what is left and begins anew."""


def runs_of(columns: Columns) -> Iterator[tuple[str, slice]]:
    """Yields the documents of one source that follow each other: its name, and which they are. The columns must hold sources."""
    assert columns.sources is not None
    names = np.array(columns.sources.to_pylist(), dtype=object)  # pyarrow's own way to numpy imports pandas
    bounds = [0, *(np.flatnonzero(names[1:] != names[:-1]) + 1).tolist(), names.size]
    yield from ((str(names[first]), slice(first, last)) for first, last in itertools.pairwise(bounds))


class ShardCutter:
    """Packs the documents of one (group, split), in their order."""

    def __init__(self, facts: ShardFacts) -> None:
        """Args: facts: what all shards have in common."""
        kind = BestFitPacker if facts.packing == "best_fit" else Packer
        self._packer: _Packs = kind(
            sequence_length=facts.sequence_length,
            rows_per_shard=facts.sequences_per_shard,
            vocab_size=facts.vocab_size,
            end_of_text_id=facts.end_of_text_id,
            boundaries=facts.boundaries,
            loss_masks=bool(facts.conversations),
        )
        self._by_source, self._source = facts.by_source, ""

    def add(self, columns: Columns, encoded: Encoded, *, sizes: npt.NDArray[np.int64]) -> Iterator[PackedShard]:
        """Yields the shards that became full, or that end because another source begins.

        Args:
            columns: some documents; with their sources, when shards are cut by source.
            encoded: their ids.
            sizes: UTF-8 bytes of each.
        """
        if not self._by_source:
            yield from self._packer.add(encoded, sizes=sizes)
            return
        for source, documents in runs_of(columns):
            if source != self._source:
                yield from self.finish()
                self._source = source
            offsets = encoded.offsets[documents.start : documents.stop + 1]
            ids = slice(offsets[0], offsets[-1])
            part = Encoded(encoded.ids[ids], offsets - offsets[0], learned=None if encoded.learned is None else encoded.learned[ids])
            yield from self._named(self._packer.add(part, sizes=sizes[documents]))

    def finish(self) -> Iterator[PackedShard]:
        """Yields what is left, its last row padded."""
        yield from self._named(self._packer.finish())

    def _named(self, shards: Iterable[PackedShard]) -> Iterator[PackedShard]:
        return (replace(shard, source=self._source) for shard in shards)
