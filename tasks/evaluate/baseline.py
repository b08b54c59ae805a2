"""Baselines in bits per byte of the same test text: two compressors and the token 5-gram."""

import gzip
import lzma
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from schemas.artifact import FileEntry
from schemas.manifest import ShardManifest
from tasks.evaluate.document import Document
from tasks.evaluate.ngram import ORDER, NgramModel
from tasks.evaluate.report import Baseline
from tasks.evaluate.tally import bits_per_byte
from tasks.recorded_file import verified_bytes
from tasks.tokenize.shard_reader import ShardReader

MAX_NGRAM_TOKENS = 20_000_000
"""Training tokens that the 5-gram counts: about 2 GB of memory and 20 s; larger corpora are sampled evenly."""
_BLOCKS = 64


def compressors(documents: Sequence[Document]) -> tuple[Baseline, ...]:
    """Returns xz and gzip at their strongest on the documents' text, one after the other in one stream, training text unseen."""
    text = "".join(document.text for document in documents).encode()
    xz = len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME))
    gz = len(gzip.compress(text, compresslevel=9, mtime=0))
    how = "of the test documents as one stream; sees no training text"
    return (
        Baseline(name="xz", bits_per_byte=8 * xz / len(text), method=f"size of xz -9e {how}"),
        Baseline(name="gzip", bits_per_byte=8 * gz / len(text), method=f"size of gzip -9 {how}"),
    )


def ngram(
    documents: Sequence[Document], *, token_ids: Sequence[npt.NDArray[np.int64]], stream: npt.NDArray[np.int64], total: int, vocab_size: int
) -> Baseline:
    """Returns the 5-gram's bits per byte.

    Args:
        documents: the test documents.
        token_ids: their tokens, end-of-text first; as for the model, end-of-text is context only.
        stream: training tokens, from `training_stream`.
        total: training tokens there are.
        vocab_size: ids are below this.
    """
    model = NgramModel(stream, vocab_size=vocab_size)
    tokens = np.concatenate(token_ids)
    positions = np.concatenate([np.arange(len(ids)) for ids in token_ids])
    nats = model.nats(tokens, positions=positions)[positions > 0].sum()
    text_bytes = sum(document.num_bytes for document in documents)
    counted = f"{min(len(stream), total):,} of {total:,} training tokens"
    method = f"interpolated modified Kneser-Ney over the model's own tokens, counted on {counted}; same documents, same context start"
    return Baseline(name=f"{ORDER}-gram", bits_per_byte=bits_per_byte(float(nats), text_bytes=text_bytes), method=method)


def training_stream(tokens_dir: Path, *, manifest: FileEntry, max_tokens: int = MAX_NGRAM_TOKENS) -> tuple[npt.NDArray[np.int64], ShardManifest]:
    """Returns the training split's tokens in order, and the shards' manifest. Above `max_tokens`: evenly spread blocks of them.

    Raises:
        VerificationError: a shard's bytes are not those of its manifest.
    """
    shards = ShardManifest.model_validate_json(verified_bytes(tokens_dir, manifest, subject="token shards"))
    reader = ShardReader(shards, folder=tokens_dir, split="train")
    rows = _spread(reader.num_sequences, wanted=max(1, max_tokens // shards.sequence_length))
    tokens = reader.rows(rows)
    stream: npt.NDArray[np.int64] = tokens[np.arange(shards.sequence_length) < reader.lengths(rows)[:, None]]  # without padding
    return stream, shards


def _spread(count: int, *, wanted: int) -> npt.NDArray[np.int64]:
    """Returns all of `count` row numbers, or about `wanted` of them in evenly spread blocks."""
    if count <= wanted:
        return np.arange(count)
    size = max(1, wanted // _BLOCKS)
    starts = np.linspace(0, count - size, num=min(_BLOCKS, wanted)).astype(np.int64)
    return np.unique((starts[:, None] + np.arange(size)[None, :]).reshape(-1))
