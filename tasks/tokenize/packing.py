"""Packing: documents, each followed by the end-of-text token, cut into rows of equal length. Pure, numpy alone.

The stream of one (group, split) is cut without regard to documents; only its very last row is padded, with the end-of-text token.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.errors import VerificationError
from tasks.tokenizer.engine import Encoded

UINT16_IDS = 65_536
"""Largest vocabulary whose ids fit in uint16."""


@dataclass(frozen=True)
class PackedShard:
    """The content of one shard."""

    rows: npt.NDArray[Any]
    """Ids [rows, sequence_length], little-endian uint16 or uint32."""
    tokens: int
    """Tokens without padding."""
    last_row_tokens: int
    """Tokens of the last row; the rest of it is padding."""
    text_bytes: int
    """UTF-8 bytes of the documents that begin in it."""


def id_dtype(vocab_size: int) -> np.dtype[Any]:
    """Returns the little-endian type of an id: uint16, or uint32 above 65,536 ids."""
    return np.dtype("<u2" if vocab_size <= UINT16_IDS else "<u4")


class Packer:
    """Turns encoded documents into shards. Holds one shard in memory, and what a batch adds to it."""

    def __init__(self, *, sequence_length: int, rows_per_shard: int, vocab_size: int, end_of_text_id: int) -> None:
        """Args: as in the recipe and the tokenizer."""
        self._sequence_length = sequence_length
        self._capacity = rows_per_shard * sequence_length
        self._vocab_size = vocab_size
        self._end_of_text_id = end_of_text_id
        self._dtype = id_dtype(vocab_size)
        self._buffer = np.empty(0, dtype=self._dtype)
        self._filled = 0
        self._text_bytes = 0

    def add(self, encoded: Encoded, *, sizes: npt.NDArray[np.int64]) -> list[PackedShard]:
        """Appends documents and returns the shards that became full.

        Args:
            encoded: ids of the documents.
            sizes: UTF-8 bytes of each.

        Raises:
            VerificationError: an id is not below the vocabulary size that the tokenizer states.
        """
        stream, starts = self._joined(encoded)
        shards: list[PackedShard] = []
        taken = counted = 0
        while taken < stream.size:
            if not self._filled:
                self._buffer = np.empty(self._capacity, dtype=self._dtype)
            count = min(self._capacity - self._filled, stream.size - taken)
            self._buffer[self._filled : self._filled + count] = stream[taken : taken + count]
            self._filled += count
            taken += count
            begun = int(np.searchsorted(starts, taken, side="left"))
            self._text_bytes += int(sizes[counted:begun].sum())
            counted = begun
            if self._filled == self._capacity:
                shards.append(self._emit())
        return shards

    def finish(self) -> PackedShard | None:
        """Returns the last, padded shard, or None when nothing is left."""
        return self._emit() if self._filled else None

    def _joined(self, encoded: Encoded) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
        """Returns (the documents' ids with an end-of-text id after each, where in it each document starts)."""
        if encoded.ids.size and int(encoded.ids.max()) >= self._vocab_size:
            finding = f"id {int(encoded.ids.max())} was encoded; the vocabulary has {self._vocab_size} ids"
            raise VerificationError((finding,), subject="tokenizer", mend="the tokenizer artifact is damaged or of another recipe: --from tokenizer")
        count = encoded.offsets.size - 1
        ends = encoded.offsets[1:] + np.arange(count)
        stream = np.empty(encoded.ids.size + count, dtype=self._dtype)
        is_text = np.ones(stream.size, dtype=bool)
        is_text[ends] = False
        stream[is_text] = encoded.ids
        stream[ends] = self._end_of_text_id
        return stream, encoded.offsets[:-1] + np.arange(count)

    def _emit(self) -> PackedShard:
        tokens = self._filled
        rows = -(-tokens // self._sequence_length)
        content = self._buffer[: rows * self._sequence_length]
        content[tokens:] = self._end_of_text_id
        shard = PackedShard(
            rows=content.reshape(rows, self._sequence_length),
            tokens=tokens,
            last_row_tokens=tokens - (rows - 1) * self._sequence_length,
            text_bytes=self._text_bytes,
        )
        self._filled, self._text_bytes = 0, 0
        return shard
