"""The derived numbers of a recipe, as `headrace plan` shows them. Pure."""

from collections.abc import Mapping
from typing import Any

from schemas.config import RunConfig
from schemas.sizing import TrainingSize, training_size


def derived_figures(config: RunConfig, *, tokenizer: Mapping[str, Any] | None = None, shards: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Returns every derived number of `config` as plain data, in the order they are shown.

    Args:
        tokenizer: summary of the finished tokenizer, where there is one.
        shards: summary of the finished shards, where there are some.
    """
    size = size_of(config, tokenizer=tokenizer, shards=shards)
    figures: dict[str, Any] = size.model_dump(mode="json")
    if size.memory is not None:
        figures["memory"]["total"] = size.memory.total
    if size.checkpoint_bytes is not None and size.kept_checkpoints is not None:
        figures["disk_bytes"] = size.checkpoint_bytes * size.kept_checkpoints
    return figures


def size_of(config: RunConfig, *, tokenizer: Mapping[str, Any] | None, shards: Mapping[str, Any] | None) -> TrainingSize:
    """Returns what training will cost, by what is known so far."""
    known = shards or tokenizer or {}
    vocab_size = known.get("vocab_size")
    train_sequences = (shards or {}).get("sequences", {}).get("train")
    return training_size(config, vocab_size=vocab_size, train_sequences=train_sequences)
