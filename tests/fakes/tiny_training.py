"""What trainings on made-up tokens read: a tiny recipe, token shards of random ids, and a tokenizer of single characters."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cluster.storage import file_entry
from schemas.config import RunConfig
from schemas.manifest import Shard, ShardManifest, Split
from tasks.tokenize.shard_file import write_shard

LENGTH, VOCABULARY = 16, 64
LLAMA: Mapping[str, Any] = {
    "model_type": "llama",
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "attention_dropout": 0.1,  # so that random numbers count
    "tie_word_embeddings": True,
}


def small_config(folder: Path, **changes: Any) -> RunConfig:
    """Returns a small config; `changes` are dotted keys with `__` for the dot."""
    values: dict[str, Any] = {
        "name": "tiny",
        "corpus": {"sources": [str(folder)]},
        "tokenizer": {"vocab_size": 300},
        "tokenization": {"sequence_length": LENGTH},
        "model": {"config": dict(LLAMA)},
        "training": {
            "seed": 7,
            "steps": 6,
            "global_batch_size": 12,
            "micro_batch_size": 2,
            "precision": "bf16",
            "zero_stage": 2,
            "optimizer": {"learning_rate": 0.01},
            "schedule": {"kind": "constant", "warmup_steps": 2},
        },
        "checkpoint": {"every_steps": 2, "background": False},  # steps take milliseconds here: a second checkpoint would be skipped
        "tracking": {"validate_every_steps": 3, "validation_sequences": 8, "sample_tokens": 4},
        "cluster": {"ranks_per_node": 1},
    }
    for dotted, value in changes.items():
        *parents, last = dotted.split("__")
        place = values
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return RunConfig.model_validate(values)


def make_shards(
    folder: Path, *, rows: Mapping[Split, tuple[int, ...]], vocab_size: int = VOCABULARY, length: int = LENGTH, last_row_tokens: int = 5
) -> ShardManifest:
    """Writes shards of random ids below `folder`; the last row of each shard holds `last_row_tokens` tokens and padding."""
    random = np.random.default_rng(0)
    shards = []
    (folder / "shards").mkdir(parents=True)
    for split, counts in rows.items():
        for group, count in enumerate(counts):
            ids = random.integers(1, vocab_size, size=(count, length)).astype("<u2")
            ids[-1, last_row_tokens:] = 0
            path = folder / "shards" / f"{split}-g{group:04d}-00000.parquet"
            written = write_shard(path, ids, layout="fixed", facts={})
            tokens = (count - 1) * length + last_row_tokens
            shards.append(
                Shard(
                    group=group,
                    split=split,
                    file=file_entry(path, relative_to=folder),
                    rows=count,
                    tokens=tokens,
                    last_row_tokens=last_row_tokens,
                    payload_offset=written.payload_offset,
                    text_bytes=tokens * 3,
                )
            )
    manifest = ShardManifest(
        layout="fixed",
        dtype="uint16",
        sequence_length=length,
        vocab_size=vocab_size,
        end_of_text_id=0,
        tokenizer_hash="0",
        engine="huggingface",
        shards=tuple(shards),
    )
    (folder / "manifest.json").write_text(manifest.model_dump_json())
    return manifest


def make_tokenizer(folder: Path, *, vocab_size: int = VOCABULARY) -> None:
    """Writes a `tokenizer.json` of single characters."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {"<|endoftext|>": 0} | {chr(0x100 + number): number for number in range(1, vocab_size)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
