"""The recipe's sections `model`, `training`, `evaluation` and `registration`; with `corpus_config` and `tokens_config`: what an artifact *is*. They
make up its fingerprint (`schemas.config.RunConfig.identity`).

Derived numbers are properties that carry their formula. Nothing is written back.
"""

import math
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from schemas.frozen import Frozen, JsonObject, added_later
from schemas.mixture import MixtureConfig

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


# ---- model ---------------------------------------------------------------------------------------------------------


class ModelConfig(Frozen):
    """The model: exactly one of `config`, `pretrained`, `factory`."""

    config: JsonObject | None = None
    """A transformers configuration with its `model_type`; weights come from `training.seed`, `vocab_size` is filled in from the tokenizer."""
    pretrained: str | None = None
    """A local folder in Hugging Face layout (safetensors) to start from."""
    factory: str | None = Field(default=None, pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
    """`package.module:function` that returns a model, called with `vocab_size` and `sequence_length`."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        given = [key for key in ("config", "pretrained", "factory") if getattr(self, key) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of config, pretrained, factory; found {', '.join(given) or 'none'}")
        if self.config is not None and not isinstance(self.config.get("model_type"), str):
            raise ValueError("config needs a model_type, for example `model_type: llama`")
        return self


# ---- training ------------------------------------------------------------------------------------------------------


class OptimizerName(StrEnum):
    """How weights move."""

    ADAMW = "adamw"
    MUON = "muon"


class OptimizerConfig(Frozen):
    """The optimizer; biases, norms and embeddings are spared from weight decay."""

    name: OptimizerName = OptimizerName.ADAMW
    """`adamw`, or `muon`: matrices inside of the model move by their orthogonalised momentum, all else by AdamW. `muon` needs ZeRO 0, 1 or 2."""
    learning_rate: float = Field(default=3e-4, gt=0.0)
    """Peak learning rate, reached after the warm-up."""
    matrix_learning_rate: float | None = Field(default=None, gt=0.0)
    """Under `muon`, the peak of the matrices that it moves, on AdamW's scale; None: `learning_rate`. `adamw` refuses it."""
    beta1: float = Field(default=0.9, ge=0.0, lt=1.0)
    """Decay of the first moment, which is Muon's momentum."""
    beta2: float = Field(default=0.95, ge=0.0, lt=1.0)
    """Decay of the second moment."""
    epsilon: float = Field(default=1e-8, gt=0.0)
    """Added to the denominator."""
    weight_decay: float = Field(default=0.1, ge=0.0)
    """Decoupled weight decay of matrices that are not embeddings."""

    @model_validator(mode="after")
    def _matrix_rate_belongs_to_muon(self) -> Self:
        if self.matrix_learning_rate is not None and self.name is not OptimizerName.MUON:
            raise ValueError(
                f"matrix_learning_rate = {self.matrix_learning_rate} has no effect under {self.name.value}; remove it, or use name: muon"
            )
        return self


class Schedule(StrEnum):
    """Shape of the learning rate after the warm-up."""

    COSINE = "cosine"
    LINEAR = "linear"
    CONSTANT = "constant"
    WARMUP_STABLE_DECAY = "wsd"


class ScheduleConfig(Frozen):
    """The learning rate over time."""

    kind: Schedule = Schedule.COSINE
    """`cosine` and `linear` fall to `final_fraction` at the last step; `constant` stays; `wsd` stays, then falls linearly over `decay_steps`."""
    warmup_steps: int = Field(default=100, ge=0)
    """Steps of linear warm-up from zero."""
    final_fraction: Fraction = 0.1
    """Learning rate at the end, as a share of the peak. Has no effect under `constant`."""
    decay_steps: int | None = Field(default=None, ge=1)
    """Length of the final decay; `wsd` needs it, the others refuse it."""

    @model_validator(mode="after")
    def _decay_belongs_to_wsd(self) -> Self:
        wants = self.kind is Schedule.WARMUP_STABLE_DECAY
        if wants and self.decay_steps is None:
            raise ValueError("wsd needs decay_steps")
        if not wants and self.decay_steps is not None:
            raise ValueError(f"decay_steps = {self.decay_steps} has no effect under {self.kind.value}; remove it, or use kind: wsd")
        return self


class Precision(StrEnum):
    """Number format of the forward and backward pass; master weights and moments are always fp32."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


class TrainingConfig(Frozen):
    """How the model is trained."""

    seed: int = Field(default=1234, ge=0, le=2**31 - 1)
    """Seeds the initial weights, the order of samples and dropout."""
    steps: int | None = Field(default=None, ge=1)
    """Optimizer updates. Exactly one of `steps`, `tokens`, `epochs`."""
    tokens: int | None = Field(default=None, ge=1)
    """Training tokens, rounded up to whole steps."""
    epochs: float | None = Field(default=None, gt=0.0)
    """Passes over the training split, rounded up to whole steps. What a pass is under a mixture is said there."""
    mixture: MixtureConfig | None = added_later(None)
    """How often each source is used; needs `tokenization.by_source`. `null`: every sequence equally often."""
    window_sequences: int | None = added_later(None, ge=1)
    """Sequences that are shuffled together, at least `global_batch_size`: a few shards are read at a time. `null`: all, which mixes best."""
    global_batch_size: int = Field(default=512, ge=1)
    """Sequences per optimizer update, over all ranks."""
    micro_batch_size: int = Field(default=8, ge=1)
    """Sequences per rank per forward pass."""
    precision: Precision = Precision.BF16
    """Number format of the forward and backward pass."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """The optimizer."""
    schedule: ScheduleConfig = ScheduleConfig()
    """The learning rate over time."""
    gradient_clipping: float = Field(default=1.0, ge=0.0)
    """Largest global gradient norm. 0: not clipped."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    document_attention: Literal["full", "masked"] = added_later("full")
    """`full`: a token attends to all before it in its sequence. `masked`: to those of its own document, whose positions start at 0."""
    deterministic: bool = False
    """Deterministic kernels on GPU, at some cost. CPU runs are deterministic anyway."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """DeepSpeed ZeRO: 0 replicates, 1 shards optimizer states, 2 gradients too, 3 parameters too. Not identity: a run may change it and go on."""

    @model_validator(mode="after")
    def _cross_rules(self) -> Self:
        problems: list[str] = []
        given = [key for key in ("steps", "tokens", "epochs") if getattr(self, key) is not None]
        if len(given) != 1:
            problems.append(f"give exactly one of steps, tokens, epochs; found {', '.join(given) or 'none'}")
        if self.global_batch_size % self.micro_batch_size:
            below = self.global_batch_size // self.micro_batch_size * self.micro_batch_size
            nearest = ", ".join(str(size) for size in (below, below + self.micro_batch_size) if size)
            problems.append(
                f"global_batch_size ({self.global_batch_size}) must be a multiple of micro_batch_size ({self.micro_batch_size}); nearest: {nearest}"
            )
        if self.window_sequences is not None and self.window_sequences < self.global_batch_size:
            problems.append(
                f"window_sequences ({self.window_sequences}) is below global_batch_size ({self.global_batch_size}): a batch would hold neighbours; "
                f"nearest: {self.global_batch_size}"
            )
        if self.optimizer.name is OptimizerName.MUON and self.zero_stage == 3:
            problems.append("zero_stage 3 cuts every matrix over all ranks, and optimizer.name = muon needs them whole; nearest: 2")
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @property
    def feasible_world_sizes(self) -> tuple[int, ...]:
        """World sizes that give every rank equal work: divisors of global_batch_size / micro_batch_size."""
        micro_batches = self.global_batch_size // self.micro_batch_size
        low = [size for size in range(1, math.isqrt(micro_batches) + 1) if micro_batches % size == 0]
        return tuple(sorted({*low, *(micro_batches // size for size in low)}))

    @property
    def smaller_micro_batch_sizes(self) -> tuple[int, ...]:
        """Proper divisors of micro_batch_size, descending: at each of them the same ranks can make the same global batch."""
        return tuple(size for size in range(self.micro_batch_size // 2, 0, -1) if self.micro_batch_size % size == 0)

    def world_size_for(self, ranks: int) -> int:
        """Returns the largest feasible world size that is at most `ranks` (≥ 1)."""
        return max(size for size in self.feasible_world_sizes if size <= ranks)

    def gradient_accumulation_steps(self, world_size: int) -> int:
        """Returns global_batch_size / (micro_batch_size × world_size)."""
        return self.global_batch_size // (self.micro_batch_size * world_size)

    def epoch_sequences(self, sequences: Mapping[str, int]) -> int:
        """Returns the sequences of one data epoch. `sequences`: source → sequences of its training split."""
        return sum(sequences.values()) if self.mixture is None else self.mixture.epoch_sequences(sequences)

    def total_steps(self, *, num_sequences: int, sequence_length: int) -> int:
        """Returns the number of updates.

        That is `steps`, or ceil(tokens / (global_batch_size × sequence_length)), or ceil(epochs × num_sequences / global_batch_size).
        `num_sequences`: of one data epoch (`epoch_sequences`).
        """
        if self.steps is not None:
            return self.steps
        if self.tokens is not None:
            return math.ceil(self.tokens / (self.global_batch_size * sequence_length))
        assert self.epochs is not None
        return math.ceil(self.epochs * num_sequences / self.global_batch_size)

    @property
    def length_is_identity(self) -> bool:
        """Whether the number of steps shapes the curve from its start: so under cosine and linear, not under constant and wsd."""
        return self.schedule.kind in (Schedule.COSINE, Schedule.LINEAR)


# ---- evaluation and registration ---------------------------------------------------------------------------------------


class EvaluationConfig(Frozen):
    """What is measured on the exported model, on the `test` split."""

    max_bytes: int = Field(default=2_000_000, ge=1_000)
    """Text bytes of the test split to evaluate; documents are taken in order of their content hash."""
    batch_size: int = Field(default=16, ge=1)
    """Sequences per forward pass."""
    prompts: tuple[str, ...] = ()
    """Prompts to continue."""
    max_new_tokens: int = Field(default=64, ge=1)
    """Tokens generated per prompt."""
    temperature: float = Field(default=0.0, ge=0.0)
    """0: greedy. Otherwise samples, seeded by `training.seed`."""
    baselines: bool = True
    """Compare bits per byte with xz, gzip and a token 5-gram trained on the training split."""
    calibration_bins: int = Field(default=15, ge=2, le=100)
    """Bins of the expected calibration error."""
    length_buckets: tuple[int, ...] = (256, 1024, 4096, 16384)
    """Upper bounds, in bytes, of the document-length buckets that are reported apart; ascending."""

    @field_validator("length_buckets")
    @classmethod
    def _ascending(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if list(value) != sorted(set(value)) or any(bound < 1 for bound in value):
            raise ValueError(f"bounds must be positive and strictly ascending, found {list(value)}")
        return value


class GateConfig(Frozen):
    """What a model must reach before it becomes `champion`. Absent bounds are not judged."""

    max_bits_per_byte: float | None = Field(default=None, gt=0.0)
    """Most bits per byte on the test split."""
    max_perplexity: float | None = Field(default=None, gt=1.0)
    """Most perplexity per token on the test split."""
    beat_baselines: bool = False
    """Bits per byte must be below those of xz and of the token 5-gram."""


class RegistrationConfig(Frozen):
    """How the model is registered."""

    model_name: str | None = Field(default=None, pattern=r"^[^/:\s][^/:]{0,199}$")
    """Registered model in MLflow. Default: the recipe's name."""
    gate: GateConfig = GateConfig()
    """What the model must reach to become `champion`."""
