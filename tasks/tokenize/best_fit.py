"""Best-fit packing: only what is longer than a row is cut, and rows are filled with whole documents (Ding et al. 2024, "Fewer Truncations
Improve Language Modeling", arXiv 2404.10830). Pure, numpy alone.

A document longer than a row of L tokens is cut into rows of its own and a rest. Rests and short documents, longest first, each go into the row
that they fill best; where none has room, a row is begun. Rows that are not full are padded with the end-of-text token, and their lengths recorded.
That is done for a window of documents at a time, a shard's worth of tokens or some millions, so memory is bounded and the result is a function
of the documents' order alone. Finding the row takes O(log L): rows are kept by the room that is left in them.

Rows come in the order of their first documents, and documents in a row in their order in the corpus, so that neighbours stay near.
"""

from bisect import bisect_left, insort
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.tokenize.packing import PackedShard, as_bits, id_dtype, joined, joined_learned
from tasks.tokenizer.engine import Encoded

LEAST_WINDOW_TOKENS = 1 << 22
"""Tokens of a window where shards are smaller: among few documents there is seldom one that fills a row."""


@dataclass(frozen=True)
class _Piece:
    """A document, or a part of one that is too long for a row."""

    ids: npt.NDArray[Any]
    """Its tokens, at most a row's."""
    text_bytes: int
    """UTF-8 bytes of the document when it begins here, else 0."""
    learned: npt.NDArray[np.bool_] | None
    """Which of its tokens training learns; None: it is not asked."""


def best_fit(lengths: list[int], *, capacity: int) -> list[list[int]]:
    """Returns which pieces share a row: lists of positions in `lengths`, ascending, by their first one.

    Best fit, longest first; of equally long pieces the earlier one comes first, of rows with equal room the one that got it last.

    Args:
        lengths: of the pieces, each in [1, capacity].
        capacity: of a row.
    """
    rows: list[list[int]] = []
    by_room: dict[int, list[int]] = {}
    rooms: list[int] = []  # those that some row has, ascending
    for piece in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):  # stable, also in reverse
        length = lengths[piece]
        place = bisect_left(rooms, length)
        if place == len(rooms):
            row, room = len(rows), capacity
            rows.append([])
        else:
            room = rooms[place]
            row = by_room[room].pop()
            if not by_room[room]:
                del rooms[place]
        rows[row].append(piece)
        left = room - length
        if left:
            if not by_room.setdefault(left, []):
                insort(rooms, left)
            by_room[left].append(row)
    for pieces in rows:
        pieces.sort()
    return sorted(rows)


class BestFitPacker:
    """Turns encoded documents into shards. Holds a window and the rows made of it."""

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
        self._length, self._rows_per_shard = sequence_length, rows_per_shard
        self._vocab_size, self._end_of_text_id = vocab_size, end_of_text_id
        self._boundaries, self._loss_masks = boundaries, loss_masks
        self._window_tokens = max(rows_per_shard * sequence_length, LEAST_WINDOW_TOKENS)
        self._window: list[_Piece] = []
        self._tokens_in_window = 0
        self._rows: list[list[_Piece]] = []

    def add(self, encoded: Encoded, *, sizes: npt.NDArray[np.int64]) -> list[PackedShard]:
        """Appends documents and returns the shards that became full. Raises as `tasks.tokenize.packing.joined` does.

        Args:
            encoded: ids of the documents.
            sizes: UTF-8 bytes of each.
        """
        stream, starts = joined(encoded, vocab_size=self._vocab_size, end_of_text_id=self._end_of_text_id)
        learned = joined_learned(encoded) if self._loss_masks else None
        shards: list[PackedShard] = []
        for first, last, size in zip(starts.tolist(), [*starts[1:].tolist(), stream.size], sizes.tolist(), strict=True):
            for start in range(first, last, self._length):
                part = slice(start, min(start + self._length, last))
                self._window.append(_Piece(stream[part], size if start == first else 0, learned[part] if learned is not None else None))
            self._tokens_in_window += last - first
            if self._tokens_in_window >= self._window_tokens:
                self._close_window()
                shards += self._full_shards()
        return shards

    def finish(self) -> list[PackedShard]:
        """Returns what is left: shards of which the last one may hold fewer rows. What is added then begins anew."""
        self._close_window()
        shards = self._full_shards()
        if self._rows:
            shards.append(self._emit(self._rows))
            self._rows = []
        return shards

    def _close_window(self) -> None:
        window = self._window
        self._rows += [[window[piece] for piece in row] for row in best_fit([piece.ids.size for piece in window], capacity=self._length)]
        self._window, self._tokens_in_window = [], 0

    def _full_shards(self) -> list[PackedShard]:
        shards: list[PackedShard] = []
        while len(self._rows) >= self._rows_per_shard:
            shards.append(self._emit(self._rows[: self._rows_per_shard]))
            del self._rows[: self._rows_per_shard]
        return shards

    def _emit(self, rows: list[list[_Piece]]) -> PackedShard:
        content = np.full((len(rows), self._length), self._end_of_text_id, dtype=id_dtype(self._vocab_size))
        lengths = np.zeros(len(rows), dtype=np.int32)
        marks = np.zeros(content.shape, dtype=bool) if self._boundaries else None
        learned = np.zeros(content.shape, dtype=bool) if self._loss_masks else None
        for number, pieces in enumerate(rows):
            filled = 0
            for piece in pieces:
                end = filled + piece.ids.size
                content[number, filled:end] = piece.ids
                if marks is not None:
                    marks[number, filled] = True
                if learned is not None:
                    learned[number, filled:end] = piece.learned
                filled = end
            lengths[number] = filled
        return PackedShard(
            rows=content,
            tokens=int(lengths.sum()),
            last_row_tokens=int(lengths[-1]),
            text_bytes=sum(piece.text_bytes for pieces in rows for piece in pieces),
            lengths=lengths,
            starts=None if marks is None else as_bits(marks),
            learned=None if learned is None else as_bits(learned),
        )
