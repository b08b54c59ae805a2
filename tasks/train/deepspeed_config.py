"""DeepSpeed's configuration as the return value of a pure function: the only place that speaks DeepSpeed's words.

Imports neither torch nor DeepSpeed. The user's raw `deepspeed:` section is validated, not blindly merged: `auto` is filled
in, a key that contradicts the recipe is refused naming both keys, and what would break checkpoints or talk to services is
refused with the reason.
"""

import difflib
from collections.abc import Mapping
from typing import Any

from schemas.config import RunConfig
from schemas.deepspeed_options import AUTO
from schemas.errors import ConfigError, Problem
from schemas.frozen import thaw
from schemas.recipe_config import OptimizerName, Precision

_NEVER_PRINT = 1_000_000_000

_OPTIMIZER_TYPES: Mapping[OptimizerName, str] = {OptimizerName.ADAMW: "AdamW", OptimizerName.MUON: "Muon"}

_RECIPE_KEYS: Mapping[str, str] = {
    "train_batch_size": "training.global_batch_size",
    "train_micro_batch_size_per_gpu": "training.micro_batch_size",
    "gradient_accumulation_steps": "training.global_batch_size / (training.micro_batch_size × ranks)",
    "gradient_clipping": "training.gradient_clipping",
    "zero_optimization.stage": "training.zero_stage",
    "bf16.enabled": "training.precision",
    "fp16.enabled": "training.precision",
    "optimizer.type": "training.optimizer.name",
    "optimizer.params.lr": "training.optimizer.learning_rate",
    "optimizer.params.betas": "training.optimizer.beta1, training.optimizer.beta2",
    "optimizer.params.eps": "training.optimizer.epsilon",
    "optimizer.params.weight_decay": "training.optimizer.weight_decay",
}
"""Which key of the recipe decides a derived DeepSpeed key."""

_OURS: Mapping[str, str] = {
    "steps_per_print": "metrics come from Headrace, at tracking.log_every_steps",
    "wall_clock_breakdown": "the step-time breakdown is always measured",
    "optimizer.params.torch_adam": "torch's fused AdamW needs no compiler and is what checkpoints are made for",
    "optimizer.params.fused": "torch's fused AdamW needs no compiler and is what checkpoints are made for",
    "fp16.loss_scale": "the loss scale is dynamic",
}
"""Derived keys that no key of the recipe decides, and why they are as they are."""

_ALLOWED: Mapping[str, frozenset[str]] = {
    "": frozenset(
        {
            *("communication_data_type", "prescale_gradients", "gradient_predivide_factor", "disable_allgather"),
            *("zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "dump_state", "memory_breakdown", "disable_python_gc", "log_level"),
        }
    ),
    "zero_optimization": frozenset(
        {
            *("allgather_bucket_size", "allgather_partitions", "contiguous_gradients", "overlap_comm", "parameter_alignment"),
            *("reduce_bucket_size", "reduce_scatter", "use_multi_rank_bucket_allreduce", "sub_group_size", "memory_efficient_linear"),
            *("ignore_unused_parameters", "override_module_apply", "leaf_module"),
            *("stage3_prefetch_bucket_size", "stage3_param_persistence_threshold", "stage3_model_persistence_threshold"),
            *("stage3_max_live_parameters", "stage3_max_reuse_distance", "stage3_module_granularity_threshold"),
            *("stage3_use_all_reduce_for_fetch_params", "stage3_allgather_sequential", "log_trace_cache_warnings", "enable_sanity_checks"),
            # what transformers' examples carry: without effect, since DeepSpeed never saves our model
            *("stage3_gather_16bit_weights_on_model_save", "stage3_gather_fp16_weights_on_model_save"),
        }
    ),
    "zero_optimization.offload_optimizer": frozenset({"device", "pin_memory", "ratio"}),
    "zero_optimization.offload_param": frozenset({"device", "pin_memory", "buffer_count", "buffer_size", "max_in_cpu"}),
    "bf16": frozenset({"check_grad_overflow", "immediate_grad_update"}),
    "fp16": frozenset({"auto_cast", "initial_scale_power", "loss_scale_window", "hysteresis", "consecutive_hysteresis", "min_loss_scale"}),
    "optimizer": frozenset(),
    "optimizer.params": frozenset({"adam_w_mode"}),
    "data_types": frozenset({"grad_accum_dtype", "buffer_dtype"}),
    "comms_logger": frozenset({"enabled", "verbose", "prof_all", "prof_ops", "debug"}),
    "flops_profiler": frozenset({"enabled", "profile_step", "module_depth", "top_modules", "detailed", "output_file", "recompute_fwd_factor"}),
}
"""Keys, by section, that pass through as they are. One that changes numbers is also named in `schemas.deepspeed_options`."""

_FORBIDDEN: Mapping[str, str] = {
    "checkpoint": "Headrace writes its own checkpoints; see the section checkpoint of the recipe",
    "checkpoint_engine": "Headrace writes its own checkpoints; see the section checkpoint of the recipe",
    "nebula": "Headrace writes its own checkpoints; see the section checkpoint of the recipe",
    "datastates_ckpt": "Headrace writes its own checkpoints; see the section checkpoint of the recipe",
    "load_universal_checkpoint": "Headrace's checkpoints load at any world size as they are",
    "data_efficiency": "Headrace decides the order of samples: it must be a pure function of the step",
    "curriculum_learning": "Headrace decides the order of samples: it must be a pure function of the step",
    "scheduler": "the learning rate follows training.schedule",
    "elasticity": "the batch is training.global_batch_size at every world size; ranks come and go without DeepSpeed's help",
    "autotuning": "it starts runs of its own",
    "managed_gradient_accumulation": "Headrace drives the accumulation",
    "amp": "use training.precision",
    "torch_autocast": "use training.precision",
    "compression_training": "it replaces modules, so parameters change their names",
    "quantize_training": "it changes the weights between steps",
    "progressive_layer_drop": "it changes the model between steps",
    "eigenvalue": "it changes the loss scale by layer",
    "tensor_parallel": "checkpoints hold whole parameters per data-parallel rank",
    "pipeline": "checkpoints hold whole parameters per data-parallel rank",
    "hybrid_engine": "it is for generation inside of training",
    "tensorboard": "ranks talk to no service; metrics go to MLflow",
    "wandb": "ranks talk to no service; metrics go to MLflow",
    "csv_monitor": "ranks talk to no service; metrics go to MLflow",
    "comet": "ranks talk to no service; metrics go to MLflow",
    "zero_optimization.zenflow": "its optimizer state cannot be read locally",
    "zero_optimization.round_robin_gradients": "it reorders the optimizer's partitions, and fragments would get other parameters' names",
    "zero_optimization.load_from_fp32_weights": "Headrace writes its own checkpoints",
    "zero_optimization.elastic_checkpoint": "Headrace's checkpoints load at any world size as they are",
    "zero_optimization.zero_quantized_weights": "weights must be equal to cast(master weights), which is checked",
    "zero_optimization.zero_quantized_gradients": "gradients would depend on the world size's quantisation groups",
    "zero_optimization.zero_hpz_partition_size": "checkpoints need every parameter partitioned over all ranks",
    "zero_optimization.mics_shard_size": "checkpoints need every parameter partitioned over all ranks",
    "bf16.bf16_master_weights_and_grads": "master weights are always fp32",
    "bf16.bf16_optimizer_states": "optimizer moments are always fp32",
    "fp16.fp16_master_weights_and_grads": "master weights are always fp32",
    "data_types.param_dtype": "use training.precision",
}
"""Keys that are refused, and why."""


def deepspeed_config(config: RunConfig, *, world_size: int, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Returns the configuration to hand to `deepspeed.initialize`.

    Args:
        config: the run's configuration. Its own `deepspeed` is used when it is a mapping.
        world_size: number of ranks; must be feasible for the recipe.
        options: the raw section where it came from a JSON file.

    Raises:
        ConfigError: fp16 without ZeRO; or with every key of the raw section that is unknown, forbidden, or contradicts the recipe.
    """
    if config.training.precision is Precision.FP16 and config.training.zero_stage == 0:
        # 0.19.8 divides the gradients by the loss scale there, but never multiplied the loss by it
        raise ConfigError((Problem("training.zero_stage", "0", "cannot train in fp16: DeepSpeed scales no loss without ZeRO", nearest="1"),))
    raw = options if options is not None else config.deepspeed
    assert not isinstance(raw, str), "a path is read by the control side"
    derived = _derived(config, world_size=world_size)
    if raw is None:
        return _with_optimizer_of_ours(derived) if config.training.optimizer.name is OptimizerName.MUON else derived
    merger = _Merger(config, derived)
    merged = merger.merge(derived, _without_auto_scheduler(thaw(raw)), section="")
    if merger.problems:
        raise ConfigError(tuple(merger.problems), source="the section deepspeed")
    return _with_optimizer_of_ours(merged) if config.training.optimizer.name is OptimizerName.MUON else merged


def _with_optimizer_of_ours(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `options` for an optimizer that DeepSpeed is handed: it makes none, and lets ZeRO drive one that is not on its list.

    With the type Muon left in, it would mark the matrices for its own, and orthogonalise them a first time before ours does.
    """
    return {key: value for key, value in options.items() if key != "optimizer"} | {"zero_allow_untested_optimizer": True}


def _derived(config: RunConfig, *, world_size: int) -> dict[str, Any]:
    """Returns what the recipe alone says."""
    training, optimizer = config.training, config.training.optimizer
    accumulation = training.gradient_accumulation_steps(world_size)
    result: dict[str, Any] = {
        "train_batch_size": training.global_batch_size,
        "train_micro_batch_size_per_gpu": training.micro_batch_size,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": training.gradient_clipping,
        "steps_per_print": _NEVER_PRINT,
        "wall_clock_breakdown": False,
        "optimizer": {
            "type": _OPTIMIZER_TYPES[optimizer.name],
            "params": {
                "lr": optimizer.learning_rate,
                "betas": [optimizer.beta1, optimizer.beta2],
                "eps": optimizer.epsilon,
                "weight_decay": optimizer.weight_decay,
                "torch_adam": True,
                "fused": True,
            },
        },
        "zero_optimization": {"stage": training.zero_stage},
        "bf16": {"enabled": training.precision is Precision.BF16},
        "fp16": {"enabled": training.precision is Precision.FP16, "loss_scale": 0},
    }
    if training.precision is not Precision.FP32 and training.zero_stage > 0 and accumulation > 1:
        # 8 bits of mantissa lose what later micro-batches add; ZeRO 0 has no accumulator of its own (DeepSpeed 0.19)
        result["data_types"] = {"grad_accum_dtype": "fp32"}
    return result


class _Merger:
    """Merges the raw section into the derived one and gathers every problem on the way."""

    def __init__(self, config: RunConfig, derived: Mapping[str, Any]) -> None:
        self._config, self._derived = config, derived
        self.problems: list[Problem] = []

    def merge(self, derived: Mapping[str, Any], raw: Mapping[str, Any], *, section: str) -> dict[str, Any]:
        """Returns `derived` with what `raw` adds to this section."""
        merged = dict(derived)
        for name, value in raw.items():
            key = f"{section}.{name}" if section else name
            if key in _FORBIDDEN:
                self._refuse(key, value, f"not supported: {_FORBIDDEN[key]}")
            elif key in _ALLOWED and isinstance(value, Mapping):
                merged[name] = self.merge(merged.get(name, {}), value, section=key)
            elif key in _ALLOWED:
                self._refuse(key, value, "must be a mapping")
            elif key in _RECIPE_KEYS or key in _OURS:
                self._check_decided(key, value)
            elif name in _ALLOWED[section]:
                if (chosen := self._chosen(key, value)) is not None:
                    merged[name] = chosen
            else:
                decided = {other.rpartition(".")[2] for other in (*_ALLOWED, *_RECIPE_KEYS, *_OURS) if other.rpartition(".")[0] == section}
                names = sorted(_ALLOWED[section] | decided)
                self._refuse(key, value, "unknown key", nearest="".join(difflib.get_close_matches(str(name), names, n=1)))
        return merged

    def _check_decided(self, key: str, value: Any) -> None:
        """Refuses a value that differs from what the recipe, or Headrace, has decided."""
        wanted: Any = self._derived
        for part in key.split("."):
            wanted = wanted[part]
        if value != AUTO and not _equal(value, wanted):
            reason = f"contradicts {_RECIPE_KEYS[key]}" if key in _RECIPE_KEYS else f"is fixed: {_OURS[key]}"
            self._refuse(key, value, reason, nearest=f"{wanted!r}, or auto, or leave it out")

    def _chosen(self, key: str, value: Any) -> Any:
        """Returns the value of a key that the user decides; None leaves it to DeepSpeed."""
        training = self._config.training
        if value == AUTO:
            return self._filled(key)
        if key.endswith((".offload_optimizer.device", ".offload_param.device")) and value not in ("cpu", "none"):
            self._refuse(key, value, "not supported: state on NVMe cannot be read locally for checkpoints", nearest="cpu")
        elif key.endswith(".offload_optimizer.device") and value == "cpu" and training.optimizer.name is OptimizerName.MUON:
            self._refuse(key, value, "contradicts training.optimizer.name (muon): DeepSpeed offloads its own optimizers only", nearest="none")
        elif key == "optimizer.params.adam_w_mode" and value is not True:
            self._refuse(key, value, f"contradicts training.optimizer.name ({training.optimizer.name.value})", nearest="True")
        elif key == "data_types.grad_accum_dtype" and training.zero_stage == 0 and value != training.precision.value:
            self._refuse(key, value, "needs ZeRO: without it gradients accumulate in training.precision", nearest=training.precision.value)
        return value

    def _filled(self, key: str) -> int | None:
        """Returns the number that stands for `auto` in ZeRO's sizes, derived as transformers derives it."""
        model = self._config.model.config
        hidden_size = model.get("hidden_size") if model is not None else None
        if not isinstance(hidden_size, int):
            return None
        return {
            "zero_optimization.reduce_bucket_size": hidden_size * hidden_size,
            "zero_optimization.stage3_prefetch_bucket_size": int(0.9 * hidden_size * hidden_size),
            "zero_optimization.stage3_param_persistence_threshold": 10 * hidden_size,
        }.get(key)

    def _refuse(self, key: str, value: Any, message: str, *, nearest: str = "") -> None:
        shown = repr(value)
        self.problems.append(Problem(f"deepspeed.{key}", shown if len(shown) <= 60 else f"{shown[:57]}...", message, nearest=nearest))


def _without_auto_scheduler(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `raw` without a scheduler that says nothing: every parameter `auto` means that the trainer decides, and so it does."""
    scheduler = raw.get("scheduler")
    parameters = scheduler.get("params", {}) if isinstance(scheduler, Mapping) else None
    says_nothing = isinstance(parameters, Mapping) and all(value == AUTO for value in parameters.values())
    return {key: value for key, value in raw.items() if not (key == "scheduler" and says_nothing)}


def _equal(value: Any, wanted: Any) -> bool:
    if isinstance(value, str) and isinstance(wanted, str):
        return value.lower() == wanted.lower()
    if isinstance(value, list) and isinstance(wanted, list):
        return len(value) == len(wanted) and all(map(_equal, value, wanted))
    return bool(value == wanted) and isinstance(value, bool) == isinstance(wanted, bool)
