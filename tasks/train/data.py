"""Batches as a pure function of the step: no iterator, so nothing to save and nothing to restore.

Shapes: B sequences of a micro-batch, L tokens of a sequence.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from schemas.act import batch_number
from schemas.checkpoint import BatchWindow
from schemas.manifest import ShardManifest, Split
from tasks.train.documents import MarkedRows, Marks, marks_of, num_targets_of
from tasks.train.host_memory import PAGEABLE, HostMemory
from tasks.train.order import BatchOrder, Indices, Order, rank_slice

IGNORED = -100
"""Label of a position that is not learned: torch's `ignore_index`."""


class Rows(MarkedRows, Protocol):
    """What reads token rows of one split (`tasks.tokenize.shard_reader.ShardReader`)."""

    sequence_length: int
    """Tokens of a row."""

    @property
    def num_sequences(self) -> int:
        """Rows of the split."""

    def rows(self, indices: Indices, *, out: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Puts the ids of rows `indices` into `out`, int64 [B, L], and returns it."""


@dataclass(frozen=True)
class Batch:
    """One micro-batch on the CPU."""

    indices: Indices
    """Which sequences of the split, int64 [B]."""
    tokens: torch.Tensor
    """Ids, int64 [B, L]."""
    labels: torch.Tensor
    """int64 [B, L]: the ids again, with `IGNORED` in padding, and where documents are kept apart. Shifting by one is the model's business."""
    num_targets: int
    """Predicted positions: labels that count, without the first of each row."""
    positions: torch.Tensor | None = None
    """Place of each token in its document, int64 [B, L]; None where documents are not kept apart."""
    weight: float = 1.0
    """Factor of its mean loss in a step: with it every target of the step counts equally, however many are in the same micro-batch."""


class BatchSource:
    """Micro-batches of one split."""

    def __init__(self, reader: Rows, *, manifest: ShardManifest, split: Split, masked: bool = False, memory: HostMemory = PAGEABLE) -> None:
        """Args: reader: reads the rows of `split` of `manifest`. masked: whether documents of a sequence are kept apart. memory: takes batches."""
        self._reader, self._masked, self.memory = reader, masked, memory
        self.is_marked = masked or manifest.packing == "best_fit" or manifest.loss_masks
        """Whether any row may have labels that are not learned, so that micro-batches differ in their targets."""
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
        tokens = self.memory.empty(indices.size, self._reader.sequence_length)
        self._reader.rows(indices, out=tokens.numpy())
        marks = marks_of(self._reader, indices, length=tokens.shape[1], masked=self._masked) if self.is_marked else None
        is_padded = np.isin(indices, self._short_rows)
        batches, first = [], 0
        for part in parts:
            rows = slice(first, first + part.size)
            if marks is not None:
                batches.append(self._marked_batch(part, tokens[rows], marks=marks.part(rows)))
            else:
                batches.append(self._batch(part, tokens[rows], padded=np.flatnonzero(is_padded[rows])))
            first = rows.stop
        return batches

    def num_targets(self, indices: Indices) -> int:
        """Returns the predicted positions of the rows `indices` of a marked split, of whatever rank they are; ids are not read."""
        return num_targets_of(self._reader, indices, length=self._reader.sequence_length, masked=self._masked)

    def _batch(self, indices: Indices, tokens: torch.Tensor, *, padded: Indices) -> Batch:
        """Returns a batch of the rows `indices`. `padded`: which of them end in padding."""
        num_rows, length = tokens.shape
        if not padded.size:
            return Batch(indices, tokens, tokens, num_targets=num_rows * (length - 1))
        labels, missing = self.memory.copy(tokens), 0
        for row in padded:
            num_tokens = int(self._short_lengths[np.searchsorted(self._short_rows, indices[row])])
            labels[row, num_tokens:] = IGNORED
            missing += length - max(num_tokens, 1)
        return Batch(indices, tokens, labels, num_targets=num_rows * (length - 1) - missing)

    def _marked_batch(self, indices: Indices, tokens: torch.Tensor, *, marks: Marks) -> Batch:
        """Returns a batch of rows of which more is known than where their last one ends."""
        labels = self.memory.copy(tokens).masked_fill_(marks.ignored, IGNORED)
        positions = self.memory.copy(marks.positions) if marks.positions is not None and self.memory.is_pinned else marks.positions
        return Batch(indices, tokens, labels, num_targets=int((~marks.ignored[:, 1:]).sum()), positions=positions)


class TrainingBatches:
    """The micro-batches of this rank, step by step. A thread reads one step ahead, so a slow file system is waited for only once."""

    def __init__(
        self,
        source: BatchSource,
        *,
        order: Order,
        global_batch_size: int,
        micro_batch_size: int,
        rank: int,
        world_size: int,
        skipped: Sequence[BatchWindow] = (),
    ) -> None:
        """Args: source: the training split. order: of its sequences. skipped: batches that are never used, ascending and disjoint."""
        self._source, self._skipped = source, skipped
        self._order = BatchOrder(order, global_batch_size=global_batch_size)
        self._micro_batch_size = micro_batch_size
        self._rank, self._world_size = rank, world_size
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches", initializer=source.memory.bind)
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
        batches = self._source.batches(own)
        if not self._source.is_marked:
            return batches
        share = -(-batch.size // self._micro_batch_size) / max(1, self._source.num_targets(batch))
        return [replace(each, weight=each.num_targets * share) for each in batches]
