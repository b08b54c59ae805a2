"""The configuration tree. `RunConfig` is the only root; a recipe is one YAML file of it.

Two kinds of section, and they never mix:

* **recipe** (`corpus tokenizer tokenization model training evaluation registration`) says what an artifact *is*
  and makes up its fingerprint;
* **execution** (`storage state deepspeed cluster checkpoint restart tracking`) says where and how it is made
  and never does; but for DeepSpeed options that change numbers (`schemas.deepspeed_options`).

Derived numbers are properties that carry their formula. Nothing is written back.

A validator that finds several broken rules raises one ValueError with a line per rule. A line names the keys it is
about, the one to change first, and may end in `; nearest: VALUE` (`schemas.diagnosis` reads both).
"""

import math
from collections.abc import Mapping
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator, field_validator, model_validator

from schemas.act import OnBadNumbers, OnOutOfMemory
from schemas.deepspeed_options import numeric_options
from schemas.frozen import Frozen, JsonObject, ReadOnly, thaw
from schemas.stage import Stage

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
    """Documents per group (up to some 1 MB of text), spread evenly, that Hugging Face `tokenizers` encodes as well: ids must be equal."""


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


# ---- execution -----------------------------------------------------------------------------------------------------


class StorageConfig(Frozen):
    """Shared storage: artifacts and runs."""

    root: str = Field(default=".headrace/data", min_length=1)
    """Path or fsspec URL. A relative path starts at the recipe's project folder."""


_UNIT_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class StageResources(Frozen):
    """What one stage gets; absent fields come from `cluster`."""

    queue: str | None = None
    """Slurm partition, or Kubernetes queue."""
    nodes: int | None = Field(default=None, ge=1)
    """Nodes."""
    ranks_per_node: int | None = Field(default=None, ge=1)
    """Processes per node."""
    gpus_per_node: int | None = Field(default=None, ge=0)
    """GPUs per node."""
    memory: str | None = Field(default=None, pattern=r"^\d+[KMGT]?$")
    """Memory per node, for example `64G`."""
    time_limit: str | None = Field(default=None, pattern=r"^\d+[smhd]$")
    """Longest run time of one job, for example `24h`. Training commits before it is over, and the next job goes on."""
    python: str | None = None
    """Python interpreter on the nodes. Default: the one that runs the control side."""
    image: str | None = None
    """Container image."""
    setup: tuple[str, ...] = ()
    """Shell lines run on each node before the agent starts, for example `module load cuda`."""

    @property
    def time_limit_s(self) -> float | None:
        """`time_limit` in seconds; None: none is known."""
        return None if self.time_limit is None else int(self.time_limit[:-1]) * _UNIT_S[self.time_limit[-1]]


class ClusterKind(StrEnum):
    """Where jobs run."""

    LOCAL = "local"
    SLURM = "slurm"
    KUBERNETES = "kubernetes"


class ClusterConfig(StageResources):
    """The machines. The fields of `StageResources` are the defaults of every stage; `stages` overrides them."""

    kind: ClusterKind = ClusterKind.LOCAL
    """Where jobs run."""
    stages: Annotated[Mapping[Stage, StageResources], *ReadOnly] = Field(default_factory=dict)
    """Overrides per stage."""
    extra_directives: tuple[str, ...] = ()
    """Raw scheduler directives, one per line, without the `#SBATCH`."""
    namespace: str | None = Field(default=None, pattern=r"^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$")
    """Kubernetes namespace."""
    max_parallel_items: int | None = Field(default=None, ge=1)
    """Most work items of an array stage at a time per node. Default: one per core."""
    threads_per_rank: int | None = Field(default=None, ge=1)
    """Compute threads of each rank. Default: cores of the node / ranks on it, at least 1."""
    grace_s: float = Field(default=30.0, gt=0.0)
    """Seconds between asking ranks to stop and killing them. A step and a checkpoint must fit in; a scheduler's own grace should be longer."""
    lost_after_s: float = Field(default=300.0, gt=0.0)
    """A job that the scheduler does not know counts as gone when its heartbeat is older than this."""

    @model_validator(mode="after")
    def _options_have_an_effect(self) -> Self:
        if self.extra_directives and self.kind is not ClusterKind.SLURM:
            raise ValueError(f"extra_directives has no effect with kind: {self.kind.value}; it belongs to kind: slurm")
        if self.namespace and self.kind is not ClusterKind.KUBERNETES:
            raise ValueError(f"namespace has no effect with kind: {self.kind.value}; it belongs to kind: kubernetes")
        return self

    def resources(self, stage: Stage) -> StageResources:
        """Returns what `stage` gets: its overrides over the cluster's own values."""
        own = {key: getattr(self, key) for key in StageResources.model_fields}
        override = self.stages.get(stage)
        if override is not None:
            own |= {key: value for key in StageResources.model_fields if (value := getattr(override, key)) not in (None, ())}
        return StageResources(**own)


def _number_or_auto(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    """Says in one sentence what two kinds of values there are; pydantic complains once for each."""
    try:
        return validate(value)
    except ValidationError as error:
        nearest = "auto" if isinstance(value, str) else 1
        raise ValueError(f"must be a whole number of at least 1, or auto; nearest: {nearest}") from error


class CheckpointConfig(Frozen):
    """When training state is saved, and what is kept."""

    every_steps: Annotated[Annotated[int, Field(ge=1)] | Literal["auto"], WrapValidator(_number_or_auto)] = 500
    """Steps between checkpoints. `auto`: as often as it pays, from what one costs and how often failures come. The last step is always saved."""
    background: bool = True
    """Whether training goes on while a checkpoint is written; one that comes due meanwhile is skipped, and counted. `false`: training waits."""
    local_dir: str | None = None
    """Folder on a disk of each node, absolute, for checkpoints between those of shared storage: a restart that comes back to the same nodes with as
    many ranks goes on from the newest of either. `null`: none."""
    local_every_steps: int | None = Field(default=None, ge=1)
    """Steps between checkpoints in `local_dir`."""
    keep_last: int = Field(default=3, ge=1)
    """Newest checkpoints that are kept. The last verified one is never deleted."""
    check_weights_every_steps: int | None = Field(default=100, ge=1)
    """Every so many updates the weights are hashed right after the update and again before they are used: what changed in between changed by
    itself, and the ranks start again from the newest checkpoint. `null`: only checkpoints are checked."""
    keep_every_steps: int | None = Field(default=None, ge=1)
    """Checkpoints at multiples of this are kept for ever. `null`: none."""

    @model_validator(mode="after")
    def _local_tier_is_whole(self) -> Self:
        if (self.local_dir is None) != (self.local_every_steps is None):
            missing = "local_every_steps" if self.local_every_steps is None else "local_dir"
            raise ValueError(f"{missing} is missing: local_dir and local_every_steps belong together")
        if self.local_dir is not None and not PurePosixPath(self.local_dir).is_absolute():
            raise ValueError(f"local_dir = {self.local_dir!r} must be absolute: every node has its own")
        return self


class RestartConfig(Frozen):
    """How often a failed stage is started again."""

    max_failures: int = Field(default=3, ge=0)
    """Failures (crashes of ranks, errors) that are answered by a restart."""
    max_interruptions: int = Field(default=100, ge=0)
    """Interruptions (preemption, lost nodes, killed processes) that are answered by a restart."""
    max_attempts_without_progress: int = Field(default=3, ge=1)
    """Stop when this many starts in a row commit nothing new."""
    backoff_s: float = Field(default=0.0, ge=0.0)
    """Pause before a restart after a failure, doubled each time up to a minute. Interruptions restart at once."""
    on_bad_numbers: OnBadNumbers = OnBadNumbers.STOP
    """When loss or gradients are not finite, or the loss jumps: `stop`; `skip` that update; or `rewind` and leave out the batches since. The
    latter two change the result: they are recorded with it and tagged on the model. An fp16 overflow is no such case: it is always skipped."""
    rewind_commits: int = Field(default=1, ge=1)
    """How many commits `on_bad_numbers: rewind` goes back: 1 is the newest. At most `checkpoint.keep_last`."""
    loss_spike_factor: float | None = Field(default=None, gt=1.0)
    """A loss above this many times the median of the last 32 is a jump, judged from the 16th update on. `null`: only numbers that are not finite."""
    on_out_of_memory: OnOutOfMemory = OnOutOfMemory.STOP
    """When memory runs out in training: `stop`, or go on with a `smaller_micro_batch` at the same global batch. The latter changes the result in its
    last bits; it is recorded and tagged like the above."""

    @model_validator(mode="after")
    def _options_have_an_effect(self) -> Self:
        if self.rewind_commits != 1 and self.on_bad_numbers is not OnBadNumbers.REWIND:
            raise ValueError(f"rewind_commits = {self.rewind_commits} has no effect with on_bad_numbers: {self.on_bad_numbers.value}")
        return self


class TrackingConfig(Frozen):
    """What is measured along the way, and where it is shown."""

    mlflow_uri: str | None = None
    """MLflow tracking server or database. `null`: `sqlite` in the state folder."""
    experiment: str | None = None
    """MLflow experiment. Default: the recipe's name."""
    log_every_steps: int = Field(default=1, ge=1)
    """Steps between metric points."""
    validate_every_steps: int = Field(default=100, ge=1)
    """Steps between validation losses and samples. The last step always gets one."""
    validation_sequences: int = Field(default=256, ge=1)
    """Most sequences of the validation split per validation."""
    sample_prompt: str = ""
    """Prompt that is continued at each validation. Empty: starts from the end-of-text token."""
    sample_tokens: int = Field(default=40, ge=0)
    """Tokens of the sample at each validation. 0: none."""
    forward_every_s: float = Field(default=2.0, gt=0.0)
    """Seconds between two hand-overs of metrics to MLflow."""


RECIPE_SECTIONS: Mapping[Stage, tuple[str, ...]] = {
    Stage.VALIDATE: ("corpus",),
    Stage.TOKENIZER: ("tokenizer",),
    Stage.TOKENIZE: ("tokenization",),
    Stage.TRAIN: ("model", "training"),
    Stage.EXPORT: (),
    Stage.EVALUATE: ("evaluation",),
    Stage.REGISTER: ("registration",),
}
"""The recipe sections that make up each stage's fingerprint."""

EXECUTION_SECTIONS: tuple[str, ...] = ("storage", "state", "deepspeed", "cluster", "checkpoint", "restart", "tracking")
"""The sections that never enter a fingerprint, but for DeepSpeed options that change numbers (`schemas.deepspeed_options`)."""


class RunConfig(Frozen):
    """A whole run: what is made (recipe sections) and where and how (execution sections)."""

    name: Name
    """Readable name; begins the names of runs, folders and jobs. Lower-case letters, digits and dashes, at most 40."""
    corpus: CorpusConfig
    """The raw text and its rules."""
    tokenizer: TokenizerConfig = TokenizerConfig()
    """The tokenizer."""
    tokenization: TokenizationConfig = TokenizationConfig()
    """How documents become sequences."""
    model: ModelConfig
    """The model."""
    training: TrainingConfig
    """How it is trained."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """What is measured on the result."""
    registration: RegistrationConfig = RegistrationConfig()
    """How it is registered."""

    storage: StorageConfig = StorageConfig()
    """Shared storage."""
    state: str = Field(default=".headrace/state", min_length=1)
    """Local folder for the Prefect home, the MLflow database, caches and locks. A relative path starts at the recipe's project folder."""
    deepspeed: JsonObject | str | None = None
    """DeepSpeed options beyond what is derived: a mapping, or the path of a JSON file. `auto` is filled in, contradictions are refused."""
    cluster: ClusterConfig = ClusterConfig()
    """The machines."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When training state is saved."""
    restart: RestartConfig = RestartConfig()
    """How often a failed stage is started again."""
    tracking: TrackingConfig = TrackingConfig()
    """What is measured along the way."""

    @model_validator(mode="after")
    def _cross_rules(self) -> Self:
        problems: list[str] = []
        training, ranks = self.training, self.ranks(Stage.TRAIN)
        per_step = training.micro_batch_size * ranks
        if self.cluster.kind is ClusterKind.LOCAL and training.global_batch_size % per_step:
            sizes = sorted({max(1, round(training.global_batch_size / per_step)) * per_step, (training.global_batch_size // per_step + 1) * per_step})
            problems.append(
                f"training.global_batch_size ({training.global_batch_size}) must be a multiple of "
                f"training.micro_batch_size ({training.micro_batch_size}) "
                f"× ranks ({ranks}) = {per_step}; nearest: {', '.join(map(str, sizes))}"
            )
        if self.model.config is not None:
            positions = self.model.config.get("max_position_embeddings")
            if isinstance(positions, int) and positions < self.tokenization.sequence_length:
                problems.append(
                    f"model.config.max_position_embeddings ({positions}) is below "
                    f"tokenization.sequence_length ({self.tokenization.sequence_length}); "
                    f"nearest: {self.tokenization.sequence_length}"
                )
            vocabulary = self.model.config.get("vocab_size")
            if isinstance(vocabulary, int) and self.tokenizer.path is None and vocabulary < self.tokenizer.vocab_size:
                problems.append(
                    f"model.config.vocab_size ({vocabulary}) is below tokenizer.vocab_size ({self.tokenizer.vocab_size}); "
                    "leave it out and it is filled in from the tokenizer"
                )
        if training.steps is not None and training.schedule.warmup_steps > training.steps:
            problems.append(
                f"training.schedule.warmup_steps ({training.schedule.warmup_steps}) is above training.steps ({training.steps}); "
                f"nearest: {training.steps}"
            )
        if self.restart.on_bad_numbers is OnBadNumbers.REWIND and self.restart.rewind_commits > self.checkpoint.keep_last:
            problems.append(
                f"restart.rewind_commits ({self.restart.rewind_commits}) is above checkpoint.keep_last ({self.checkpoint.keep_last}), "
                f"so the commit would be gone; nearest: {self.checkpoint.keep_last}"
            )
        if self.restart.on_out_of_memory is OnOutOfMemory.SMALLER_MICRO_BATCH and training.micro_batch_size == 1:
            problems.append("restart.on_out_of_memory (smaller_micro_batch) has no effect with training.micro_batch_size = 1; nearest: stop")
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def ranks(self, stage: Stage) -> int:
        """Returns nodes × ranks per node that `stage` asks for: GPUs where there are any, else `ranks_per_node`, else 1."""
        resources = self.cluster.resources(stage)
        return (resources.nodes or 1) * (resources.ranks_per_node or resources.gpus_per_node or 1)

    @property
    def model_name(self) -> str:
        """The registered model's name."""
        return self.registration.model_name or self.name

    def identity(self, stage: Stage) -> dict[str, Any]:
        """Returns the part of the recipe that makes up `stage`'s fingerprint, as plain data.

        Paths are left out: the content of sources, of an existing tokenizer and of a pretrained model is an input. So is
        `training.zero_stage`, a matter of memory. Of the `deepspeed` section, what changes numbers enters (`schemas.deepspeed_options`);
        loading a recipe has put a JSON file's content in its place.
        """
        sections = {section: thaw(getattr(self, section).model_dump(mode="json")) for section in RECIPE_SECTIONS[stage]}
        if stage is Stage.VALIDATE:
            for source, name in zip(sections["corpus"]["sources"], self.corpus.source_names, strict=True):
                del source["path"]
                source["name"] = name
        if stage is Stage.TOKENIZER:
            path = sections["tokenizer"].pop("path")
            sections["tokenizer"]["existing"] = path is not None
            if path is not None:  # what trains a tokenizer has no bearing on one that exists
                for key in ("vocab_size", "pattern", "min_frequency", "training_bytes", "special_tokens"):
                    del sections["tokenizer"][key]
        if stage is Stage.TRAIN:
            del sections["training"]["zero_stage"]
            if self.model.pretrained is not None:
                sections["model"]["pretrained"] = True
            if isinstance(self.deepspeed, Mapping) and (options := numeric_options(self.deepspeed, precision=self.training.precision.value)):
                sections["deepspeed"] = options
        return sections

    def trajectory(self) -> dict[str, Any]:
        """Returns the identity of `train` without its stopping point, where the schedule does not depend on it.

        Two training artifacts with equal trajectory and inputs pass through the same states, so a longer one goes on from a shorter one's checkpoint.
        """
        sections = self.identity(Stage.TRAIN)
        if not self.training.length_is_identity:
            for key in ("steps", "tokens", "epochs"):
                del sections["training"][key]
        return sections
