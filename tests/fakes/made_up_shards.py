"""Manifests of shards that do not exist: for what is decided from their numbers alone."""

from schemas.artifact import FileEntry
from schemas.manifest import Shard, ShardManifest


def manifest_of(*shards: tuple[str, int]) -> ShardManifest:
    """Returns a manifest of shards (source, rows), in this order."""
    return ShardManifest(
        layout="fixed",
        dtype="uint16",
        sequence_length=8,
        vocab_size=64,
        end_of_text_id=0,
        tokenizer_hash="0",
        engine="huggingface",
        shards=tuple(
            Shard(
                group=number,
                split="train",
                file=FileEntry(path=f"shards/{number}", size=0, xxh3=""),
                rows=rows,
                tokens=rows * 8,
                last_row_tokens=8,
                payload_offset=0,
                text_bytes=0,
                source=source,
            )
            for number, (source, rows) in enumerate(shards)
        ),
    )
