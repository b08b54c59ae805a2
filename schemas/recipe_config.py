"""The recipe's sections of the configuration: what an artifact *is*. They make up its fingerprint (`schemas.config.RunConfig.identity`).

Derived numbers are properties that carry their formula. Nothing is written back.
"""

import math
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from schemas.frozen import Frozen, JsonObject, ReadOnly

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?$")]


# ---- corpus --------------------------------------------------------------------------------------------------------


class SourceConfig(Frozen):
    """One input: a file, a glob, or a folder. A plain string in a recipe is short for `{path: …}`."""

    path: str = Field(min_length=1)
    """File, glob or folder; relative paths start at the recipe's project folder. `${python:stdlib}` is the running Python's standard library."""
    name: Name | None = None
    """Name under which the documents are counted and evaluated. Default: `source-N`, N being the position in the list."""
    format: Literal["auto", "jsonl", "parquet", "csv", "text"] = "auto"
    """How files are read. `auto` goes by the ending; `text` makes one document of a whole file (prose, code)."""
    text_column: str = "text"
    """Column or JSON key that holds the document's text (jsonl, parquet, csv)."""
    include: tuple[str, ...] = ("*",)
    """For folders: patterns of relative paths to read. `*` also crosses folders."""
    exclude: tuple[str, ...] = ()
    """For folders: patterns of relative paths to leave out; `*` also crosses folders."""


class RulesConfig(Frozen):
    """What a document must satisfy; what does not is quarantined with file, row, reason and excerpt."""

    required_columns: Annotated[Mapping[str, Literal["string", "integer", "number", "boolean"]], *ReadOnly] = Field(default_factory=dict)
    """Columns that each record must have besides the text, with their types (jsonl, parquet, csv)."""
    min_chars: int = Field(default=1, ge=0)
    """Fewest characters of a document, after stripping white space."""
    max_chars: int = Field(default=10_000_000, ge=1)
    """Most characters of a document."""
    drop_duplicates: bool = True
    """Quarantine every copy but the first of documents with equal text."""
    min_printable_share: Fraction = 0.9
    """Least share of characters that are printable or white space; catches binary data and broken encodings."""
    max_quarantined_share: Fraction = 0.1
    """Verdict *fail* when more than this share of the records is quarantined. Duplicates do not count: they are normal."""
    max_record_drift: float | None = Field(default=None, ge=0.0)
    """Verdict *fail* when the number of records changed by more than this share against the previous accepted corpus. `null`: not judged."""
    min_documents: int = Field(default=1, ge=1)
    """Verdict *fail* with fewer accepted documents than this."""


class SplitConfig(Frozen):
    """How documents are split, by hash of their content: stable when documents are added."""

    validation: Fraction = 0.01
    """Share held out for the validation loss during training."""
    test: Fraction = 0.01
    """Share held out for the `evaluate` stage."""

    @model_validator(mode="after")
    def _leaves_training_data(self) -> Self:
        if self.validation + self.test >= 1.0:
            raise ValueError(
                f"validation ({self.validation}) + test ({self.test}) = {self.validation + self.test} leaves nothing to train on; must be below 1"
            )
        return self


class CorpusConfig(Frozen):
    """The raw text, the rules it must satisfy, and how it is split."""

    sources: tuple[SourceConfig, ...] = Field(min_length=1)
    """The inputs, in order."""
    rules: RulesConfig = RulesConfig()
    """What a document must satisfy."""
    splits: SplitConfig = SplitConfig()
    """Shares of the held-out splits."""
    group_bytes: int = Field(default=64_000_000, ge=1_000)
    """Inputs are gathered into groups of about this many raw bytes: the unit of work and of reuse."""

    @field_validator("sources", mode="before")
    @classmethod
    def _strings_are_paths(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple):
            return value
        return tuple({"path": item} if isinstance(item, str) else item for item in value)

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        names = self.source_names
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"sources must have unique names, found twice: {', '.join(twice)}")
        return self

    @property
    def source_names(self) -> tuple[str, ...]:
        """The name of each source, in order: its own, or `source-N`."""
        return tuple(source.name or f"source-{index}" for index, source in enumerate(self.sources))


# ---- tokens --------------------------------------------------------------------------------------------------------


class TokenizerConfig(Frozen):
    """A byte-level BPE trained on the corpus, or an existing tokenizer."""

    path: str | None = None
    """An existing `tokenizer.json` or a Hugging Face folder. `null`: train one."""
    vocab_size: int = Field(default=32_768, ge=257 + 1)
    """Ids of a trained tokenizer, special tokens included: 256 bytes + merges + special tokens. Ignored with `path`."""
    pattern: Literal["gpt2", "llama3", "qwen2"] = "gpt2"
    """How text is pre-split before merging. Ignored with `path`."""
    min_frequency: int = Field(default=2, ge=1)
    """A pair must occur this often to be merged."""
    training_bytes: int = Field(default=256_000_000, ge=1)
    """A tokenizer is trained on about this many bytes of the training split, documents chosen by the hash of their id. Ignored with `path`."""
    end_of_text: str = Field(default="<|endoftext|>", min_length=1)
    """The token between documents. An existing tokenizer must have it."""
    special_tokens: tuple[str, ...] = ()
    """Further special tokens of a trained tokenizer."""
    min_bytes_per_token: float = Field(default=1.5, gt=0.0)
    """Gate: the tokenizer must compress held-out text to at least this many bytes per token."""
    max_tokens_per_word: float = Field(default=6.0, gt=0.0)
    """Gate on fertility: at most this many tokens per word of held-out text.

    A word is a run of letters and digits, or of other signs; in scripts without spaces, a character.
    """


class TokenizationConfig(Frozen):
    """How documents become packed sequences in shards."""

    sequence_length: int = Field(default=1024, ge=8)
    """Tokens of one training sequence."""
    sequences_per_shard: int = Field(default=8192, ge=1)
    """Sequences of one shard (a Parquet file); the last one of a group may hold fewer."""
    engine: Literal["auto", "gigatoken", "huggingface"] = "auto"
    """`auto`: gigatoken where it knows the tokenizer, Hugging Face `tokenizers` where it refuses. Both give the same ids."""
    layout: Literal["fixed", "list"] = "fixed"
    """`fixed`: one fixed-size binary value per sequence (fast). `list`: `list<uint16|uint32>`, for other readers."""
    shadow_check_documents: int = Field(default=200, ge=0)
    """Documents per group (up to a five-hundredth of its text), spread evenly, that Hugging Face `tokenizers` encodes as well: ids must be equal."""


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
    """Passes over the training split, rounded up to whole steps."""
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

    def total_steps(self, *, num_sequences: int, sequence_length: int) -> int:
        """Returns the number of updates.

        That is `steps`, or ceil(tokens / (global_batch_size × sequence_length)), or ceil(epochs × num_sequences / global_batch_size).
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
