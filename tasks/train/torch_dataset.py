"""Our shards in plain PyTorch: a map-style dataset, and a sampler that gives the order of this project's own training, from any step on.

    from torch.utils.data import DataLoader
    from tasks.train.torch_dataset import ShardDataset, StepSampler

    dataset = ShardDataset(".headrace/data/tokenize/NAME-FINGERPRINT", split="train")
    sampler = StepSampler(dataset.order(seed=1234), num_steps=1200, global_batch_size=32, micro_batch_size=8, rank=rank, world_size=world_size)
    for batch in DataLoader(dataset, sampler=sampler, batch_size=None, num_workers=2):
        batch["input_ids"], batch["labels"]  # int64 [8, L]; labels are -100 in padding, and not shifted

`batch_size=None` because the sampler's elements are whole micro-batches: one copy out of the mapped shards makes a batch, and nothing is put
together afterwards. There is no state to save: to go on after step k, make the sampler with `start_step=k`. Without the sampler the
dataset is like any other: `dataset[i]` is one sequence, and `DataLoader(dataset, batch_size=8, shuffle=True)` works.

Shards that are cut by source can be weighed: `dataset.order(seed=1234, mixture={"weights": {"web": 3, "code": 1}})`.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch.utils.data import Dataset, Sampler

from schemas.errors import InputError
from schemas.manifest import ShardManifest, Split
from schemas.mixture import MixtureConfig
from tasks.tokenize.shard_reader import ShardReader
from tasks.train.data import BatchSource
from tasks.train.order import BatchOrder, Indices, Order, rank_slice
from tasks.train.prescribed_order import order_of


class ShardDataset(Dataset[dict[str, torch.Tensor]]):
    """The sequences of one split of a `tokenize` artifact, or of imported shards. Every shard's hash is checked when it is first used."""

    def __init__(self, folder: str | Path, *, split: Split = "train", masked: bool = False) -> None:
        """A dataset of one split.

        Args:
            folder: holds `manifest.json` and `shards/`.
            split: which one.
            masked: whether a transformers model is to keep the documents of a sequence apart: then there are `position_ids`, too.

        Raises:
            InputError: it is no such folder, or `masked` and the shards do not record where documents start.
        """
        self._folder, self._split, self._masked = Path(folder), split, masked
        path = self._folder / "manifest.json"
        try:
            self.manifest = ShardManifest.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            mend = "give the folder of a `tokenize` artifact, below the storage root"
            raise InputError(f"{path}: not a manifest of token shards", why=str(error).splitlines()[0], mend=mend) from error
        if masked and not self.manifest.boundaries:
            what = f"{path}: the shards do not record where documents start"
            raise InputError(what, why="masked=True keeps documents apart", mend="tokenize with tokenization.boundaries: true")
        self._source: BatchSource | None = None

    def __len__(self) -> int:
        return self.manifest.num_sequences(self._split)

    def __getitem__(self, index: int | Indices) -> dict[str, torch.Tensor]:
        """Returns one sequence, tensors [L], or for an array of B indices a batch, tensors [B, L]: `input_ids` and `labels`, int64.

        Where documents are kept apart, also `position_ids`, int64: give the model no `attention_mask` then, and it makes one of them.
        """
        if self._source is None:  # here, not at the start: each worker of a DataLoader maps the shards by itself
            reader = ShardReader(self.manifest, folder=self._folder, split=self._split)
            self._source = BatchSource(reader, manifest=self.manifest, split=self._split, masked=self._masked)
        batch = self._source.batch(np.asarray(index, dtype=np.int64).reshape(-1))
        tensors = {"input_ids": batch.tokens, "labels": batch.labels} | ({} if batch.positions is None else {"position_ids": batch.positions})
        return tensors if np.ndim(index) else {name: tensor[0] for name, tensor in tensors.items()}

    def order(self, *, seed: int, mixture: Mapping[str, Any] | None = None, window_sequences: int | None = None) -> Order:
        """Returns the order in which this project's own training would use these sequences.

        Args:
            seed: `training.seed` of a recipe whose order is wanted.
            mixture: its `training.mixture`; None: every sequence equally often.
            window_sequences: its `training.window_sequences`; None: all are shuffled together.

        Raises:
            ConfigError: the shards cannot give the mixture.
        """
        weighed = None if mixture is None else MixtureConfig.model_validate(mixture)
        return order_of(self.manifest, seed=seed, mixture=weighed, window_sequences=window_sequences, split=self._split)

    def __getstate__(self) -> dict[str, Any]:
        """Leaves the maps out: workers that are spawned get the dataset as bytes."""
        return self.__dict__ | {"_source": None}


class StepSampler(Sampler[Indices]):
    """A rank's micro-batches, update by update, as `tasks.train.data.TrainingBatches` has them: a pure function of the step."""

    def __init__(
        self,
        order: Order,
        *,
        num_steps: int,
        global_batch_size: int,
        micro_batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        start_step: int = 0,
    ) -> None:
        """A sampler of the updates `start_step` … `num_steps - 1`.

        Args:
            order: of the sequences (`ShardDataset.order`).
            num_steps: updates of the whole training, those before `start_step` included. It may go over the data any number of times.
            global_batch_size: sequences per update over all ranks.
            micro_batch_size: sequences of one element.
            rank: of this process.
            world_size: ranks; the updates' sequences are the same at every one.
            start_step: updates that are done.
        """
        self._order = BatchOrder(order, global_batch_size=global_batch_size)
        self._global_batch_size, self._micro_batch_size = global_batch_size, micro_batch_size
        self._rank, self._world_size = rank, world_size
        self._steps = range(start_step, num_steps)

    def __len__(self) -> int:
        """Returns the number of micro-batches of this rank."""
        micro_batches = range(-(-self._global_batch_size // self._micro_batch_size))
        return len(self._steps) * len(micro_batches[self._rank :: self._world_size])

    def __iter__(self) -> Iterator[Indices]:
        """Yields int64 [B]."""
        for step in self._steps:
            yield from rank_slice(self._order.batch(step), rank=self._rank, world_size=self._world_size, micro_batch_size=self._micro_batch_size)
