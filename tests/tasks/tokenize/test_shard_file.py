"""A shard is plain Parquet with one contiguous payload, which every common reader decodes in one line."""

import json
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest

from cluster.storage import hash_file
from tasks.tokenize.shard_file import write_shard

FACTS = {"dtype": "uint16", "sequence_length": 24, "note": "水"}


def rows_of(count: int, length: int = 24, dtype: str = "<u2") -> npt.NDArray[Any]:
    return np.random.default_rng(count).integers(0, np.iinfo(dtype).max, size=(count, length), endpoint=True).astype(dtype)


@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
@pytest.mark.parametrize("count", [1, 7, 50_000])
def test_the_payload_is_one_piece_in_one_page(tmp_path: Path, count: int, dtype: str) -> None:
    rows, path = rows_of(count, dtype=dtype), tmp_path / "shard.parquet"
    offset = write_shard(path, rows, layout="fixed", facts=FACTS).payload_offset
    assert path.read_bytes()[offset : offset + rows.nbytes] == rows.tobytes()
    metadata = pq.read_metadata(path)
    column = metadata.row_group(0).column(0)
    assert (metadata.num_row_groups, metadata.num_rows, column.compression) == (1, count, "UNCOMPRESSED")
    assert not column.has_dictionary_page
    field = pq.read_schema(path).field("ids")
    assert (str(field.type), field.nullable) == (f"fixed_size_binary[{24 * rows.itemsize}]", False)
    assert path.stat().st_size - rows.nbytes < 400


@pytest.mark.parametrize("count", [1, 7, 50_000])
def test_lengths_and_marks_are_pieces_of_their_own(tmp_path: Path, count: int) -> None:
    rows, path = rows_of(count), tmp_path / "shard.parquet"
    lengths = np.random.default_rng(1).integers(1, 24, size=count, dtype=np.int32)
    starts = np.random.default_rng(2).integers(0, 255, size=(count, 3)).astype(np.uint8)
    written = write_shard(path, rows, layout="fixed", facts=FACTS, lengths=lengths, starts=starts)
    data = path.read_bytes()
    for offset, values in ((written.payload_offset, rows), (written.lengths_offset, lengths), (written.starts_offset, starts)):
        assert data[offset : offset + values.nbytes] == values.tobytes()
    write_shard(tmp_path / "plain.parquet", rows, layout="fixed", facts=FACTS)
    plain = (tmp_path / "plain.parquet").read_bytes()
    end = written.payload_offset + rows.nbytes
    assert data[:end] == plain[:end]


@pytest.mark.parametrize("layout", ["fixed", "list"])
def test_other_readers_take_lengths_and_marks(tmp_path: Path, layout: Any) -> None:
    rows, path = rows_of(5), tmp_path / "shard.parquet"
    lengths = np.array([24, 3, 24, 1, 9], dtype=np.int32)
    marks = np.zeros((5, 24), dtype=bool)
    marks[1, [0, 2, 17]] = True
    starts = np.packbits(marks, axis=1, bitorder="little")
    write_shard(path, rows, layout=layout, facts=FACTS, lengths=lengths, starts=starts)
    table = pq.read_table(path)
    assert table["tokens"].to_pylist() == lengths.tolist()
    row = pd.read_parquet(path)["starts"][1]
    assert np.flatnonzero(np.unpackbits(np.frombuffer(row, "u1"), bitorder="little")).tolist() == [0, 2, 17]
    assert pl.read_parquet(path)["tokens"].to_list() == duckdb.sql(f"select list(tokens) from '{path}'").fetchall()[0][0] == lengths.tolist()


def test_the_facts_stand_in_the_key_value_metadata(tmp_path: Path) -> None:
    write_shard(tmp_path / "shard.parquet", rows_of(3), layout="fixed", facts=FACTS)
    assert json.loads(pq.read_metadata(tmp_path / "shard.parquet").metadata[b"headrace"]) == FACTS


@pytest.mark.parametrize("layout", ["fixed", "list"])
def test_equal_rows_and_facts_give_equal_bytes(tmp_path: Path, layout: Any) -> None:
    for name in ("a", "b"):
        write_shard(tmp_path / name, rows_of(500), layout=layout, facts=FACTS)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("layout", ["fixed", "list"])
@pytest.mark.parametrize("count", [1, 40, 9000])
def test_the_hash_is_that_of_the_file(tmp_path: Path, layout: Any, count: int) -> None:
    marks = np.full((count, 3), 7, dtype=np.uint8)
    written = write_shard(tmp_path / "shard.parquet", rows_of(count), layout=layout, facts=FACTS, starts=marks)
    assert written.xxh3 == hash_file(tmp_path / "shard.parquet")


def test_page_checksums_let_other_readers_find_a_flipped_byte(tmp_path: Path) -> None:
    path, rows = tmp_path / "shard.parquet", rows_of(100)
    offset = write_shard(path, rows, layout="fixed", facts=FACTS).payload_offset
    data = bytearray(path.read_bytes())
    data[offset + 1000] ^= 1
    path.write_bytes(data)
    with pytest.raises(OSError, match="CRC"):
        pq.read_table(path, page_checksum_verification=True)


@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
def test_the_list_layout_is_read_without_decoding(tmp_path: Path, dtype: str) -> None:
    rows, path = rows_of(300, dtype=dtype), tmp_path / "shard.parquet"
    assert write_shard(path, rows, layout="list", facts=FACTS).payload_offset == 0
    table = pq.read_table(path)
    assert str(table.schema.field("ids").type) == f"list<element: {rows.dtype.name} not null>"
    assert table["ids"].to_pylist() == rows.tolist()


def test_pandas_decodes_a_shard_in_one_line(tmp_path: Path) -> None:
    path, rows = tmp_path / "shard.parquet", rows_of(40)
    write_shard(path, rows, layout="fixed", facts=FACTS)
    ids = np.vstack([np.frombuffer(row, "<u2") for row in pd.read_parquet(path)["ids"]])
    assert np.array_equal(ids, rows)


def test_polars_decodes_a_shard_in_one_line(tmp_path: Path) -> None:
    path, rows = tmp_path / "shard.parquet", rows_of(40)
    write_shard(path, rows, layout="fixed", facts=FACTS)
    ids = pl.read_parquet(path)["ids"].bin.reinterpret(dtype=pl.Array(pl.UInt16, 24), endianness="little").to_numpy()
    assert np.array_equal(ids, rows)


def test_duckdb_decodes_a_shard_in_one_line(tmp_path: Path) -> None:
    path, rows = tmp_path / "shard.parquet", rows_of(40)
    write_shard(path, rows, layout="fixed", facts=FACTS)
    ids = np.vstack([np.frombuffer(row, "<u2") for (row,) in duckdb.sql(f"select ids from '{path}'").fetchall()])
    assert np.array_equal(ids, rows)


@pytest.mark.slow
def test_datasets_decodes_a_shard_in_one_line(tmp_path: Path) -> None:
    import datasets

    path, rows = tmp_path / "shard.parquet", rows_of(40)
    write_shard(path, rows, layout="fixed", facts=FACTS)
    shard = datasets.load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    ids = np.vstack([np.frombuffer(row["ids"], "<u2") for row in shard])
    assert np.array_equal(ids, rows)
