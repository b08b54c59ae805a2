"""Building models: in this process, on the CPU, without ranks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from schemas.config import RunConfig
from schemas.errors import ConfigError, InputError, UnsafeFileError

pytestmark = pytest.mark.slow  # imports torch, DeepSpeed and transformers

MakeConfig = Callable[..., RunConfig]


@pytest.fixture(scope="module", autouse=True)
def _libraries() -> None:
    from tasks.train.libraries import import_libraries

    import_libraries()


@pytest.fixture
def build(inputs: Any) -> Callable[[RunConfig], Any]:
    from tasks.train.model import build_model

    return lambda config: build_model(config, manifest=inputs.manifest)


def test_from_a_config(build: Callable[[RunConfig], Any], make_config: MakeConfig) -> None:
    built = build(make_config())
    assert built.model_config["vocab_size"] == 64, "filled in from the tokens"
    assert built.model_config["architectures"] == ["LlamaForCausalLM"]
    assert built.num_parameters == sum(parameter.numel() for parameter in built.module.parameters())
    assert built.module.lm_head.weight is built.module.model.embed_tokens.weight
    std = built.module.model.layers[0].mlp.up_proj.weight.std().item()
    assert 0.017 < std < 0.023, "the initializer_range of transformers"


def test_the_recipe_chooses_the_attention(build: Callable[[RunConfig], Any], make_config: MakeConfig, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    small = dict(make_config().model.config or {}) | {"attention_dropout": 0.0}
    models = {name: build(make_config(model={"config": small | {"attn_implementation": name}})) for name in ("sdpa", "eager")}
    assert {name: built.module.config._attn_implementation for name, built in models.items()} == {"sdpa": "sdpa", "eager": "eager"}
    assert build(make_config()).module.config._attn_implementation == "sdpa"
    ids = torch.arange(1, 13).reshape(2, 6)
    losses = [built.module(input_ids=ids, labels=ids).loss.item() for built in models.values()]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5), "the same function"
    assert models["eager"].model_config == models["sdpa"].model_config, "config.json does not tell"
    assert not [key for key in models["eager"].model_config if "attn_implementation" in key]
    models["eager"].module.save_pretrained(tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path, local_files_only=True).config._attn_implementation == "sdpa"


def test_decay_spares_biases_norms_and_embeddings(build: Callable[[RunConfig], Any], make_config: MakeConfig) -> None:
    from tasks.train.model import optimizer_groups

    for tied in (True, False):
        sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
        config = make_config(model={"config": {"model_type": "qwen2", **sizes, "tie_word_embeddings": tied}})
        module = build(config).module
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        decaying, spared = optimizer_groups(module, weight_decay=0.1)
        assert (decaying["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
        spared_names = {names[id(parameter)] for parameter in spared["params"]}
        assert "model.embed_tokens.weight" in spared_names
        assert all("embed" in name or "norm" in name or name.endswith(".bias") for name in spared_names)
        assert ("lm_head.weight" in {names[id(parameter)] for parameter in decaying["params"]}) is not tied
        assert len(decaying["params"]) + len(spared["params"]) == len(names)


def test_muon_moves_the_matrices_inside_of_the_model(
    build: Callable[[RunConfig], Any], make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.train.model import optimizer_groups
    from tasks.train.muon import ORTHOGONAL

    small = dict(make_config().model.config or {})
    monkeypatch.syspath_prepend(Path(__file__).parent / "project")
    for model in ({"config": small}, {"config": small | {"tie_word_embeddings": False}}, {"factory": "bigram_model:build"}):
        module = build(make_config(model=model)).module
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        groups = optimizer_groups(module, weight_decay=0.1, orthogonal=True)
        inner = [names[id(parameter)] for group in groups if group[ORTHOGONAL] for parameter in group["params"]]
        assert inner == [name for name in names.values() if name.endswith("_proj.weight")], "no embedding, no head, no norm"
        assert sum(len(group["params"]) for group in groups) == len(names)


@pytest.mark.parametrize(
    ("model", "error", "words"),
    [
        ({"config": {"model_type": "lama"}}, ConfigError, "lama"),
        ({"config": {"model_type": "llama", "hidden_size": "wide"}}, ConfigError, "hidden_size"),
        ({"config": {"model_type": "vit"}}, ConfigError, "refuses it"),
        ({"config": {"model_type": "llama", "hidden_size": 25, "num_attention_heads": 2}}, ConfigError, "hidden"),
        ({"factory": "no.such.module:function"}, ConfigError, "cannot be imported"),
        ({"factory": "json:no_such_function"}, ConfigError, "cannot be imported"),
        ({"factory": "builtins:dict"}, ConfigError, "must return a torch.nn.Module, returned dict"),
        ({"pretrained": "/no/such/folder"}, InputError, "no/such/folder"),
    ],
)
def test_what_cannot_be_built_is_an_error_of_the_recipe(
    build: Callable[[RunConfig], Any], make_config: MakeConfig, model: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        build(make_config(model=model))


def test_a_pickle_is_refused(build: Callable[[RunConfig], Any], make_config: MakeConfig, tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(UnsafeFileError, match=r"pytorch_model\.bin is refused"):
        build(make_config(model={"pretrained": str(tmp_path)}))


def test_from_a_pretrained_folder(build: Callable[[RunConfig], Any], make_config: MakeConfig, tmp_path: Path) -> None:
    import torch

    original = build(make_config(training__seed=99)).module
    original.save_pretrained(tmp_path / "pretrained")
    loaded = build(make_config(model={"pretrained": str(tmp_path / "pretrained")}))
    assert loaded.model_config["use_cache"] is False
    for name, parameter in original.named_parameters():
        assert torch.equal(parameter, dict(loaded.module.named_parameters())[name])


def test_activation_checkpointing(build: Callable[[RunConfig], Any], make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent / "project")
    assert build(make_config(training__activation_checkpointing=True)).module.is_activation_checkpointing
    with pytest.raises(ConfigError, match="activation_checkpointing_enable"):
        build(make_config(model={"factory": "bigram_model:build"}, training__activation_checkpointing=True))
