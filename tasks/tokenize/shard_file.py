"""Writing one shard: plain Parquet that any reader opens, whose payload can also be mapped.

In the `fixed` layout a row is one non-null `FIXED_LEN_BYTE_ARRAY` of little-endian ids, PLAIN, uncompressed, in one row group and one page, so
that all rows lie in the file as one piece. Where it starts is found by reading back, and asserted. Bytes are those that pyarrow makes of equal
rows and facts: they do not depend on who writes them, or when.

Decoding a shard of uint16 ids elsewhere (`<u4` for uint32; the facts are the JSON under the metadata key `headrace`):

    pandas    np.vstack([np.frombuffer(row, "<u2") for row in pd.read_parquet(path)["ids"]])
    polars    pl.read_parquet(path)["ids"].bin.reinterpret(dtype=pl.Array(pl.UInt16, sequence_length), endianness="little").to_numpy()
    DuckDB    np.vstack([np.frombuffer(row, "<u2") for (row,) in duckdb.sql(f"select ids from '{path}'").fetchall()])
    datasets  np.vstack([np.frombuffer(row["ids"], "<u2") for row in load_dataset("parquet", data_files=path, split="train")])
    facts     json.loads(pq.read_metadata(path).metadata[b"headrace"])
"""

import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import xxhash

from schemas.canonical import canonical_json
from schemas.errors import VerificationError

COLUMN = "ids"
MAX_PAYLOAD_BYTES = (1 << 31) - (1 << 20)
"""A page states its size as a signed 32-bit number; a mebibyte is left for its header."""
METADATA_KEY = "headrace"
"""One key whose value is canonical JSON: pyarrow promises no order among several, and equal rows must give equal bytes."""


@dataclass(frozen=True)
class WrittenShard:
    """Where a shard's payload lies."""

    payload_offset: int
    """First byte of the rows; 0 in the `list` layout."""


def write_shard(path: Path, rows: npt.NDArray[Any], *, layout: Literal["fixed", "list"], facts: Mapping[str, Any]) -> WrittenShard:
    """Writes `rows` [R, L] of little-endian ids, with `facts` in the key-value metadata, to the new file `path`. Not yet durable.

    Raises:
        VerificationError: the file does not hold the rows as one piece; this version of pyarrow lays pages out differently.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = np.ascontiguousarray(rows)
    count, length = rows.shape
    if layout == "fixed":
        width = length * rows.itemsize
        column = pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), count, [None, pa.py_buffer(rows)])
        options: dict[str, Any] = {"compression": "none", "data_page_size": MAX_PAYLOAD_BYTES + 1, "max_rows_per_page": count}
        kind = pa.binary(width)
    else:
        value = pa.field("element", pa.from_numpy_dtype(rows.dtype), nullable=False)
        offsets = pa.array(np.arange(count + 1, dtype=np.int32) * length)
        kind = pa.list_(value)
        column = pa.ListArray.from_arrays(offsets, pa.array(rows.reshape(-1)), type=kind)
        options = {"compression": "zstd", "compression_level": 1}
    table = pa.Table.from_arrays([column], schema=pa.schema([pa.field(COLUMN, kind, nullable=False)]))
    with pq.ParquetWriter(
        path, table.schema, use_dictionary=False, write_statistics=False, write_page_checksum=True, store_schema=False, **options
    ) as writer:
        writer.write_table(table, row_group_size=count)
        writer.add_key_value_metadata({METADATA_KEY: canonical_json(facts).decode()})
    return WrittenShard(payload_offset=_find_payload(path, rows) if layout == "fixed" else 0)


def _find_payload(path: Path, rows: npt.NDArray[Any]) -> int:
    """Returns where the rows start, after comparing them with what the file holds: by hash, which is ten times as fast as byte by byte."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as parquet:
        groups, chunk = parquet.metadata.num_row_groups, parquet.metadata.row_group(0).column(0)
    end = chunk.data_page_offset + chunk.total_compressed_size
    start = end - rows.nbytes
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as content, memoryview(content) as whole:
        with whole[max(0, start) : end] as found:
            same = xxhash.xxh3_128_digest(found) == xxhash.xxh3_128_digest(rows.data)
        one_piece = groups == 1 and start > chunk.data_page_offset and same
    if not one_piece:
        finding = f"{path}: {groups} row groups, pages from {chunk.data_page_offset} to {end}, and the rows are not one piece before byte {end}"
        raise VerificationError((finding,), subject="token shard", mend="use the pinned pyarrow, or tokenization.layout: list")
    return int(start)
