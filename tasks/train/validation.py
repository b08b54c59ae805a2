"""Held-out loss and a sample along the way. Neither touches the weights nor any random number of training."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from cluster.agent.pulse import own_pulse
from schemas.execution_config import TrackingConfig
from schemas.manifest import ShardManifest
from tasks.train.data import Batch, BatchSource
from tasks.train.engine import Engine
from tasks.train.order import permute, rank_slice, stream_seed

_TEMPERATURE = 0.8


@dataclass(frozen=True)
class Validation:
    """The result of one validation, equal on every rank but for the sample."""

    loss: float
    """Mean over the targets, in nats."""
    bits_per_byte: float
    """Estimated from the split's bytes per token; 0 when the split's bytes are not known."""
    sample: str
    """Continued prompt; rank 0 only."""


class Validator:
    """Validates on the same sequences each time."""

    def __init__(
        self, engine: Engine, source: BatchSource, *, manifest: ShardManifest, tracking: TrackingConfig, micro_batch_size: int, seed: int
    ) -> None:
        """Args: source: the validation split, which must not be empty."""
        self._engine, self._source, self._seed = engine, source, seed
        count = min(tracking.validation_sequences, source.num_sequences)
        chosen = permute(np.arange(count, dtype=np.int64), size=source.num_sequences, key=seed)
        gang = engine.gang
        self._own = rank_slice(np.sort(chosen), rank=gang.rank, world_size=gang.world_size, micro_batch_size=micro_batch_size)
        self._num_rounds = math.ceil(math.ceil(count / micro_batch_size) / gang.world_size)
        shards = manifest.of_split("validation")
        text_bytes, tokens = sum(shard.text_bytes for shard in shards), sum(shard.tokens for shard in shards)
        self._tokens_per_byte = tokens / text_bytes if text_bytes and not manifest.loss_masks else 0.0  # of what is learned the bytes are not known

    @torch.no_grad()
    def loss(self) -> tuple[float, float]:
        """Returns (mean loss in nats, bits per byte), over all ranks. Collective.

        Every rank makes equally many forward passes, since those of ZeRO 3 are collective; surplus ones do not count.
        """
        module = self._engine.deepspeed
        module.eval()
        nats, targets = 0.0, 0
        for round_number in range(self._num_rounds):
            counts = round_number < len(self._own)
            batch: Batch = self._source.batch(self._own[round_number] if counts else np.zeros(1, dtype=np.int64))
            loss = float(self._engine.loss(batch))
            nats += loss * batch.num_targets * counts
            targets += batch.num_targets * counts
            own_pulse().beat()
        module.train()
        total_nats, total_targets = self._engine.gang.sum([nats, float(targets)])
        mean = total_nats / total_targets if total_targets else 0.0
        return mean, mean / math.log(2) * self._tokens_per_byte


class Sampler:
    """Continues a prompt, with random numbers of its own."""

    def __init__(self, engine: Engine, *, tokenizer_json: bytes, manifest: ShardManifest, tracking: TrackingConfig, seed: int) -> None:
        """Args: tokenizer_json: content of a `tokenizer.json`."""
        from tokenizers import Tokenizer

        self._engine, self._seed, self._num_tokens = engine, seed, tracking.sample_tokens
        self._tokenizer = Tokenizer.from_buffer(tokenizer_json)
        self._end = manifest.end_of_text_id
        ids: Sequence[int] = self._tokenizer.encode(tracking.sample_prompt, add_special_tokens=False).ids
        self._prompt = list(ids) or [self._end]
        self._window = manifest.sequence_length
        self.prompt = tracking.sample_prompt
        """What is continued."""

    @torch.no_grad()
    def sample(self, step: int) -> str:
        """Returns the prompt and its continuation; empty on ranks that need not take part. Collective under ZeRO 3."""
        gang = self._engine.gang
        if self._num_tokens == 0 or (gang.rank != 0 and self._engine.zero_stage < 3):
            return ""
        generator = torch.Generator().manual_seed(stream_seed(self._seed, step=step, rank=-1))
        module, ids = self._engine.module, list(self._prompt)
        module.eval()
        for _ in range(self._num_tokens):  # always as many passes: under ZeRO 3 every rank must make them
            window = torch.tensor([ids[-self._window :]], device=gang.device)
            logits = module(input_ids=window).logits[0, -1].float().cpu()
            ids.append(int(torch.multinomial(torch.softmax(logits / _TEMPERATURE, dim=-1), 1, generator=generator)))
            own_pulse().beat()
        module.train()
        new = ids[len(self._prompt) :]
        kept = new[: new.index(self._end)] if self._end in new else new
        text: str = self._tokenizer.decode(kept)
        return self.prompt + text
