"""Plain PyTorch gets the sequences that this project's own training gets, in the same order, from any step on."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.errors import InputError
from tasks.train.order import GlobalOrder
from tests.fakes.tiny_training import make_shards

pytestmark = pytest.mark.slow  # imports torch

STEPS = 9


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 23 and 18 training rows; the last row of each is padded."""
    folder = tmp_path_factory.mktemp("shards")
    make_shards(folder, rows={"train": (23, 18), "validation": (11,)})
    return folder


def sampler(rank: int = 0, world_size: int = 1, **options: Any) -> Any:
    from tasks.train.torch_dataset import StepSampler

    sizes = {"num_steps": STEPS, "global_batch_size": 12, "micro_batch_size": 2}
    return StepSampler(GlobalOrder(41, 7), **(sizes | options), rank=rank, world_size=world_size)


@pytest.mark.parametrize(("rank", "world_size"), [(0, 1), (1, 3), (4, 5)])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_gives_the_batches_of_training(folder: Path, rank: int, world_size: int, num_workers: int) -> None:
    from torch.utils.data import DataLoader

    from tasks.tokenize.shard_reader import ShardReader
    from tasks.train.data import BatchSource, TrainingBatches
    from tasks.train.torch_dataset import ShardDataset

    dataset = ShardDataset(folder)
    source = BatchSource(ShardReader(dataset.manifest, folder=folder, split="train"), manifest=dataset.manifest, split="train")
    own = TrainingBatches(source, order=dataset.order(seed=7), global_batch_size=12, micro_batch_size=2, rank=rank, world_size=world_size)
    expected = [batch for step in range(STEPS) for batch in own.at(step)]
    own.close()
    order = sampler(rank, world_size)
    found = list(DataLoader(dataset, sampler=order, batch_size=None, num_workers=num_workers))
    assert len(found) == len(expected) == len(order)
    for batch, wanted in zip(found, expected, strict=True):
        assert np.array_equal(batch["input_ids"].numpy(), wanted.tokens.numpy())
        assert np.array_equal(batch["labels"].numpy(), wanted.labels.numpy())
    assert any((wanted.labels.numpy() == -100).any() for wanted in expected), "padding must occur"


@pytest.mark.parametrize("start_step", [0, 1, 5, STEPS])
def test_it_goes_on_from_any_step_without_state(start_step: int) -> None:
    whole = list(sampler(1, 2))
    rest = list(sampler(1, 2, start_step=start_step))
    assert len(rest) == (STEPS - start_step) * 3
    assert all(np.array_equal(one, other) for one, other in zip(rest, whole[start_step * 3 :], strict=True))


def test_a_sequence_alone_and_shuffled_by_torch(folder: Path) -> None:
    from torch.utils.data import DataLoader

    from tasks.train.torch_dataset import ShardDataset

    dataset = ShardDataset(folder)
    whole = dataset[np.arange(len(dataset))]
    assert whole["input_ids"].shape == (41, dataset.manifest.sequence_length)
    assert np.array_equal(dataset[40]["labels"].numpy(), whole["labels"][40].numpy())
    rows = np.concatenate([batch["input_ids"].numpy() for batch in DataLoader(dataset, batch_size=5, shuffle=True)])
    assert sorted(map(tuple, rows)) == sorted(map(tuple, whole["input_ids"].numpy()))


def test_a_used_dataset_can_be_handed_to_another_process(folder: Path) -> None:
    from tasks.train.torch_dataset import ShardDataset

    dataset = ShardDataset(folder, split="validation")
    first = dataset[3]["input_ids"].numpy()
    assert np.array_equal(pickle.loads(pickle.dumps(dataset))[3]["input_ids"].numpy(), first)


def test_a_folder_without_a_manifest_is_named(tmp_path: Path) -> None:
    from tasks.train.torch_dataset import ShardDataset

    with pytest.raises(InputError, match=r"manifest\.json: not a manifest of token shards"):
        ShardDataset(tmp_path)
