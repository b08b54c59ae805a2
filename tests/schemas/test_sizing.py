"""Estimates: parameters against the real models, memory against the ZeRO paper's own table."""

from pathlib import Path
from typing import Any

import pytest

from schemas.config import RunConfig
from schemas.frozen import thaw
from schemas.recipe import load_recipe
from schemas.sizing import ModelShape, memory_per_rank, model_shape, training_size

RECIPES = sorted((Path(__file__).resolve().parents[2] / "infra" / "recipes").glob("*.yaml"))


def config_with(**sections: Any) -> RunConfig:
    base: dict[str, Any] = {
        "name": "x",
        "corpus": {"sources": ["/x"]},
        "tokenization": {"sequence_length": 128},
        "model": {"config": {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}},
        "training": {"steps": 1000, "global_batch_size": 32, "micro_batch_size": 4},
    }
    return RunConfig.model_validate(base | sections)


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        *(thaw(load_recipe(path).config.model.config) for path in RECIPES),
        {"model_type": "llama", "num_key_value_heads": 8},
        {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "head_dim": 32, "attention_bias": False},
        {"model_type": "mistral"},
        {"model_type": "qwen2"},
        {"model_type": "gpt2", "n_inner": 1000},
    ],
    ids=lambda model: f"{model['model_type']}-{model.get('hidden_size', model.get('n_embd', ''))}",
)
def test_parameters_are_those_of_the_real_model(model: dict[str, Any]) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    depth = "n_layer" if model["model_type"] == "gpt2" else "num_hidden_layers"
    options = {key: value for key, value in model.items() if key != "model_type"} | {depth: 2}  # all layers are alike
    real = AutoConfig.for_model(model["model_type"], **{"vocab_size": 2048, **options})
    with torch.device("meta"):
        expected = AutoModelForCausalLM.from_config(real).num_parameters()
    shape = model_shape({**model, depth: 2}, vocab_size=2048)
    assert shape is not None
    assert shape.parameters == expected


@pytest.mark.parametrize(("stage", "gigabytes"), [(0, 120.0), (1, 31.4), (2, 16.6), (3, 1.875)])
def test_model_states_are_those_of_the_zero_paper(stage: int, gigabytes: float) -> None:
    """ArXiv 1910.02054, figure 1: 7.5 B parameters, 64 ranks."""
    config = config_with(training={"steps": 100, "global_batch_size": 64, "micro_batch_size": 1, "zero_stage": stage})
    memory = memory_per_rank(config, shape=ModelShape(parameters=7_500_000_000, layers=1, hidden=1, vocab_size=1), world_size=64)
    assert (memory.weights + memory.gradients + memory.optimizer) / 1e9 == pytest.approx(gigabytes, rel=0.01)


def test_batch_arithmetic() -> None:
    size = training_size(config_with(cluster={"kind": "slurm", "nodes": 3, "ranks_per_node": 2}))
    assert (size.ranks, size.world_size, size.accumulation_steps) == (6, 4, 2)
    assert size.feasible_world_sizes == (1, 2, 4, 8)
    assert (size.tokens_per_step, size.total_tokens) == (32 * 128, 32 * 128 * 1000)


def test_checkpoints_on_disk() -> None:
    config = config_with(checkpoint={"every_steps": 100, "keep_last": 2, "keep_every_steps": 500})
    size = training_size(config)
    assert size.model is not None
    assert (size.checkpoint_bytes, size.kept_checkpoints) == (12 * size.model.parameters, 2 + 2 + 1)
    few = training_size(config_with(training={"steps": 5, "global_batch_size": 4, "micro_batch_size": 4, "schedule": {"warmup_steps": 1}}))
    assert few.kept_checkpoints == 2


def test_epochs_wait_for_the_number_of_sequences() -> None:
    config = config_with(training={"epochs": 2.0, "global_batch_size": 32, "micro_batch_size": 4})
    assert training_size(config).total_steps is None
    known = training_size(config, train_sequences=1000)
    assert (known.total_steps, round(known.epochs or 0, 3)) == (63, 2.016)


def test_what_is_known_of_the_tokenizer_counts() -> None:
    small, large = (training_size(config_with(), vocab_size=size).model for size in (1000, 2000))
    assert small is not None
    assert large is not None
    assert large.parameters - small.parameters == 2 * 1000 * 64


def test_a_model_known_only_to_its_code_is_not_guessed() -> None:
    size = training_size(config_with(model={"factory": "package:make"}))
    assert (size.model, size.memory, size.checkpoint_bytes, size.operations) == (None, None, None, None)
    assert model_shape({"model_type": "mamba"}, vocab_size=10) is None


def test_recomputing_activations_takes_less_memory() -> None:
    memories = [
        training_size(config_with(training={"steps": 1000, "micro_batch_size": 8, "activation_checkpointing": on})).memory for on in (False, True)
    ]
    assert memories[0] is not None
    assert memories[1] is not None
    assert memories[1].activations < memories[0].activations
