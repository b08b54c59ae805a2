"""Validating and sampling give signs of life on the way: they may take longer than any silence that is granted."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.slow  # imports torch


class _Network:
    """A model that says the same to everything."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size

    def __call__(self, *, input_ids: Any) -> Any:
        import torch

        return SimpleNamespace(logits=torch.zeros(*input_ids.shape, self._vocab_size))

    def eval(self) -> None:
        """Nothing differs."""

    train = eval


def _engine(vocab_size: int) -> Any:
    import torch

    gang = SimpleNamespace(rank=0, world_size=1, device=torch.device("cpu"), sum=list)
    network = _Network(vocab_size)
    return SimpleNamespace(gang=gang, deepspeed=network, module=network, zero_stage=2, loss=lambda batch: 2.0)


@pytest.fixture
def beats(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """One entry for each sign of life."""
    import tasks.train.validation as module

    heard: list[None] = []
    monkeypatch.setattr(module, "own_pulse", lambda: SimpleNamespace(beat=lambda: heard.append(None)))
    return heard


def test_each_batch_that_is_validated_is_a_sign_of_life(beats: list[None]) -> None:
    from schemas.execution_config import TrackingConfig
    from tasks.train.validation import Validator

    source: Any = SimpleNamespace(num_sequences=40, batch=lambda indices: SimpleNamespace(num_targets=3 * len(indices)))
    manifest: Any = SimpleNamespace(of_split=lambda _: (SimpleNamespace(text_bytes=400, tokens=100),), loss_masks=False)
    tracking = TrackingConfig(validation_sequences=20)
    validator = Validator(_engine(8), source, manifest=manifest, tracking=tracking, micro_batch_size=4, seed=1)
    loss, bits_per_byte = validator.loss()
    assert (loss, bits_per_byte) == (2.0, pytest.approx(2.0 / np.log(2) / 4))
    assert len(beats) == 20 / 4


def test_each_sampled_token_is_a_sign_of_life(beats: list[None]) -> None:
    from tokenizers import Tokenizer, models

    from schemas.execution_config import TrackingConfig
    from tasks.train.validation import Sampler

    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "end": 2}, unk_token="end"))
    manifest: Any = SimpleNamespace(end_of_text_id=2, sequence_length=8)
    tracking = TrackingConfig(sample_prompt="a", sample_tokens=7)
    sampler = Sampler(_engine(3), tokenizer_json=tokenizer.to_str().encode(), manifest=manifest, tracking=tracking, seed=1)
    assert sampler.sample(5).startswith("a")
    assert len(beats) == 7
