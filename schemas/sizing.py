"""What a recipe will cost, by arithmetic alone: parameters, memory per rank, disk, steps, floating-point operations.

Estimates for people who decide whether a job fits; nothing else depends on them. Sources:

* model states: 16 bytes per parameter, split by stage as in ZeRO (arXiv 1910.02054, section 5);
* activations: 34 x sequence x batch x hidden bytes per layer in 16 bits (arXiv 2205.05198, equation 2, without the
  attention matrix, which fused kernels never store), or 2 when they are recomputed;
* operations: 6 per parameter and token, plus 12 x layers x hidden x sequence for attention (arXiv 2204.02311, appendix B).
"""

from collections.abc import Mapping
from typing import Any

from schemas.config import RunConfig
from schemas.frozen import Frozen
from schemas.gang_shape import GangShape
from schemas.mixture import SourceShare, source_shares
from schemas.recipe_config import Precision
from schemas.stage import Stage

_MASTER_BYTES = 12
"""fp32 weight and AdamW's two moments: what optimizer and checkpoint hold per parameter."""


class ModelShape(Frozen):
    """The numbers of a transformer that its cost depends on."""

    parameters: int
    """All trained parameters."""
    layers: int
    """Transformer blocks."""
    hidden: int
    """Width of the residual stream."""
    vocab_size: int
    """Rows of the output matrix."""


class MemoryEstimate(Frozen):
    """Bytes that one rank holds at its peak, without the allocator's and the libraries' own."""

    weights: int
    """Parameters of the forward pass."""
    gradients: int
    """Their gradients."""
    optimizer: int
    """fp32 weights and moments."""
    activations: int
    """Kept for the backward pass, and the logits."""

    @property
    def total(self) -> int:
        """The sum."""
        return self.weights + self.gradients + self.optimizer + self.activations


class TrainingSize(Frozen):
    """The derived numbers of a training, each with its formula in the docstring."""

    ranks: int
    """nodes x ranks per node that the recipe asks for."""
    world_size: int
    """Ranks that train: the largest feasible number that the nodes can share out."""
    feasible_world_sizes: tuple[int, ...]
    """Divisors of global_batch_size / micro_batch_size."""
    attempt_shapes: tuple[GangShape, ...]
    """What attempts may have, largest first; one: always the same."""
    accumulation_steps: int
    """global_batch_size / (micro_batch_size x world_size)."""
    tokens_per_step: int
    """global_batch_size x sequence_length."""
    total_steps: int | None
    """Optimizer updates; None while `epochs` waits for the number of sequences."""
    total_tokens: int | None
    """total_steps x tokens_per_step."""
    epochs: float | None
    """total_steps x global_batch_size / sequences of a data epoch, where that is known."""
    sources: tuple[SourceShare, ...] = ()
    """What is used of each source, under a mixture."""
    checkpoint_bytes: int | None
    """12 x parameters."""
    kept_checkpoints: int | None
    """keep_last, those kept for ever, and the one being written."""
    model: ModelShape | None
    """None where the model's numbers are known only to its code."""
    memory: MemoryEstimate | None
    """Per rank."""
    most_memory: MemoryEstimate | None
    """The same in the smallest of `attempt_shapes`, where ranks share their state with the fewest others."""
    operations: float | None
    """Floating-point operations of the whole training."""


def training_size(
    config: RunConfig, *, vocab_size: int | None = None, train_sequences: int | None = None, source_sequences: Mapping[str, int] | None = None
) -> TrainingSize:
    """Returns what training with `config` costs.

    Args:
        vocab_size: of the finished tokenizer; without it, the recipe's.
        train_sequences: sequences of the training split, where they are counted already.
        source_sequences: the same by source, where shards are cut by source.
    """
    mixture = config.training.mixture
    if mixture is not None:  # an epoch is something else then
        train_sequences = mixture.epoch_sequences(source_sequences) if source_sequences is not None else None
    training, length = config.training, config.tokenization.sequence_length
    ranks = config.ranks(Stage.TRAIN)
    world_size = config.gang_shapes[0].world_size
    known = training.epochs is None or train_sequences is not None
    steps = training.total_steps(num_sequences=train_sequences or 0, sequence_length=length) if known else None
    per_step = training.global_batch_size * length
    shape = model_shape(config.model.config, vocab_size=vocab_size or config.tokenizer.vocab_size) if config.model.config is not None else None
    kept = None
    if steps is not None:
        kept_for_ever = steps // config.checkpoint.keep_every_steps if config.checkpoint.keep_every_steps else 0
        every = config.checkpoint.every_steps
        kept = min(config.checkpoint.keep_last + kept_for_ever, steps if every == "auto" else -(-steps // every)) + 1
    return TrainingSize(
        ranks=ranks,
        world_size=world_size,
        feasible_world_sizes=training.feasible_world_sizes,
        attempt_shapes=config.gang_shapes,
        accumulation_steps=training.gradient_accumulation_steps(world_size),
        tokens_per_step=per_step,
        total_steps=steps,
        total_tokens=steps * per_step if steps is not None else None,
        epochs=steps * training.global_batch_size / train_sequences if steps is not None and train_sequences else None,
        sources=source_shares(mixture, sequences=source_sequences, used=steps * training.global_batch_size if steps is not None else None)
        if mixture is not None
        else (),
        checkpoint_bytes=_MASTER_BYTES * shape.parameters if shape else None,
        kept_checkpoints=kept,
        model=shape,
        memory=memory_per_rank(config, shape=shape, world_size=world_size) if shape else None,
        most_memory=memory_per_rank(config, shape=shape, world_size=config.gang_shapes[-1].world_size) if shape else None,
        operations=training_operations(shape, tokens=steps * per_step, sequence_length=length) if shape and steps is not None else None,
    )


def model_shape(model: Mapping[str, Any], *, vocab_size: int) -> ModelShape | None:
    """Returns the shape of a transformers configuration of the Llama or GPT-2 family, with transformers' own defaults; None for others."""
    vocab_size = int(model.get("vocab_size", vocab_size))
    match model.get("model_type"):
        case "llama" | "mistral" | "qwen2" as family:
            return _llama_shape(model, vocab_size=vocab_size, family=family)
        case "gpt2":
            return _gpt2_shape(model, vocab_size=vocab_size)
    return None


def _llama_shape(model: Mapping[str, Any], *, vocab_size: int, family: str) -> ModelShape:
    hidden = int(model.get("hidden_size", 4096))
    inner = int(model.get("intermediate_size", {"llama": 11008, "mistral": 14336, "qwen2": 22016}[family]))
    layers, heads = int(model.get("num_hidden_layers", 32)), int(model.get("num_attention_heads", 32))
    key_heads = int(model.get("num_key_value_heads") or {"llama": heads, "mistral": 8, "qwen2": 32}[family])
    head = int(model.get("head_dim") or hidden // heads)
    attention = 2 * hidden * heads * head + 2 * hidden * key_heads * head  # q and o; k and v
    bias = (heads + 2 * key_heads) * head if family == "qwen2" or model.get("attention_bias") else 0
    block = attention + bias + 3 * hidden * inner + 2 * hidden  # gate, up, down; two norms
    matrices = 1 if model.get("tie_word_embeddings", False) else 2
    return ModelShape(parameters=matrices * vocab_size * hidden + layers * block + hidden, layers=layers, hidden=hidden, vocab_size=vocab_size)


def _gpt2_shape(model: Mapping[str, Any], *, vocab_size: int) -> ModelShape:
    hidden, layers = int(model.get("n_embd", 768)), int(model.get("n_layer", 12))
    inner = int(model.get("n_inner") or 4 * hidden)
    block = 4 * hidden * hidden + 4 * hidden + 2 * hidden * inner + inner + hidden + 4 * hidden  # attention; feed-forward; two norms
    rows = vocab_size * (1 if model.get("tie_word_embeddings", True) else 2) + int(model.get("n_positions", 1024))
    return ModelShape(parameters=rows * hidden + layers * block + 2 * hidden, layers=layers, hidden=hidden, vocab_size=vocab_size)


def memory_per_rank(config: RunConfig, *, shape: ModelShape, world_size: int) -> MemoryEstimate:
    """Returns the bytes of one of `world_size` ranks under the recipe's ZeRO stage, precision and micro-batch."""
    training = config.training
    width = 4 if training.precision is Precision.FP32 else 2
    states, stage = shape.parameters, training.zero_stage
    master = 8 if training.precision is Precision.FP32 and stage == 0 else _MASTER_BYTES  # without sharding, fp32 weights are their own master
    tokens = training.micro_batch_size * config.tokenization.sequence_length
    per_layer = (1 if training.activation_checkpointing else 17) * width * tokens * shape.hidden
    logits = tokens * shape.vocab_size * (width + 4)  # and their fp32 copy in the loss
    return MemoryEstimate(
        weights=width * states // (world_size if stage == 3 else 1),
        gradients=width * states // (world_size if stage >= 2 else 1),
        optimizer=master * states // (world_size if stage >= 1 else 1),
        activations=per_layer * shape.layers + logits,
    )


def training_operations(shape: ModelShape, *, tokens: int, sequence_length: int) -> float:
    """Returns the floating-point operations of forward and backward over `tokens`."""
    return float(tokens) * (6 * shape.parameters + 12 * shape.layers * shape.hidden * sequence_length)
