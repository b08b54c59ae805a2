import json
from pathlib import Path

import pytest

from schemas.errors import ConfigError, InputError
from schemas.recipe_config import ModelConfig
from tasks.train.compatibility import attention_of, check_compatibility, check_storage
from tests.fakes.in_process_work import config_with


def test_a_model_without_its_own_numbers_fits() -> None:
    check_compatibility(ModelConfig(config={"model_type": "llama"}), vocab_size=50_000, sequence_length=4096)
    check_compatibility(ModelConfig(factory="package.module:function"), vocab_size=50_000, sequence_length=4096)


def test_both_numbers_are_named_all_at_once() -> None:
    model = ModelConfig(config={"model_type": "llama", "vocab_size": 1000, "max_position_embeddings": 128})
    with pytest.raises(ConfigError) as caught:
        check_compatibility(model, vocab_size=2000, sequence_length=256)
    assert [problem.key for problem in caught.value.problems] == ["model.config.vocab_size", "model.config.max_position_embeddings"]
    assert all(number in str(caught.value) for number in ("1000", "2000", "128", "256"))


def test_the_recipe_chooses_the_attention() -> None:
    assert attention_of({"model_type": "llama"}) == "sdpa"
    assert attention_of({"model_type": "llama", "attn_implementation": "eager"}) == "eager"


@pytest.mark.parametrize(
    ("key", "value", "nearest"), [("attn_implementation", "flash", "sdpa"), ("_attn_implementation", "eager", "attn_implementation")]
)
def test_another_attention_is_refused_before_anything_runs(key: str, value: str, nearest: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_compatibility(ModelConfig(config={"model_type": "llama", key: value}), vocab_size=300, sequence_length=8)
    [problem] = caught.value.problems
    assert (problem.key, problem.nearest) == (f"model.config.{key}", nearest)


def test_a_pretrained_folder_is_asked_too(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 100}))
    with pytest.raises(ConfigError, match="the tokenizer has 300 ids"):
        check_compatibility(ModelConfig(pretrained=str(tmp_path)), vocab_size=300, sequence_length=8)
    with pytest.raises(InputError, match="cannot be read"):
        check_compatibility(ModelConfig(pretrained=str(tmp_path / "absent")), vocab_size=300, sequence_length=8)


def test_a_local_tier_is_refused_on_object_storage_where_every_checkpoint_lies_on_the_nodes_disk_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_TEST_BUCKET", "s3://bucket")
    local = {"checkpoint": {"local_dir": "/local", "local_every_steps": 5}}
    for root in ("s3://bucket/x", "${env:HEADRACE_TEST_BUCKET}/x"):
        with pytest.raises(ConfigError, match="disk") as caught:
            check_storage(config_with(storage={"root": root}, **local))
        assert [problem.key for problem in caught.value.problems] == ["checkpoint.local_dir"]
    check_storage(config_with(storage={"root": "/shared"}, **local))
