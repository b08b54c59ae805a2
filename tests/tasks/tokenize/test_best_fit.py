"""Best-fit packing loses nothing, cuts only what is longer than a row, and wastes next to nothing."""

import random
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import VerificationError
from tasks.tokenize import best_fit as packing_module
from tasks.tokenize.best_fit import BestFitPacker, best_fit
from tasks.tokenize.packing import PackedShard
from tasks.tokenizer.engine import Encoded

END = 99
DOCUMENTS = st.lists(st.lists(st.integers(0, 98), max_size=40), min_size=1, max_size=40)


@pytest.fixture(autouse=True, scope="module")
def small_windows() -> Iterator[None]:
    """Windows of a shard, however small."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing_module, "LEAST_WINDOW_TOKENS", 1)
        yield


def encoded(documents: list[list[int]]) -> Encoded:
    offsets = np.cumsum([0, *map(len, documents)], dtype=np.int64)
    return Encoded(ids=np.array([token for document in documents for token in document], dtype=np.uint32), offsets=offsets)


def pack(documents: list[list[int]], *, length: int, rows: int, batch: int) -> list[PackedShard]:
    packer = BestFitPacker(sequence_length=length, rows_per_shard=rows, vocab_size=100, end_of_text_id=END, boundaries=True)
    shards: list[PackedShard] = []
    for start in range(0, len(documents), batch):
        part = documents[start : start + batch]
        shards += packer.add(encoded(part), sizes=np.array([10 * len(document) + 1 for document in part], dtype=np.int64))
    return [*shards, *packer.finish()]


def pieces_of(shards: list[PackedShard]) -> list[list[list[int]]]:
    """Returns the pieces of each row, cut where the marks say that one starts."""
    rows = []
    for shard in shards:
        assert shard.lengths is not None
        assert shard.starts is not None
        marks = np.unpackbits(shard.starts, axis=1, count=shard.rows.shape[1], bitorder="little").astype(bool)
        for ids, tokens, starts in zip(shard.rows, shard.lengths, marks, strict=True):
            assert starts[0]
            assert not starts[tokens:].any()
            assert set(ids[tokens:].tolist()) <= {END}
            rows.append([piece.tolist() for piece in np.split(ids[:tokens], np.flatnonzero(starts)[1:])])
    return rows


@given(documents=DOCUMENTS, length=st.integers(2, 16), rows=st.integers(1, 5), batch=st.integers(1, 7))
def test_only_documents_longer_than_a_row_are_cut(documents: list[list[int]], length: int, rows: int, batch: int) -> None:
    whole = [[*document, END] for document in documents]
    expected = sorted(document[first : first + length] for document in whole for first in range(0, len(document), length))
    assert sorted(piece for row in pieces_of(pack(documents, length=length, rows=rows, batch=batch)) for piece in row) == expected


@given(documents=DOCUMENTS, length=st.integers(2, 16), rows=st.integers(1, 5))
def test_counts_are_those_of_the_rows(documents: list[list[int]], length: int, rows: int) -> None:
    shards = pack(documents, length=length, rows=rows, batch=5)
    assert all(shard.rows.shape == (rows, length) for shard in shards[:-1])
    assert 1 <= shards[-1].rows.shape[0] <= rows
    assert sum(shard.tokens for shard in shards) == sum(len(document) + 1 for document in documents)
    assert sum(shard.text_bytes for shard in shards) == sum(10 * len(document) + 1 for document in documents)
    for shard in shards:
        assert shard.lengths is not None
        assert (shard.tokens, shard.last_row_tokens) == (shard.lengths.sum(), shard.lengths[-1])


@given(documents=DOCUMENTS, length=st.integers(2, 16), rows=st.integers(1, 5))
def test_what_is_learned_stays_with_its_tokens(documents: list[list[int]], length: int, rows: int) -> None:
    """Even ids are learned."""
    packer = BestFitPacker(sequence_length=length, rows_per_shard=rows, vocab_size=100, end_of_text_id=END, loss_masks=True)
    whole = encoded(documents)
    whole = replace(whole, learned=whole.ids % 2 == 0)
    for shard in [*packer.add(whole, sizes=np.diff(whole.offsets)), *packer.finish()]:
        assert shard.learned is not None
        assert shard.lengths is not None
        marks = np.unpackbits(shard.learned, axis=1, count=length, bitorder="little").astype(bool)
        is_text = np.arange(length) < shard.lengths[:, None]
        is_id = is_text & (shard.rows != END)
        assert np.array_equal(marks[is_id], shard.rows[is_id] % 2 == 0)
        assert not marks[~is_text].any()


@given(documents=DOCUMENTS, batch=st.integers(1, 7))
def test_how_documents_are_batched_changes_nothing(documents: list[list[int]], batch: int) -> None:
    def essence(shards: list[PackedShard]) -> list[tuple[bytes, bytes, int]]:
        return [(shard.rows.tobytes(), shard.starts.tobytes() if shard.starts is not None else b"", shard.text_bytes) for shard in shards]

    assert essence(pack(documents, length=7, rows=3, batch=batch)) == essence(pack(documents, length=7, rows=3, batch=len(documents)))


@given(lengths=st.lists(st.integers(1, 12), max_size=60))
def test_the_placement_is_best_fit_decreasing(lengths: list[int]) -> None:
    """Against the textbook's way, which looks at every row."""
    rows: list[list[int]] = []
    for piece in sorted(range(len(lengths)), key=lambda piece: -lengths[piece]):
        left = [12 - sum(lengths[other] for other in row) for row in rows]
        fitting = [room for room in left if room >= lengths[piece]]
        if fitting:
            rows[left.index(min(fitting))].append(piece)
        else:
            rows.append([piece])
    found = best_fit(lengths, capacity=12)
    assert sorted(piece for row in found for piece in row) == list(range(len(lengths)))
    assert all(row == sorted(row) for row in found)
    assert [row[0] for row in found] == sorted(row[0] for row in found)

    def rooms(placed: list[list[int]]) -> list[int]:
        return sorted(sum(lengths[piece] for piece in row) for row in placed)

    assert rooms(found) == rooms(rows)


def test_rows_are_full_but_for_a_hundredth() -> None:
    draw = random.Random(7)
    documents = [[1] * min(3000, int(draw.lognormvariate(5, 1))) for _ in range(3000)]
    shards = pack(documents, length=512, rows=512, batch=100)
    places = sum(shard.rows.size for shard in shards)
    assert 1 - sum(shard.tokens for shard in shards) / places < 0.01


def test_a_shard_comes_out_as_soon_as_its_window_is_full() -> None:
    packer = BestFitPacker(sequence_length=4, rows_per_shard=2, vocab_size=100, end_of_text_id=END)
    assert packer.add(encoded([[1, 2, 3]]), sizes=np.array([3])) == []
    (shard,) = packer.add(encoded([[4, 5, 6]]), sizes=np.array([3]))
    assert shard.rows.tolist() == [[1, 2, 3, END], [4, 5, 6, END]]
    assert shard.starts is None
    assert packer.finish() == []


def test_an_id_outside_the_vocabulary_is_refused() -> None:
    packer = BestFitPacker(sequence_length=4, rows_per_shard=2, vocab_size=100, end_of_text_id=END)
    with pytest.raises(VerificationError, match="id 100 was encoded; the vocabulary has 100 ids"):
        packer.add(encoded([[1, 100]]), sizes=np.array([2]))
