"""The DeepSpeed engine, behind the four calls that the loop makes. No other module of the loop knows DeepSpeed's engine."""

import contextlib
import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from schemas.config import RunConfig
from schemas.errors import ConfigError, Problem
from schemas.recipe_config import OptimizerName, Precision
from tasks.train.data import Batch
from tasks.train.discard import discarding, skip_invalid_norms
from tasks.train.gang import Gang
from tasks.train.model import BuiltModel, optimizer_groups
from tasks.train.muon import RATE_FACTOR, Muon


@dataclass(frozen=True)
class StepResult:
    """What an optimizer step did."""

    applied: bool
    """False when the update was skipped: gradients overflowed, their norm is not finite, or `skip` was asked for."""
    gradient_norm: float
    """Global norm before clipping; infinite when the update was skipped."""


class Engine:
    """A model in training: forward, backward, step. Everything is in terms of micro-batches and updates."""

    def __init__(self, deepspeed_engine: Any, *, gang: Gang) -> None:
        """Args: deepspeed_engine: what `deepspeed.initialize` returned."""
        self.deepspeed = deepspeed_engine
        self.gang = gang
        skip_invalid_norms(deepspeed_engine.optimizer)
        self._reports_norm = hasattr(deepspeed_engine.optimizer, "_global_grad_norm") or self.zero_stage > 0

    @property
    def module(self) -> nn.Module:
        """The model itself, in the number format of the forward pass."""
        module: nn.Module = self.deepspeed.module
        return module

    @property
    def optimizer(self) -> Any:
        """DeepSpeed's optimizer, or torch's own where DeepSpeed wraps nothing (fp32 without ZeRO)."""
        return self.deepspeed.optimizer

    @property
    def zero_stage(self) -> int:
        """ZeRO stage."""
        return int(self.deepspeed.zero_optimization_stage())

    @property
    def loss_scale(self) -> float:
        """Present loss scale; 1 without loss scaling."""
        return float(getattr(self.optimizer, "loss_scale", 1.0) or 1.0)

    def seed(self, number: int) -> None:
        """Seeds this rank's generators (dropout). Not `torch.manual_seed`, which takes 4 ms where CUDA is compiled in but absent."""
        torch.default_generator.manual_seed(number)
        if self.gang.device.type == "cuda":
            torch.cuda.manual_seed(number)

    def loss(self, batch: Batch) -> torch.Tensor:
        """Returns the mean loss of a micro-batch over its targets, in nats, times its weight, on this rank's device."""
        device = self.gang.device
        tokens = batch.tokens.to(device, non_blocking=True)
        labels = tokens if batch.labels is batch.tokens else batch.labels.to(device, non_blocking=True)
        places = {} if batch.positions is None else {"position_ids": batch.positions.to(device, non_blocking=True)}
        output = self.deepspeed(input_ids=tokens, labels=labels, **places)
        loss: torch.Tensor = output.loss if batch.num_targets else output.logits.float().sum() * 0.0  # the mean over nothing is no number
        return loss if batch.weight == 1.0 else loss * batch.weight

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        """Adds the gradients of one micro-batch; the `last` one of an update also reduces them over the ranks."""
        self.deepspeed.backward(loss)
        if not last:
            self.deepspeed.step()  # only counts micro-batches, until the last one

    def step(self, *, learning_rate: float) -> StepResult:
        """Updates the weights from the accumulated gradients, unless their global norm is not finite; the same on all ranks."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group.get(RATE_FACTOR, 1.0)
        own_norm = None if self._reports_norm else self._norm_of_gradients()
        if own_norm is not None and not math.isfinite(own_norm):
            return self.skip()
        skipped_before = self.deepspeed.skipped_steps
        self.deepspeed.step()
        applied = self.deepspeed.skipped_steps == skipped_before
        norm = float(self.deepspeed.get_global_grad_norm() or 0.0) if own_norm is None else own_norm
        return StepResult(applied=applied, gradient_norm=norm if applied else math.inf)

    def skip(self) -> StepResult:
        """Drops the accumulated gradients: weights, moments and loss scale stay as they are. To be called on all ranks."""
        with discarding(self.optimizer, zero_stage=self.zero_stage):
            self.deepspeed.step()
        return StepResult(applied=False, gradient_norm=math.inf)

    def _norm_of_gradients(self) -> float:
        """Returns the global norm where DeepSpeed computes none (fp32 without ZeRO): after backward every rank holds the mean gradients."""
        gradients = [parameter.grad for parameter in self.module.parameters() if parameter.grad is not None]
        return float(nn.utils.get_total_norm(gradients))


def join_deepspeed(gang: Gang) -> None:
    """Lets DeepSpeed's communication use the process group that `gang` joined. Before ZeRO 3 builds a model."""
    import deepspeed

    deepspeed.init_distributed(dist_backend="nccl" if gang.device.type == "cuda" else "gloo", auto_mpi_discovery=False, verbose=False)


def check_precision(config: RunConfig) -> None:
    """Refuses a number format that this machine cannot train in.

    Raises:
        ConfigError: DeepSpeed's accelerator does not support it (fp16 needs a GPU, or a CPU with fp16 matrix units).
    """
    from deepspeed.accelerator import get_accelerator

    accelerator = get_accelerator()
    precision = config.training.precision
    supported = {Precision.FP32: True, Precision.BF16: accelerator.is_bf16_supported(), Precision.FP16: accelerator.is_fp16_supported()}
    if not supported[precision]:
        message = f"this machine's {accelerator._name} cannot train in {precision.value}"
        raise ConfigError((Problem("training.precision", precision.value, message, nearest="fp32" if precision is Precision.BF16 else "bf16"),))


def start_engine(built: BuiltModel, *, config: RunConfig, options: Mapping[str, Any], gang: Gang, broadcast: bool = True) -> Engine:
    """Hands the model to DeepSpeed and returns the engine, at the state of step 0.

    Args:
        built: the model.
        config: the run's configuration.
        options: DeepSpeed's configuration, from `deepspeed_config`.
        gang: the ranks, already joined.
        broadcast: whether rank 0's weights go to all ranks; pointless, and a collective per parameter, where a checkpoint is loaded next.
    """
    import deepspeed

    optimizer = config.training.optimizer
    groups = optimizer_groups(built.module, weight_decay=optimizer.weight_decay, orthogonal=optimizer.name is OptimizerName.MUON)
    chosen = {"optimizer": _muon(groups, config=config)} if optimizer.name is OptimizerName.MUON else {"model_parameters": groups}
    with warnings.catch_warnings(), contextlib.nullcontext() if broadcast else _without_broadcast():
        warnings.simplefilter("ignore")
        engine, *_ = deepspeed.initialize(model=built.module, config=dict(options), dist_init_required=False, **chosen)
    return Engine(engine, gang=gang)


@contextlib.contextmanager
def _without_broadcast() -> Iterator[None]:
    """Has DeepSpeed's engine keep what weights each rank has; 0.19 has no option for it."""
    from deepspeed.runtime.engine import DeepSpeedEngine

    genuine = DeepSpeedEngine._broadcast_model
    DeepSpeedEngine._broadcast_model = lambda _engine: None
    try:
        yield
    finally:
        DeepSpeedEngine._broadcast_model = genuine


def _muon(groups: list[dict[str, Any]], *, config: RunConfig) -> Muon:
    optimizer = config.training.optimizer
    return Muon(
        groups,
        learning_rate=optimizer.learning_rate,
        rate_factor=(optimizer.matrix_learning_rate or optimizer.learning_rate) / optimizer.learning_rate,
        betas=(optimizer.beta1, optimizer.beta2),
        epsilon=optimizer.epsilon,
        dtype=torch.bfloat16 if config.training.precision is Precision.BF16 else torch.float32,
    )
