"""Each recipe that ships loads, says what it is in its name, and means what its comments say."""

from pathlib import Path

import pytest

from schemas.recipe import load_recipe
from schemas.sizing import training_size
from schemas.stage import Stage

FOLDER = Path(__file__).resolve().parents[2] / "infra" / "recipes"
EXPECTED = {"demo_cpu": (0.79e6, 2), "gpt_124m_1gpu": (124e6, 1), "llama_1b3_slurm_4x8": (1.3e9, 32), "llama_7b_zero3_kubernetes": (6.9e9, 32)}
"""Recipe → (parameters, ranks)."""


def test_every_recipe_is_covered() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_recipe(name: str) -> None:
    loaded = load_recipe(FOLDER / f"{name}.yaml")
    size = training_size(loaded.config)
    parameters, ranks = EXPECTED[name]
    assert size.model is not None
    assert size.model.parameters == pytest.approx(parameters, rel=0.1)
    assert size.world_size == size.ranks == ranks  # no rank stays idle
    assert loaded.warnings == ()
    assert size.memory is not None
    assert size.memory.total < (80e9 if ranks == 32 else 24e9)


@pytest.mark.parametrize("name", ["gpt_124m_1gpu", "llama_1b3_slurm_4x8", "llama_7b_zero3_kubernetes"])
def test_tokens_suit_the_parameters(name: str) -> None:
    size = training_size(load_recipe(FOLDER / f"{name}.yaml").config)
    assert size.model is not None
    assert size.total_tokens is not None
    assert size.total_tokens / size.model.parameters == pytest.approx(20, rel=0.05)


@pytest.mark.parametrize("name", ["llama_1b3_slurm_4x8", "llama_7b_zero3_kubernetes"])
def test_gpus_never_wait_for_tokenizing(name: str) -> None:
    cluster = load_recipe(FOLDER / f"{name}.yaml").config.cluster
    for stage in (Stage.VALIDATE, Stage.TOKENIZER, Stage.TOKENIZE, Stage.EXPORT):
        assert cluster.resources(stage).gpus_per_node == 0
    assert cluster.resources(Stage.TRAIN).gpus_per_node == 8
