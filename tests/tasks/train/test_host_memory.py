"""Where batches are put together: page-locked for a GPU, plain for the CPU. The GPU is played: what is asked of torch is looked at."""

from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.slow  # imports torch


@pytest.fixture
def locked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Returns the shapes that are asked for page-locked, and the devices that threads are bound to."""
    import torch

    asked: list[Any] = []
    empty = torch.empty

    def plain_empty(shape: Any, *, pin_memory: bool = False, **options: Any) -> Any:
        if pin_memory:
            asked.append(tuple(shape))
        return empty(shape, **options)

    monkeypatch.setattr(torch, "empty", plain_empty)
    monkeypatch.setattr(torch.cuda, "set_device", asked.append)
    return asked


def batches_for(inputs: Any, device: Any) -> tuple[Any, Any]:
    """Returns the training batches of the made-up shards, of which the last rows are padded, for a device; and their source."""
    from schemas.stage import Stage
    from tasks.tokenize.shard_reader import ShardReader
    from tasks.train.data import BatchSource, TrainingBatches
    from tasks.train.host_memory import HostMemory
    from tasks.train.order import GlobalOrder

    reader = ShardReader(inputs.manifest, folder=inputs.dirs[Stage.TOKENIZE], split="train")
    source = BatchSource(reader, manifest=inputs.manifest, split="train", memory=HostMemory(device))
    return TrainingBatches(source, order=GlobalOrder(41, 7), global_batch_size=12, micro_batch_size=3, rank=1, world_size=2), source


def test_rows_for_a_gpu_are_gathered_into_page_locked_memory(inputs: Any, locked: list[Any]) -> None:
    import torch

    device = torch.device("cuda", 3)
    batches, _ = batches_for(inputs, device)
    steps = [list(batches.at(step)) for step in range(7)]
    batches.close()
    length = inputs.manifest.sequence_length
    assert device in locked, "the thread that reads ahead must lock pages by way of its rank's own device"
    assert locked.count((6, length)) in (7, 8), "one block for all micro-batches of a step; and perhaps of the step ahead"
    padded = sum(batch.labels is not batch.tokens for step in steps for batch in step)
    assert padded
    assert padded <= locked.count((3, length)) <= padded + 2
    plain, _ = batches_for(inputs, torch.device("cpu"))
    for step, got in enumerate(steps):
        for batch, expected in zip(got, plain.at(step), strict=True):
            assert np.array_equal(batch.tokens.numpy(), expected.tokens.numpy())
            assert np.array_equal(batch.labels.numpy(), expected.labels.numpy())
    plain.close()


def test_on_the_cpu_nothing_is_locked(inputs: Any, locked: list[Any]) -> None:
    import torch

    batches, source = batches_for(inputs, torch.device("cpu"))
    assert [batch.tokens.shape for batch in batches.at(0)] == [(3, inputs.manifest.sequence_length)] * 2
    batches.close()
    assert not source.memory.is_pinned
    assert locked == []
