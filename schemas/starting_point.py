"""A sensible first recipe for an amount of text. Pure: from a few facts to YAML text.

Sizes follow from the text: about 20 tokens per parameter over all passes (arXiv 2203.15556), and at most four passes, after
which repeated text teaches little more (arXiv 2305.16264).
"""

import json
import math
from dataclasses import dataclass, replace

import yaml

from schemas.cluster_config import ClusterKind

_BYTES_PER_TOKEN = 4.0
_MAX_EPOCHS = 4
_MIN_STEPS = 50
_GPUS_PER_NODE = 8


@dataclass(frozen=True)
class TextFacts:
    """What is known of somebody's text without reading it all."""

    path: str
    """As it shall stand in the recipe."""
    num_files: int
    """Files found."""
    text_bytes: int
    """Their size, decompressed by estimate."""
    format: str
    """`auto`, or `text` where the endings say nothing."""
    text_column: str
    """Column or key of the text."""
    beginning: str = ""
    """The first words of the first document."""


@dataclass(frozen=True)
class Wish:
    """What the user asked for besides the text."""

    name: str
    """Name of the recipe."""
    cluster: ClusterKind
    """Where it runs."""
    gpus: int
    """GPUs of this machine, for `local`."""
    cores: int
    """CPU cores of this machine, for `local`."""
    model_path: str = ""
    """A model to start from, or empty."""
    model_positions: int = 0
    """Its longest sequence."""
    tokenizer_path: str = ""
    """An existing tokenizer, or empty."""
    end_of_text: str = ""
    """Its token between documents, where it is not the default."""
    deepspeed_path: str = ""
    """A DeepSpeed JSON file, or empty."""

    @property
    def ranks(self) -> int:
        """Ranks that train: a node's 8 GPUs on clusters, this machine's GPUs, or 2 processes where there are two cores."""
        if self.cluster is not ClusterKind.LOCAL:
            return _GPUS_PER_NODE
        return self.gpus or min(2, self.cores)


@dataclass(frozen=True)
class _Size:
    """A model that suits an amount of text."""

    up_to_bytes: float
    label: str
    vocab_size: int
    sequence_length: int
    hidden: int
    layers: int
    heads: int
    inner: int
    batch: int
    micro_batch: int
    learning_rate: float

    def spread_over(self, ranks: int) -> "_Size":
        """Returns the same size with a batch that gives every one of `ranks` equal work."""
        batch = math.ceil(self.batch / ranks) * ranks
        per_rank = batch // ranks
        micro = next(size for size in range(min(self.micro_batch, per_rank), 0, -1) if per_rank % size == 0)
        return replace(self, batch=batch, micro_batch=micro)


_SIZES = (
    _Size(20e6, "2 M parameters", 2048, 256, 192, 4, 6, 512, 16, 8, 4e-3),
    _Size(200e6, "10 M parameters", 8192, 512, 320, 6, 5, 864, 32, 8, 2e-3),
    _Size(2e9, "36 M parameters", 16384, 1024, 512, 8, 8, 1376, 64, 8, 1e-3),
    _Size(20e9, "125 M parameters", 32768, 1024, 768, 12, 12, 2048, 256, 16, 6e-4),
    _Size(200e9, "400 M parameters", 32768, 2048, 1024, 24, 16, 2816, 256, 8, 3e-4),
    _Size(math.inf, "1.3 B parameters", 50304, 2048, 2048, 24, 16, 5504, 512, 8, 2e-4),
)
_LARGEST_ON_CPU = _SIZES[1]


@dataclass(frozen=True)
class _Length:
    """How long to train."""

    steps: int
    epochs: float
    tokens_per_step: int


def recipe_text(text: TextFacts, wish: Wish) -> str:
    """Returns a commented recipe."""
    size = _size_for(text, wish)
    length = _length_for(text, size=size, sequence_length=_sequence_length(size, wish))
    blocks = [
        _head(text, wish, size=size),
        _corpus(text),
        _tokens(wish, size=size),
        _model(wish, size=size),
        _training(wish, size=size, length=length),
    ]
    blocks += [_evaluation(text), _cluster(wish), _deepspeed(wish), _checkpoint(length)]
    return "\n".join(block for block in blocks if block)


def summary_of(text: TextFacts, wish: Wish) -> str:
    """Returns one line: how much text, which model, how long."""
    size = _size_for(text, wish)
    length = _length_for(text, size=size, sequence_length=_sequence_length(size, wish))
    model = "your model" if wish.model_path else size.label
    passes = f"about {length.epochs:,.1f} passes" if length.epochs >= 0.1 else "less than a tenth of a pass"
    return f"{_amount(text)}; {model}, {length.steps:,} steps, {passes} over it"


def _amount(text: TextFacts) -> str:
    unit, name = (1e9, "GB") if text.text_bytes >= 1e9 else (1e6, "MB")
    size = f"{text.text_bytes / unit:,.1f} {name}" if text.text_bytes >= 1e5 else f"{text.text_bytes:,} bytes"
    return f"{text.num_files:,} file{'' if text.num_files == 1 else 's'}, about {size} of text"


def _size_for(text: TextFacts, wish: Wish) -> _Size:
    size = next(size for size in _SIZES if text.text_bytes <= size.up_to_bytes)
    on_cpu = wish.cluster is ClusterKind.LOCAL and not wish.gpus
    size = min(size, _LARGEST_ON_CPU, key=lambda candidate: candidate.up_to_bytes) if on_cpu else size
    return size.spread_over(wish.ranks)


def _sequence_length(size: _Size, wish: Wish) -> int:
    return min(size.sequence_length, wish.model_positions) if wish.model_positions else size.sequence_length


def _length_for(text: TextFacts, *, size: _Size, sequence_length: int) -> _Length:
    tokens = max(1.0, text.text_bytes / (_BYTES_PER_TOKEN if size.vocab_size > 4096 else 3.0))
    per_step = size.batch * sequence_length
    parameters = size.hidden * size.vocab_size + size.layers * size.hidden * (4 * size.hidden + 3 * size.inner)
    wanted = min(20 * parameters, _MAX_EPOCHS * tokens)
    steps = max(_MIN_STEPS, round(wanted / per_step))
    return _Length(steps=steps, epochs=steps * per_step / tokens, tokens_per_step=per_step)


# ---- the blocks of the file -------------------------------------------------------------------------------------------


def _head(text: TextFacts, wish: Wish, *, size: _Size) -> str:
    subject = "your model" if wish.model_path else size.label
    return f"""# {wish.name}: {subject}, trained on {_amount(text)}.
#
#     headrace plan FILE       every derived number, what is made and why; nothing is run
#     headrace run FILE        the pipeline; call it again after anything, it goes on
#
# Keys that are not written here have defaults. Relative paths start at the project folder: the nearest folder above this
# file with a pyproject.toml, .git or .headrace, else the file's own.

name: {wish.name}
"""


def _corpus(text: TextFacts) -> str:
    lines = ["corpus:", "  sources:", f"    - path: {_scalar(text.path)}"]
    lines += [f"      format: {text.format}            # one document per file"] if text.format == "text" else []
    lines += [f"      text_column: {_scalar(text.text_column)}     # the column or key that holds the text"] if text.text_column != "text" else []
    lines += ["  rules:                       # what breaks a rule is quarantined with file, row and reason; nothing is lost silently"]
    lines += ["    min_chars: 1"]
    lines += ["  # preparation:             # for text from the web, all of it optional; docs/pipeline.md names more"]
    lines += ["  #   normalization: nfc", "  #   quality: {gopher: true}", "  #   duplicates: {near: true}"]
    lines += ["  splits:                      # by hash of the content: stable when text is added"]
    share = 0.01 if text.text_bytes > 50e6 else 0.04
    if text.format == "text":  # a file is a document: five of them on average, for a split of one is often empty
        share = max(share, min(0.25, round(5 / text.num_files, 2)))
    lines += [f"    validation: {round(min(max(share / 2, 0.01), 0.1), 3)}", f"    test: {share}"]
    if text.text_bytes < 500e6:
        lines += [f"  group_bytes: {max(1_000_000, round(text.text_bytes / 8, -5)):_}       # the unit of work and of reuse"]
    return "\n".join(lines) + "\n"


def _tokens(wish: Wish, *, size: _Size) -> str:
    if wish.tokenizer_path:
        lines = ["tokenizer:", f"  path: {_scalar(wish.tokenizer_path)}"]
        lines += [f"  end_of_text: {_scalar(wish.end_of_text)}"] if wish.end_of_text else []
    else:
        lines = ["tokenizer:", f"  vocab_size: {size.vocab_size}             # trained on your text"]
    return "\n".join([*lines, "", "tokenization:", f"  sequence_length: {_sequence_length(size, wish)}", ""])


def _model(wish: Wish, *, size: _Size) -> str:
    if wish.model_path:
        return f"model:\n  pretrained: {_scalar(wish.model_path)}\n"
    return f"""model:
  config:                      # a transformers configuration; {size.label}
    model_type: llama
    hidden_size: {size.hidden}
    intermediate_size: {size.inner}
    num_hidden_layers: {size.layers}
    num_attention_heads: {size.heads}
    num_key_value_heads: {size.heads}
    max_position_embeddings: {_sequence_length(size, wish)}
    tie_word_embeddings: true
    rms_norm_eps: 1e-5
"""


def _training(wish: Wish, *, size: _Size, length: _Length) -> str:
    rate = 5e-5 if wish.model_path else size.learning_rate
    sequence_length = _sequence_length(size, wish)
    return f"""training:
  steps: {length.steps}                   # about {length.epochs:,.1f} passes over the text
  global_batch_size: {size.batch}        # x {sequence_length} = {length.tokens_per_step:,} tokens per step
  micro_batch_size: {size.micro_batch}          # per rank; lower it when memory runs out
  precision: bf16
  zero_stage: {1 if wish.gpus or wish.cluster is not ClusterKind.LOCAL else 2}
  optimizer:
    learning_rate: {f"{rate:.6f}".rstrip("0")}
  schedule:
    kind: wsd                  # constant, then falling: a longer run can go on from this one
    warmup_steps: {max(5, length.steps // 20)}
    decay_steps: {max(10, length.steps // 3)}
    final_fraction: 0.0
"""


def _evaluation(text: TextFacts) -> str:
    prompts = f"[{json.dumps(text.beginning, ensure_ascii=False)}]" if text.beginning else "[]"
    return f"""evaluation:
  prompts: {prompts}    # continued by the finished model
  max_new_tokens: 64

registration:
  gate: {{}}                     # bounds a model must meet to become `champion`, for example max_bits_per_byte: 1.2
"""


def _cluster(wish: Wish) -> str:
    if wish.cluster is ClusterKind.LOCAL:
        if wish.gpus:
            return f"cluster:\n  kind: local\n  gpus_per_node: {wish.gpus}\n"
        return f"cluster:\n  kind: local\n  ranks_per_node: {wish.ranks}            # processes that train together\n"
    shared = f"""  nodes: 1
  gpus_per_node: {_GPUS_PER_NODE}
  ranks_per_node: {_GPUS_PER_NODE}
  memory: 400G
  time_limit: 24h              # a job that runs out of time is continued by the next
"""
    if wish.cluster is ClusterKind.SLURM:
        return f"""# Nodes must see the storage, the state, the text and this checkout under the same paths: `headrace doctor FILE` looks.
#
#     storage: {{root: /shared/headrace/data}}
#     state: /shared/headrace/state

cluster:
  kind: slurm
  queue: gpu                   # your partition
{shared}  threads_per_rank: 4          # CPUs of each process: {_GPUS_PER_NODE} x 4 on a node
  grace_s: 25                  # to stop and commit in; below the cluster's KillWait, which is 30 s unless somebody changed it
  setup: []                    # shell lines of the batch script, for example: module load cuda
  extra_directives: []         # further options of sbatch, for example: --account=research
  stages:                      # stages that need no GPU: name a partition without, where there is one (queue: cpu)
    validate: {{gpus_per_node: 0, ranks_per_node: 8, memory: 64G}}
    prepare: {{gpus_per_node: 0, ranks_per_node: 8, memory: 64G}}
    tokenizer: {{gpus_per_node: 0, ranks_per_node: 1, memory: 64G}}
    tokenize: {{gpus_per_node: 0, ranks_per_node: 8, memory: 64G}}
    export: {{gpus_per_node: 0, ranks_per_node: 1, memory: 64G}}
    evaluate: {{gpus_per_node: 1, ranks_per_node: 1, memory: 64G}}
"""
    return f"""# Pods see the folders of the volumes below. The storage and the text lie there, or in object storage; the state may stay here.
storage: {{root: /mnt/headrace/data}}

cluster:
  kind: kubernetes
  namespace: default
  image: registry.example.com/headrace:latest
  kubernetes:
    volumes: [{{mount: /mnt/headrace, claim: headrace}}]   # a PersistentVolumeClaim that all nodes may write (ReadWriteMany)
{shared}  stages:                      # stages that need no GPU
    validate: {{gpus_per_node: 0, ranks_per_node: 8}}
    prepare: {{gpus_per_node: 0, ranks_per_node: 8}}
    tokenizer: {{gpus_per_node: 0, ranks_per_node: 1}}
    tokenize: {{gpus_per_node: 0, ranks_per_node: 8}}
    export: {{gpus_per_node: 0, ranks_per_node: 1}}
"""


def _deepspeed(wish: Wish) -> str:
    if not wish.deepspeed_path:
        return ""
    return f"deepspeed: {_scalar(wish.deepspeed_path)}    # further options; `auto` is filled in, a contradiction with this recipe is refused\n"


def _checkpoint(length: _Length) -> str:
    every = max(10, min(500, length.steps // 20))
    return f"""checkpoint:
  every_steps: {every}              # at most so many steps are redone after a failure

tracking:
  validate_every_steps: {max(every, length.steps // 10)}
"""


def _scalar(text: str) -> str:
    """Returns `text` as YAML writes it, quoted where it must be."""
    dumped: str = yaml.safe_dump(text, default_flow_style=True, allow_unicode=True, width=10_000)
    return dumped.removesuffix("\n").removesuffix("\n...")
