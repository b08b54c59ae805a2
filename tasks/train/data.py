"""Batches as a pure function of the step: no iterator, so nothing to save and nothing to restore.

Shapes: B sequences of a micro-batch, L tokens of a sequence.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from schemas.act import batch_number
from schemas.checkpoint import BatchWindow
from schemas.manifest import ShardManifest, Split
from tasks.train.order import BatchOrder, Indices, rank_slice

IGNORED = -100
"""Label of a position that is not learned: torch's `ignore_index`."""


class Rows(Protocol):
    """What reads token rows of one split (`tasks.tokenize.shard_reader.ShardReader`)."""

    @property
    def num_sequences(self) -> int:
        """Rows of the split."""

    def rows(self, indices: Indices) -> npt.NDArray[np.int64]:
        """Returns the ids of rows `indices`: int64 [B, L]."""


@dataclass(frozen=True)
class Batch:
    """One micro-batch on the CPU."""

    indices: Indices
    """Which sequences of the split, int64 [B]."""
    tokens: torch.Tensor
    """Ids, int64 [B, L]."""
    labels: torch.Tensor
    """int64 [B, L]: the ids again, with `IGNORED` in the padded tail of a group's last row. Shifting by one is the model's business."""
    num_targets: int
    """Predicted positions: labels that count, without the first of each row."""


class BatchSource:
    """Micro-batches of one split."""

    def __init__(self, reader: Rows, *, manifest: ShardManifest, split: Split) -> None:
        """Args: reader: reads the rows of `split` of `manifest`."""
        self._reader = reader
        self.num_sequences = reader.num_sequences
        shards = manifest.of_split(split)
        lasts = np.cumsum([shard.rows for shard in shards], dtype=np.int64) - 1
        lengths = np.array([shard.last_row_tokens for shard in shards], dtype=np.int64)
        is_short = lengths < manifest.sequence_length
        self._short_rows, self._short_lengths = lasts[is_short], lengths[is_short]

    def batch(self, indices: Indices) -> Batch:
        """Returns the rows `indices` with labels."""
        return self.batches([indices])[0]

    def batches(self, parts: Sequence[Indices]) -> list[Batch]:
        """Returns a batch for each of `parts`. All rows are read at once; the batches' tokens are views."""
        if not parts:
            return []
        indices = np.concatenate(parts)
        tokens = torch.from_numpy(self._reader.rows(indices))
        is_padded = np.isin(indices, self._short_rows)
        batches, first = [], 0
        for part in parts:
            last = first + part.size
            batches.append(self._batch(part, tokens[first:last], padded=np.flatnonzero(is_padded[first:last])))
            first = last
        return batches

    def _batch(self, indices: Indices, tokens: torch.Tensor, *, padded: Indices) -> Batch:
        """Returns a batch of the rows `indices`. `padded`: which of them end in padding."""
        num_rows, length = tokens.shape
        if not padded.size:
            return Batch(indices, tokens, tokens, num_targets=num_rows * (length - 1))
        labels, missing = tokens.clone(), 0
        for row in padded:
            num_tokens = int(self._short_lengths[np.searchsorted(self._short_rows, indices[row])])
            labels[row, num_tokens:] = IGNORED
            missing += length - max(num_tokens, 1)
        return Batch(indices, tokens, labels, num_targets=num_rows * (length - 1) - missing)


class TrainingBatches:
    """The micro-batches of this rank, step by step. A thread reads one step ahead, so a slow file system is waited for only once."""

    def __init__(
        self,
        source: BatchSource,
        *,
        global_batch_size: int,
        micro_batch_size: int,
        seed: int,
        rank: int,
        world_size: int,
        skipped: Sequence[BatchWindow] = (),
    ) -> None:
        """Args: source: the training split. skipped: batches that are never used, ascending and disjoint."""
        self._source, self._skipped = source, skipped
        self._order = BatchOrder(num_sequences=source.num_sequences, global_batch_size=global_batch_size, seed=seed)
        self._micro_batch_size = micro_batch_size
        self._rank, self._world_size = rank, world_size
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")
        self._ahead: tuple[int, Future[Sequence[Batch]]] | None = None

    def at(self, step: int) -> Sequence[Batch]:
        """Returns the micro-batches of update `step`, 0-based."""
        ahead = self._ahead
        batches = ahead[1].result() if ahead is not None and ahead[0] == step else self._read(step)
        self._ahead = (step + 1, self._executor.submit(self._read, step + 1))
        return batches

    def close(self) -> None:
        """Ends the reading thread."""
        self._executor.shutdown(cancel_futures=True)

    def _read(self, step: int) -> Sequence[Batch]:
        batch = self._order.batch(batch_number(step, self._skipped))
        own = rank_slice(batch, rank=self._rank, world_size=self._world_size, micro_batch_size=self._micro_batch_size)
        return self._source.batches(own)
