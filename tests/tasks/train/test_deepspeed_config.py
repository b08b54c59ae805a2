"""Table and golden tests of a pure function; DeepSpeed itself is not imported."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from schemas.config import RunConfig
from schemas.deepspeed_options import NUMERIC_OPTIONS
from schemas.errors import ConfigError
from tasks.train.deepspeed_config import _ALLOWED, deepspeed_config

MakeConfig = Callable[..., RunConfig]

GOLDEN: dict[str, Any] = {
    "train_batch_size": 12,
    "train_micro_batch_size_per_gpu": 2,
    "gradient_accumulation_steps": 3,
    "gradient_clipping": 1.0,
    "steps_per_print": 1_000_000_000,
    "wall_clock_breakdown": False,
    "optimizer": {
        "type": "AdamW",
        "params": {"lr": 0.01, "betas": [0.9, 0.95], "eps": 1e-08, "weight_decay": 0.1, "torch_adam": True, "fused": True},
    },
    "zero_optimization": {"stage": 2},
    "bf16": {"enabled": True},
    "fp16": {"enabled": False, "loss_scale": 0},
    "data_types": {"grad_accum_dtype": "fp32"},
}


def test_golden(make_config: MakeConfig) -> None:
    assert deepspeed_config(make_config(), world_size=2) == GOLDEN


@pytest.mark.parametrize(
    ("changes", "world_size", "expected"),
    [
        ({"training__zero_stage": 0}, 2, {"zero_optimization": {"stage": 0}, "data_types": None}),
        ({"training__zero_stage": 3}, 6, {"zero_optimization": {"stage": 3}, "gradient_accumulation_steps": 1, "data_types": None}),
        ({"training__precision": "fp32"}, 1, {"bf16": {"enabled": False}, "gradient_accumulation_steps": 6, "data_types": None}),
        ({"training__precision": "fp16"}, 1, {"fp16": {"enabled": True, "loss_scale": 0}, "bf16": {"enabled": False}}),
        ({"training__gradient_clipping": 0.0}, 2, {"gradient_clipping": 0.0}),
    ],
)
def test_what_the_recipe_decides(make_config: MakeConfig, changes: dict[str, Any], world_size: int, expected: dict[str, Any]) -> None:
    derived = deepspeed_config(make_config(**changes), world_size=world_size)
    assert {key: derived.get(key) for key in expected} == expected


def test_the_batch_is_the_same_at_every_world_size(make_config: MakeConfig) -> None:
    config = make_config()
    for world_size in config.training.feasible_world_sizes:
        derived = deepspeed_config(config, world_size=world_size)
        assert derived["train_micro_batch_size_per_gpu"] * derived["gradient_accumulation_steps"] * world_size == derived["train_batch_size"] == 12


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"zero_optimization": {"reduce_bucket_size": 5000, "overlap_comm": False}}, {"stage": 2, "reduce_bucket_size": 5000, "overlap_comm": False}),
        ({"zero_optimization": {"stage": "auto", "reduce_bucket_size": "auto"}}, {"stage": 2, "reduce_bucket_size": 24 * 24}),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu", "pin_memory": True}}}, None),
        ({"zero_optimization": {"stage3_param_persistence_threshold": "auto"}}, {"stage": 2, "stage3_param_persistence_threshold": 240}),
        ({"zero_optimization": {"sub_group_size": "auto"}}, {"stage": 2}),
    ],
)
def test_options_pass_through_and_auto_is_filled_in(make_config: MakeConfig, raw: dict[str, Any], expected: dict[str, Any] | None) -> None:
    merged = deepspeed_config(make_config(deepspeed=raw), world_size=2)
    assert merged["zero_optimization"] == (expected or {**raw["zero_optimization"]})


def test_what_transformers_documents_is_taken(make_config: MakeConfig) -> None:
    """A configuration as its documentation shows it, all `auto`."""
    raw = {
        "fp16": {"enabled": "auto", "loss_scale": 0, "loss_scale_window": 1000, "initial_scale_power": 16, "hysteresis": 2, "min_loss_scale": 1},
        "bf16": {"enabled": "auto"},
        "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}},
        "scheduler": {"type": "WarmupLR", "params": {"warmup_min_lr": "auto", "warmup_max_lr": "auto", "warmup_num_steps": "auto"}},
        "zero_optimization": {
            "stage": 2,
            "allgather_partitions": True,
            "allgather_bucket_size": 2e8,
            "overlap_comm": True,
            "reduce_scatter": True,
            "reduce_bucket_size": "auto",
            "contiguous_gradients": True,
            "stage3_gather_16bit_weights_on_model_save": True,
        },
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "steps_per_print": "auto",
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "wall_clock_breakdown": False,
    }
    merged = deepspeed_config(make_config(deepspeed=raw), world_size=2)
    assert "auto" not in json.dumps(merged)
    assert "scheduler" not in merged
    assert {key: merged[key] for key in ("optimizer", "bf16", "train_batch_size", "gradient_clipping")} == {
        key: GOLDEN[key] for key in ("optimizer", "bf16", "train_batch_size", "gradient_clipping")
    }
    assert merged["fp16"]["loss_scale_window"] == 1000


@pytest.mark.parametrize(
    ("raw", "key", "words"),
    [
        ({"train_batch_size": 16}, "deepspeed.train_batch_size", ("16", "training.global_batch_size", "12")),
        ({"gradient_clipping": 0.5}, "deepspeed.gradient_clipping", ("0.5", "training.gradient_clipping", "1.0")),
        ({"zero_optimization": {"stage": 3}}, "deepspeed.zero_optimization.stage", ("training.zero_stage", "2")),
        ({"bf16": {"enabled": False}}, "deepspeed.bf16.enabled", ("training.precision", "True")),
        ({"fp16": {"enabled": True}}, "deepspeed.fp16.enabled", ("training.precision", "False")),
        ({"optimizer": {"type": "Lamb"}}, "deepspeed.optimizer.type", ("training.optimizer.name", "AdamW")),
        ({"optimizer": {"params": {"lr": 1.0}}}, "deepspeed.optimizer.params.lr", ("training.optimizer.learning_rate", "0.01")),
        ({"optimizer": {"params": {"betas": [0.9, 0.999]}}}, "deepspeed.optimizer.params.betas", ("training.optimizer.beta2", "0.95")),
        ({"optimizer": {"params": {"torch_adam": False}}}, "deepspeed.optimizer.params.torch_adam", ("compiler",)),
        ({"scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 10}}}, "deepspeed.scheduler", ("training.schedule",)),
        ({"checkpoint": {"writer": {}}}, "deepspeed.checkpoint", ("checkpoints",)),
        ({"data_efficiency": {"enabled": True}}, "deepspeed.data_efficiency", ("order of samples",)),
        ({"zero_optimization": {"round_robin_gradients": True}}, "deepspeed.zero_optimization.round_robin_gradients", ("names",)),
        ({"zero_optimization": {"offload_optimizer": {"device": "nvme"}}}, "deepspeed.zero_optimization.offload_optimizer.device", ("NVMe", "cpu")),
        ({"bf16": {"bf16_optimizer_states": True}}, "deepspeed.bf16.bf16_optimizer_states", ("fp32",)),
        ({"wandb": {"enabled": True}}, "deepspeed.wandb", ("MLflow",)),
        ({"zero_optimization": {"reduce_bucket_sise": 5}}, "deepspeed.zero_optimization.reduce_bucket_sise", ("unknown", "reduce_bucket_size")),
        ({"zero_optimisation": {"stage": 2}}, "deepspeed.zero_optimisation", ("unknown", "zero_optimization")),
        ({"zero_optimization": 2}, "deepspeed.zero_optimization", ("mapping",)),
        ({"fp16": {"loss_scale": 128}}, "deepspeed.fp16.loss_scale", ("dynamic", "0")),
        ({"steps_per_print": 10}, "deepspeed.steps_per_print", ("tracking.log_every_steps",)),
    ],
)
def test_what_is_refused_names_both_sides(make_config: MakeConfig, raw: dict[str, Any], key: str, words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        deepspeed_config(make_config(deepspeed=raw), world_size=2)
    (problem,) = caught.value.problems
    assert problem.key == key
    assert all(word in str(problem) for word in words), str(problem)


def test_fp16_needs_zero(make_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match=r"training\.zero_stage = 0.*nearest valid: 1"):
        deepspeed_config(make_config(training__precision="fp16", training__zero_stage=0), world_size=2)


MUON: dict[str, Any] = {"training__optimizer": {"name": "muon", "learning_rate": 0.01}}


def test_muon_is_handed_to_deepspeed(make_config: MakeConfig) -> None:
    expected = {key: value for key, value in GOLDEN.items() if key != "optimizer"} | {"zero_allow_untested_optimizer": True}
    assert deepspeed_config(make_config(**MUON), world_size=2) == expected
    auto = {"optimizer": {"type": "auto", "params": {"lr": "auto", "betas": "auto"}}}
    assert deepspeed_config(make_config(**MUON, deepspeed=auto), world_size=2) == expected


@pytest.mark.parametrize(
    ("raw", "key", "words"),
    [
        ({"optimizer": {"type": "AdamW"}}, "deepspeed.optimizer.type", ("training.optimizer.name", "Muon")),
        ({"optimizer": {"params": {"lr": 1.0}}}, "deepspeed.optimizer.params.lr", ("training.optimizer.learning_rate", "0.01")),
        ({"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}, "deepspeed.zero_optimization.offload_optimizer.device", ("muon", "none")),
    ],
)
def test_what_muon_refuses(make_config: MakeConfig, raw: dict[str, Any], key: str, words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        deepspeed_config(make_config(**MUON, deepspeed=raw), world_size=2)
    (problem,) = caught.value.problems
    assert problem.key == key
    assert all(word in str(problem) for word in words), str(problem)


def test_all_problems_at_once(make_config: MakeConfig) -> None:
    raw = {"gradient_clipping": 2.0, "nebula": {}, "zero_optimization": {"stage": 1, "nonsense": 1}}
    with pytest.raises(ConfigError) as caught:
        deepspeed_config(make_config(deepspeed=raw), world_size=2)
    assert [problem.key.removeprefix("deepspeed.") for problem in caught.value.problems] == [
        "gradient_clipping",
        "nebula",
        "zero_optimization.stage",
        "zero_optimization.nonsense",
    ]


def test_options_from_a_file_take_the_place_of_the_section(make_config: MakeConfig) -> None:
    merged = deepspeed_config(make_config(deepspeed="/some/ds.json"), world_size=2, options={"communication_data_type": "fp32"})
    assert merged == GOLDEN | {"communication_data_type": "fp32"}


def test_every_key_that_passes_is_known_to_change_numbers_or_not() -> None:
    """A new key of these sections must be put on one side: `NUMERIC_OPTIONS`, or the list here."""
    allowed = {f"{section}.{name}" if section else name for section, names in _ALLOWED.items() for name in names}
    assert allowed >= NUMERIC_OPTIONS, "what identity knows passes"
    others = {
        *("disable_allgather", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer"),
        *("dump_state", "memory_breakdown", "disable_python_gc", "log_level", "optimizer.params.adam_w_mode"),
    }
    how_only = ("zero_optimization.", "comms_logger.", "flops_profiler.")
    assert {key for key in allowed - NUMERIC_OPTIONS if not key.startswith(how_only)} == others
