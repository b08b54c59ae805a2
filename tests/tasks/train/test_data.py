from typing import Any

import numpy as np
import pytest

from tasks.tokenize.shard_reader import ShardReader
from tasks.train.order import GlobalOrder, global_batch

pytestmark = pytest.mark.slow  # imports torch


@pytest.fixture
def source(inputs: Any) -> Any:
    from schemas.stage import Stage
    from tasks.train.data import BatchSource

    reader = ShardReader(inputs.manifest, folder=inputs.dirs[Stage.TOKENIZE], split="train")
    return BatchSource(reader, manifest=inputs.manifest, split="train")


def test_padding_is_not_learned(source: Any) -> None:
    """The shards hold 23 and 18 rows; the last row of each has 5 tokens."""
    batch = source.batch(np.array([0, 22, 23, 40]))
    labels = batch.labels.numpy()
    assert (labels[[0, 2]] == batch.tokens.numpy()[[0, 2]]).all()
    for row in (1, 3):
        assert (labels[row, :5] == batch.tokens.numpy()[row, :5]).all()
        assert (labels[row, 5:] == -100).all()
    assert batch.num_targets == int((labels[:, 1:] != -100).sum())


def test_whole_rows_share_their_memory_with_the_labels(source: Any) -> None:
    batch = source.batch(np.array([3, 4]))
    assert batch.labels is batch.tokens
    assert batch.num_targets == 2 * 15


def test_batches_are_a_function_of_the_step(source: Any) -> None:
    from tasks.train.data import TrainingBatches

    def make(rank: int, world_size: int) -> Any:
        return TrainingBatches(source, order=GlobalOrder(41, 7), global_batch_size=12, micro_batch_size=2, rank=rank, world_size=world_size)

    forward, jumping = make(1, 3), make(1, 3)
    expected = {step: [batch.tokens.numpy() for batch in forward.at(step)] for step in range(6)}
    for step in (5, 0, 0, 3, 4):
        assert all(np.array_equal(one.tokens.numpy(), other) for one, other in zip(jumping.at(step), expected[step], strict=True))
    ranks = [make(rank, 3) for rank in range(3)]
    rows = np.concatenate([batch.tokens.numpy() for rank in ranks for batch in rank.at(4)])
    whole = source.batch(global_batch(4, num_sequences=41, global_batch_size=12, seed=7)).tokens.numpy()
    assert sorted(map(tuple, rows)) == sorted(map(tuple, whole))
    for batches in (forward, jumping, *ranks):
        batches.close()


def test_errors_of_the_reading_thread_reach_the_loop(source: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks.train.data import TrainingBatches

    batches = TrainingBatches(source, order=GlobalOrder(41, 7), global_batch_size=4, micro_batch_size=2, rank=0, world_size=1)
    monkeypatch.setattr(source, "batches", lambda parts: (_ for _ in ()).throw(OSError("gone")))
    with pytest.raises(OSError, match="gone"):
        batches.at(0)
    batches.close()
