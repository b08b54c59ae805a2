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
    source: str = ""
    """The one source of its documents; empty: of any."""
    lengths: npt.NDArray[np.int32] | None = None
    """Tokens of each row [rows], the rest of it is padding; None: only the last row may end in padding."""
    starts: npt.NDArray[np.uint8] | None = None
    """Marks of the tokens that a document starts with, a bit each, the lowest first [rows, ceil(sequence_length / 8)]; None: not wanted."""
    learned: npt.NDArray[np.uint8] | None = None
    """Marks of the tokens that training learns, as above; None: not wanted."""


def id_dtype(vocab_size: int) -> np.dtype[Any]:
    """Returns the little-endian type of an id: uint16, or uint32 above 65,536 ids."""
    return np.dtype("<u2" if vocab_size <= UINT16_IDS else "<u4")


class Packer:
    """Turns encoded documents into shards. Holds one shard in memory, and what a batch adds to it."""

    def __init__(
        self,
        *,
        sequence_length: int,
        rows_per_shard: int,
        vocab_size: int,
        end_of_text_id: int,
        boundaries: bool = False,
        loss_masks: bool = False,
    ) -> None:
        """Args: as in the recipe and the tokenizer. loss_masks: whether to say what training learns."""
        self._sequence_length = sequence_length
        self._capacity = rows_per_shard * sequence_length
        self._vocab_size = vocab_size
        self._end_of_text_id = end_of_text_id
        self._marks = np.zeros(self._capacity, dtype=bool) if boundaries else None
        self._learned = np.zeros(self._capacity, dtype=bool) if loss_masks else None
        self._buffer = np.empty(0, dtype=id_dtype(vocab_size))
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
        _check_ids(encoded, vocab_size=self._vocab_size)
        ends = ends_of(encoded)
        starts, total = ends - np.diff(encoded.offsets), encoded.ids.size + ends.size
        is_text = text_of(ends, total=total)
        learned = joined_learned(encoded) if self._learned is not None else None
        shards: list[PackedShard] = []
        taken = counted = ended = 0
        while taken < total:
            if not self._filled:
                self._buffer = np.empty(self._capacity, dtype=self._buffer.dtype)
            count = min(self._capacity - self._filled, total - taken)
            part = self._buffer[self._filled : self._filled + count]
            begun, over = np.searchsorted(starts, taken + count).item(), np.searchsorted(ends, taken + count).item()
            part[is_text[taken : taken + count]] = encoded.ids[taken - ended : taken + count - over]
            part[ends[ended:over] - taken] = self._end_of_text_id
            self._text_bytes += int(sizes[counted:begun].sum())
            if self._marks is not None:
                self._marks[starts[counted:begun] + (self._filled - taken)] = True
            if self._learned is not None and learned is not None:
                self._learned[self._filled : self._filled + count] = learned[taken : taken + count]
            self._filled += count
            taken, counted, ended = taken + count, begun, over
            if self._filled == self._capacity:
                shards.append(self._emit())
        return shards

    def finish(self) -> list[PackedShard]:
        """Returns the last shard, padded, or nothing when nothing is left. What is added then begins another one."""
        return [self._emit()] if self._filled else []

    def _emit(self) -> PackedShard:
        tokens, length = self._filled, self._sequence_length
        rows = -(-tokens // length)
        content = self._buffer[: rows * length]
        content[tokens:] = self._end_of_text_id
        shard = PackedShard(
            rows=content.reshape(rows, length),
            tokens=tokens,
            last_row_tokens=tokens - (rows - 1) * length,
            text_bytes=self._text_bytes,
            starts=None if self._marks is None else as_bits(self._marks[: rows * length].reshape(rows, length)),
            learned=None if self._learned is None else as_bits(self._learned[: rows * length].reshape(rows, length)),
        )
        self._filled, self._text_bytes = 0, 0
        for marks in (self._marks, self._learned):
            if marks is not None:
                marks[:] = False
        return shard


def joined(encoded: Encoded, *, vocab_size: int, end_of_text_id: int) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Returns (the documents' ids with an end-of-text id after each, where in it each document starts).

    Raises:
        VerificationError: an id is not below `vocab_size`.
    """
    _check_ids(encoded, vocab_size=vocab_size)
    ends = ends_of(encoded)
    stream = np.empty(encoded.ids.size + ends.size, dtype=id_dtype(vocab_size))
    stream[text_of(ends, total=stream.size)] = encoded.ids
    stream[ends] = end_of_text_id
    return stream, ends - np.diff(encoded.offsets)


def ends_of(encoded: Encoded) -> npt.NDArray[np.int64]:
    """Returns where each document's end-of-text id comes, when one follows each document."""
    return encoded.offsets[1:] + np.arange(encoded.offsets.size - 1)


def text_of(ends: npt.NDArray[np.int64], *, total: int) -> npt.NDArray[np.bool_]:
    """Returns which of `total` ids are text, not `ends`."""
    is_text = np.ones(total, dtype=bool)
    is_text[ends] = False
    return is_text


def _check_ids(encoded: Encoded, *, vocab_size: int) -> None:
    """Raises VerificationError for an id that is not below `vocab_size`."""
    if encoded.ids.size and int(encoded.ids.max()) >= vocab_size:
        finding = f"id {int(encoded.ids.max())} was encoded; the vocabulary has {vocab_size} ids"
        raise VerificationError((finding,), subject="tokenizer", mend="the tokenizer artifact is damaged or of another recipe: --from tokenizer")


def joined_learned(encoded: Encoded) -> npt.NDArray[np.bool_]:
    """Returns which tokens of `joined` training learns: an end-of-text token where it learns the one before, and of documents without a token."""
    ends = ends_of(encoded)
    learned = np.ones(encoded.ids.size + ends.size, dtype=bool)
    if encoded.learned is None:
        return learned
    learned[text_of(ends, total=learned.size)] = encoded.learned
    has_text = np.diff(encoded.offsets) > 0
    learned[ends[has_text]] = learned[ends[has_text] - 1]
    return learned


def as_bits(marks: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """Returns marks [rows, L] as bits, the lowest first [rows, ceil(L / 8)]."""
    return np.packbits(marks, axis=1, bitorder="little")
