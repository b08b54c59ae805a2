"""Packing loses nothing, adds one end-of-text token per document, and pads only the last row."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import VerificationError
from tasks.tokenize.packing import PackedShard, Packer, id_dtype
from tasks.tokenizer.engine import Encoded

END = 99
DOCUMENTS = st.lists(st.lists(st.integers(0, 98), max_size=40), min_size=1, max_size=30)


def encoded(documents: list[list[int]]) -> Encoded:
    offsets = np.cumsum([0, *map(len, documents)], dtype=np.int64)
    return Encoded(ids=np.array([token for document in documents for token in document], dtype=np.uint32), offsets=offsets)


def pack(documents: list[list[int]], *, length: int, rows: int, batch: int, boundaries: bool = False) -> list[PackedShard]:
    packer = Packer(sequence_length=length, rows_per_shard=rows, vocab_size=100, end_of_text_id=END, boundaries=boundaries)
    shards: list[PackedShard] = []
    for start in range(0, len(documents), batch):
        part = documents[start : start + batch]
        shards += packer.add(encoded(part), sizes=np.array([10 * len(document) + 1 for document in part], dtype=np.int64))
    return [*shards, *packer.finish()]


@given(documents=DOCUMENTS, length=st.integers(1, 16), rows=st.integers(1, 5), batch=st.integers(1, 7))
def test_the_rows_without_padding_are_the_documents(documents: list[list[int]], length: int, rows: int, batch: int) -> None:
    shards = pack(documents, length=length, rows=rows, batch=batch)
    stream = [token for document in documents for token in (*document, END)]
    assert [token for shard in shards for token in shard.rows.reshape(-1)[: shard.tokens].tolist()] == stream
    assert all(shard.rows.shape == (rows, length) and shard.tokens == rows * length for shard in shards[:-1])
    last = shards[-1]
    assert last.rows.shape[0] <= rows
    assert last.tokens == (last.rows.shape[0] - 1) * length + last.last_row_tokens
    assert 1 <= last.last_row_tokens <= length
    assert set(last.rows.reshape(-1)[last.tokens :].tolist()) <= {END}


@given(documents=DOCUMENTS, length=st.integers(1, 16), rows=st.integers(1, 5), batch=st.integers(1, 7))
def test_a_documents_bytes_are_counted_where_it_begins(documents: list[list[int]], length: int, rows: int, batch: int) -> None:
    shards = pack(documents, length=length, rows=rows, batch=batch)
    expected, position = [0] * len(shards), 0
    for document in documents:
        expected[position // (length * rows)] += 10 * len(document) + 1
        position += len(document) + 1
    assert [shard.text_bytes for shard in shards] == expected


@given(documents=DOCUMENTS, batch=st.integers(1, 7))
def test_how_documents_are_batched_changes_nothing(documents: list[list[int]], batch: int) -> None:
    one, many = pack(documents, length=7, rows=3, batch=len(documents)), pack(documents, length=7, rows=3, batch=batch)
    assert [(shard.rows.tobytes(), shard.tokens, shard.text_bytes) for shard in one] == [
        (shard.rows.tobytes(), shard.tokens, shard.text_bytes) for shard in many
    ]


@given(documents=DOCUMENTS, length=st.integers(1, 16), rows=st.integers(1, 5), batch=st.integers(1, 7))
def test_the_marks_say_where_documents_start(documents: list[list[int]], length: int, rows: int, batch: int) -> None:
    shards = pack(documents, length=length, rows=rows, batch=batch, boundaries=True)
    marked: list[bool] = []
    for shard in shards:
        assert shard.starts is not None
        assert shard.starts.shape == (shard.rows.shape[0], -(-length // 8))
        marks = np.unpackbits(shard.starts, axis=1, count=length, bitorder="little").reshape(-1)
        assert not marks[shard.tokens :].any()
        marked += marks[: shard.tokens].astype(bool).tolist()
    assert marked == [position == 0 for document in documents for position in range(len(document) + 1)]
    plain = pack(documents, length=length, rows=rows, batch=batch)
    assert [shard.rows.tobytes() for shard in shards] == [shard.rows.tobytes() for shard in plain]
    assert all(shard.starts is None for shard in plain)


@given(documents=DOCUMENTS, length=st.integers(1, 16), rows=st.integers(1, 5), batch=st.integers(1, 7))
def test_what_is_learned_stays_with_its_tokens(documents: list[list[int]], length: int, rows: int, batch: int) -> None:
    """Even ids are learned; an end-of-text token where the id before it is, or there is none."""
    packer = Packer(sequence_length=length, rows_per_shard=rows, vocab_size=100, end_of_text_id=END, loss_masks=True)
    shards: list[PackedShard] = []
    for start in range(0, len(documents), batch):
        part = encoded(documents[start : start + batch])
        part = replace(part, learned=part.ids % 2 == 0)
        shards += packer.add(part, sizes=np.diff(part.offsets))
    shards += packer.finish()
    expected = [even for document in documents for even in (*(id_ % 2 == 0 for id_ in document), not document or document[-1] % 2 == 0)]
    found: list[bool] = []
    for shard in shards:
        assert shard.learned is not None
        marks = np.unpackbits(shard.learned, axis=1, count=length, bitorder="little").reshape(-1)
        assert not marks[shard.tokens :].any()
        found += marks[: shard.tokens].astype(bool).tolist()
    assert found == expected


def test_a_packer_begins_anew_after_its_end() -> None:
    packer = Packer(sequence_length=4, rows_per_shard=2, vocab_size=100, end_of_text_id=END, boundaries=True)
    found = []
    for document in ([1, 2], [3, 4, 5, 6]):
        assert packer.add(encoded([document]), sizes=np.array([len(document)])) == []
        found += [(shard.rows.tolist(), shard.text_bytes, shard.starts) for shard in packer.finish()]
    assert [(rows, size) for rows, size, _ in found] == [([[1, 2, END, END]], 2), ([[3, 4, 5, 6], [END] * 4], 4)]
    assert [starts.tolist() for _, _, starts in found if starts is not None] == [[[1]], [[1], [0]]]


def test_no_documents_make_no_shard() -> None:
    assert Packer(sequence_length=4, rows_per_shard=2, vocab_size=100, end_of_text_id=END).finish() == []


def test_an_id_outside_the_vocabulary_is_refused() -> None:
    packer = Packer(sequence_length=4, rows_per_shard=2, vocab_size=100, end_of_text_id=END)
    with pytest.raises(VerificationError, match="id 100 was encoded; the vocabulary has 100 ids"):
        packer.add(encoded([[1, 100]]), sizes=np.array([2]))


@pytest.mark.parametrize(("vocab_size", "dtype"), [(257, "<u2"), (65_536, "<u2"), (65_537, "<u4"), (250_000, "<u4")])
def test_ids_take_two_bytes_up_to_65536_of_them(vocab_size: int, dtype: str) -> None:
    assert id_dtype(vocab_size) == np.dtype(dtype)
