"""Writing one shard: plain Parquet that any reader opens, whose payload can also be mapped.

In the `fixed` layout a row is one non-null `FIXED_LEN_BYTE_ARRAY` of little-endian ids, PLAIN, uncompressed, in one row group and one page, so
that all rows lie in the file as one piece. Where it starts is found by reading back, and asserted. Bytes are those that pyarrow makes of equal
rows and facts: they do not depend on who writes them, or when. A shard is put together in memory and hashed there.

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

import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import xxhash

from cluster.durable import stream_durably
from schemas.canonical import canonical_json
from schemas.errors import VerificationError

COLUMN = "ids"
LENGTHS_COLUMN = "tokens"
STARTS_COLUMN = "starts"
LEARNED_COLUMN = "learned"
MAX_PAYLOAD_BYTES = (1 << 31) - (1 << 20)
"""A page states its size as a signed 32-bit number; a mebibyte is left for its header."""
_MOST_GROWTH = 1.25
"""What levels and a compression that does not compress can make of values."""
_HEADERS_BYTES = 1 << 20
"""Of pages, and the footer without its key-value metadata."""
_PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
"""Of memory: shared memory, which is Python's default, comes in small pages only."""
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


class ShardMemory:
    """Page-aligned memory in which one shard after the other is put together: giving it back in between would cost as much as the copying."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, mmap.PAGESIZE, flags=_PRIVATE)

    def of_size(self, size: int) -> memoryview:
        """Returns at least `size` bytes, whole pages. What earlier calls returned must not be in use any more."""
        if size > len(self._memory):
            self._memory = mmap.mmap(-1, -(-size // mmap.PAGESIZE) * mmap.PAGESIZE, flags=_PRIVATE)
            self._memory.madvise(mmap.MADV_HUGEPAGE)
        return memoryview(self._memory)


def write_shard(
    path: Path,
    rows: npt.NDArray[Any],
    *,
    layout: Literal["fixed", "list"],
    facts: Mapping[str, Any],
    lengths: npt.NDArray[np.int32] | None = None,
    starts: npt.NDArray[np.uint8] | None = None,
    learned: npt.NDArray[np.uint8] | None = None,
    memory: ShardMemory | None = None,
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
        memory: where it is put together; default: memory of its own.

    Raises:
        VerificationError: the file does not hold the values as one piece; this version of pyarrow lays pages out differently.
        OSError: it cannot be written. What there is of the file then is worth nothing.
    """
    import pyarrow as pa

    rows = np.ascontiguousarray(rows)
    stored: dict[str, npt.NDArray[Any]] = {COLUMN: rows}
    columns = {COLUMN: _fixed(rows) if layout == "fixed" else _lists(rows)}
    if lengths is not None:
        stored[LENGTHS_COLUMN] = np.ascontiguousarray(lengths, dtype="<i4")
        columns[LENGTHS_COLUMN] = pa.array(stored[LENGTHS_COLUMN])
    for name, marks in ((STARTS_COLUMN, starts), (LEARNED_COLUMN, learned)):
        if marks is not None:
            stored[name] = np.ascontiguousarray(marks)
            columns[name] = _fixed(stored[name])
    fields = [pa.field(name, column.type, nullable=False) for name, column in columns.items()]
    table = pa.Table.from_arrays(list(columns.values()), schema=pa.schema(fields))
    metadata = canonical_json(facts).decode()
    room = sum(values.nbytes for values in stored.values()) * _MOST_GROWTH + len(metadata) + _HEADERS_BYTES
    content = (memory or ShardMemory()).of_size(int(room))
    size = _render(content, table, is_fixed=layout == "fixed", metadata=metadata)
    found = _find_payloads(content[:size], stored, path=path) if layout == "fixed" else {}
    xxh3 = stream_durably(path, content, size=size, is_read_soon=True)  # by training
    return WrittenShard(xxh3, *(found.get(name, 0) for name in (COLUMN, LENGTHS_COLUMN, STARTS_COLUMN, LEARNED_COLUMN)))


def _render(content: memoryview, table: Any, *, is_fixed: bool, metadata: str) -> int:
    """Lays an Arrow table out as a Parquet file at the beginning of `content`, and returns the file's size."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    options: dict[str, Any] = {"compression": "zstd", "compression_level": 1}
    if is_fixed:
        options = {"compression": "none", "data_page_size": MAX_PAYLOAD_BYTES + 1, "max_rows_per_page": table.num_rows}
    with pa.FixedSizeBufferWriter(pa.py_buffer(content)) as sink:
        with pq.ParquetWriter(
            sink, table.schema, use_dictionary=False, write_statistics=False, write_page_checksum=True, store_schema=False, **options
        ) as writer:
            writer.write_table(table, row_group_size=table.num_rows)
            writer.add_key_value_metadata({METADATA_KEY: metadata})
        return int(sink.tell())


def _fixed(values: npt.NDArray[Any]) -> Any:
    """Returns an Arrow column of fixed-size binary values, one for each row of `values` [R, …]."""
    import pyarrow as pa

    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(values[0].nbytes), len(values), [None, pa.py_buffer(values)])


def _lists(rows: npt.NDArray[Any]) -> Any:
    """Returns an Arrow column of lists of ids."""
    import pyarrow as pa

    count, length = rows.shape
    kind = pa.list_(pa.field("element", pa.from_numpy_dtype(rows.dtype), nullable=False))
    offsets = pa.array(np.arange(count + 1, dtype=np.int32) * length)
    return pa.ListArray.from_arrays(offsets, pa.array(rows.reshape(-1)), type=kind)


def _find_payloads(content: memoryview, stored: Mapping[str, npt.NDArray[Any]], *, path: Path) -> dict[str, int]:
    """Returns where in the file that is to become `path` the values of each column start.

    All are compared with what the file holds: by hash, which is ten times as fast as byte by byte.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(pa.BufferReader(content)) as parquet:
        groups, first = parquet.metadata.num_row_groups, parquet.metadata.row_group(0)
        chunks = {chunk.path_in_schema: chunk for chunk in map(first.column, range(first.num_columns))}
    found: dict[str, int] = {}
    for name, values in stored.items():
        begin = chunks[name].data_page_offset
        end = begin + chunks[name].total_compressed_size
        start = end - values.nbytes
        same = xxhash.xxh3_128_digest(content[max(0, start) : end]) == xxhash.xxh3_128_digest(values.data)
        if groups != 1 or start <= begin or not same:
            finding = f"{path}: {groups} row groups, pages of {name} from {begin} to {end}, and its values are not one piece before byte {end}"
            raise VerificationError((finding,), subject="token shard", mend="use the pinned pyarrow, or tokenization.layout: list")
        found[name] = int(start)
    return found
