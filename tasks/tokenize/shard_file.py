"""Writing one shard: plain Parquet that any reader opens, whose payload can also be mapped.

In the `fixed` layout a row is one non-null `FIXED_LEN_BYTE_ARRAY` of little-endian ids, PLAIN, uncompressed, in one row group and one page, so
that all rows lie in the file as one piece. That file is put together by `parquet_frame`, of the rows where they are. Equal rows and facts
give equal bytes, whoever writes them, and when. They are hashed in memory, so that what the disk did to them is found when they are read.

Where the recipe wants them, more columns follow the rows, as much of one piece as they are: `tokens`, a row's tokens before its padding (int32);
`starts`, a bit for each token of a row, the lowest first, set where a document starts (fixed-size binary); `learned`, the same, set where
training learns the token.

Decoding a shard of uint16 ids elsewhere (`<u4` for uint32; the facts are the JSON under the metadata key `headrace`):

    pandas    np.vstack([np.frombuffer(row, "<u2") for row in pd.read_parquet(path)["ids"]])
    polars    pl.read_parquet(path)["ids"].bin.reinterpret(dtype=pl.Array(pl.UInt16, sequence_length), endianness="little").to_numpy()
    DuckDB    np.vstack([np.frombuffer(row, "<u2") for (row,) in duckdb.sql(f"select ids from '{path}'").fetchall()])
    datasets  np.vstack([np.frombuffer(row["ids"], "<u2") for row in load_dataset("parquet", data_files=path, split="train")])
    facts     json.loads(pq.read_metadata(path).metadata[b"headrace"])
    starts    np.flatnonzero(np.unpackbits(np.frombuffer(row, "u1"), bitorder="little"))  # of one row of the column
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import xxhash

from cluster.durable import write_durably
from schemas.canonical import canonical_json
from tasks.tokenize.parquet_frame import Framed, framed

COLUMN = "ids"
LENGTHS_COLUMN = "tokens"
STARTS_COLUMN = "starts"
LEARNED_COLUMN = "learned"
MAX_PAYLOAD_BYTES = (1 << 31) - (1 << 20)
"""A page states its size as a signed 32-bit number; a mebibyte is left for its header."""
METADATA_KEY = "headrace"
"""One key whose value is canonical JSON: pyarrow promises no order among several, and equal rows must give equal bytes."""


@dataclass(frozen=True)
class WrittenShard:
    """A shard's file, and where its values lie in it."""

    xxh3: str
    """xxh3-128 of the file, hex, of its bytes in memory."""
    payload_offset: int
    """First byte of the rows; 0 in the `list` layout."""
    lengths_offset: int = 0
    """First byte of the rows' lengths; 0 in the `list` layout, or without them."""
    starts_offset: int = 0
    """First byte of the marks of document starts; 0 in the `list` layout, or without them."""
    learned_offset: int = 0
    """First byte of the marks of tokens that are learned; 0 in the `list` layout, or without them."""


def write_shard(
    path: Path,
    rows: npt.NDArray[Any],
    *,
    layout: Literal["fixed", "list"],
    facts: Mapping[str, Any],
    lengths: npt.NDArray[np.int32] | None = None,
    starts: npt.NDArray[np.uint8] | None = None,
    learned: npt.NDArray[np.uint8] | None = None,
) -> WrittenShard:
    """Writes a shard to the new file `path`, durably.

    Args:
        path: the file.
        rows: little-endian ids [R, L].
        layout: how the rows are stored.
        facts: what the key-value metadata says.
        lengths: tokens of each row before its padding [R], where they are to be stored.
        starts: marks of document starts, a bit for each token [R, ceil(L / 8)], where they are to be stored.
        learned: marks of tokens that training learns, likewise.

    Raises:
        OSError: it cannot be written. What there is of the file then is worth nothing.
    """
    columns: dict[str, npt.NDArray[Any]] = {COLUMN: np.ascontiguousarray(rows)}
    if lengths is not None:
        columns[LENGTHS_COLUMN] = np.ascontiguousarray(lengths, dtype="<i4")
    for name, marks in ((STARTS_COLUMN, starts), (LEARNED_COLUMN, learned)):
        if marks is not None:
            columns[name] = np.ascontiguousarray(marks)
    metadata = {METADATA_KEY: canonical_json(facts).decode()}
    file = framed(columns, metadata=metadata) if layout == "fixed" else Framed((_lists_file(columns, metadata=metadata),), {})
    write_durably(path, *file.pieces)
    state = xxhash.xxh3_128()
    for piece in file.pieces:
        state.update(piece)
    return WrittenShard(state.hexdigest(), *(file.offsets.get(name, 0) for name in (COLUMN, LENGTHS_COLUMN, STARTS_COLUMN, LEARNED_COLUMN)))


def _lists_file(columns: Mapping[str, npt.NDArray[Any]], *, metadata: Mapping[str, str]) -> memoryview:
    """Returns a Parquet file whose ids are lists of numbers, compressed."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays = {name: _lists(values) if name == COLUMN else _plain(values) for name, values in columns.items()}
    fields = [pa.field(name, array.type, nullable=False) for name, array in arrays.items()]
    table = pa.Table.from_arrays(list(arrays.values()), schema=pa.schema(fields))
    sink = pa.BufferOutputStream()
    options: dict[str, Any] = {"use_dictionary": False, "write_statistics": False, "write_page_checksum": True, "store_schema": False}
    with pq.ParquetWriter(sink, table.schema, compression="zstd", compression_level=1, **options) as writer:
        writer.write_table(table, row_group_size=table.num_rows)
        writer.add_key_value_metadata(metadata)
    return memoryview(sink.getvalue())


def _plain(values: npt.NDArray[Any]) -> Any:
    """Returns an Arrow column of numbers [R], or of fixed-size binary values, one for each row of `values` [R, …]."""
    import pyarrow as pa

    if values.ndim == 1:
        return pa.array(values)
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(values[0].nbytes), len(values), [None, pa.py_buffer(values)])


def _lists(rows: npt.NDArray[Any]) -> Any:
    """Returns an Arrow column of lists of ids."""
    import pyarrow as pa

    count, length = rows.shape
    kind = pa.list_(pa.field("element", pa.from_numpy_dtype(rows.dtype), nullable=False))
    offsets = pa.array(np.arange(count + 1, dtype=np.int32) * length)
    return pa.ListArray.from_arrays(offsets, pa.array(rows.reshape(-1)), type=kind)
