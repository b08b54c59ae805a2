"""What trainings of these tests read: token shards of seeded random ids, and a tokenizer of single characters, as earlier stages leave them."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from cluster.storage import file_entry
from schemas.artifact import ArtifactRecord
from schemas.manifest import Shard, ShardManifest, Split
from schemas.stage import Stage
from tasks.tokenize.shard_file import write_shard
from tasks.work import Draft
from tests.fakes.in_process_work import commit as record_of

INPUT_KEYS = {stage: f"{stage.value}/tiny-000000000000" for stage in (Stage.TOKENIZER, Stage.TOKENIZE)}
"""Where they lie in a storage."""
_ROWS: Mapping[Split, int] = {"train": 61, "validation": 11}


def make_inputs(root: Path, *, vocab_size: int, length: int, rows: Mapping[Split, int] = _ROWS) -> None:
    """Writes token shards of seeded random ids and a tokenizer of single characters into a storage."""
    folder = root / INPUT_KEYS[Stage.TOKENIZE]
    (folder / "shards").mkdir(parents=True)
    shards = tuple(_shard(folder, split, count, vocab_size=vocab_size, length=length) for split, count in rows.items())
    manifest = ShardManifest(
        layout="fixed",
        dtype="uint16",
        sequence_length=length,
        vocab_size=vocab_size,
        end_of_text_id=0,
        tokenizer_hash="0",
        engine="huggingface",
        shards=shards,
    )
    (folder / "manifest.json").write_text(manifest.model_dump_json())
    _write_tokenizer(root / INPUT_KEYS[Stage.TOKENIZER], vocab_size=vocab_size)


def _shard(folder: Path, split: Split, rows: int, *, vocab_size: int, length: int) -> Shard:
    ids = np.random.default_rng(len(split)).integers(1, vocab_size, size=(rows, length)).astype("<u2")
    path = folder / "shards" / f"{split}-g0000-00000.parquet"
    written = write_shard(path, ids, layout="fixed", facts={})
    return Shard(
        group=0,
        split=split,
        file=file_entry(path, relative_to=folder),
        rows=rows,
        tokens=rows * length,
        last_row_tokens=length,
        payload_offset=written.payload_offset,
        text_bytes=rows * length * 3,
    )


def _write_tokenizer(folder: Path, *, vocab_size: int) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {"<|endoftext|>": 0} | {chr(0x100 + number): number for number in range(1, vocab_size)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))


def input_record(root: Path, stage: Stage) -> ArtifactRecord:
    folder = root / INPUT_KEYS[stage]
    files = tuple(file_entry(path, relative_to=folder) for path in sorted(folder.rglob("*")) if path.is_file())
    return record_of(root, stage, Draft(files=files, summary={}), key=INPUT_KEYS[stage])
