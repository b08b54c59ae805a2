"""The Parquet files that `validate` makes: accepted documents per (group, split), and quarantined records per group.

Equal rows give equal bytes: row groups end where the text reaches a fixed size, and nothing but the rows enters the file.
"""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cluster.storage import make_folder, publish_file
from schemas.artifact import FileEntry
from schemas.manifest import Split

ACCEPTED_SCHEMA = pa.schema(
    [
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("extra", pa.string(), nullable=True),
    ]
)
"""`doc_id`: xxh3-128 of the text, hex. `source`, `path`, `row`: where it came from. `extra`: the other columns as a JSON object."""

QUARANTINE_SCHEMA = pa.schema(
    [
        pa.field("source", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
        pa.field("excerpt", pa.string(), nullable=False),
    ]
)
"""`reason`: one of `Reason`. `detail`: what was found. `excerpt`: the record's beginning, escaped."""

ROW_OVERHEAD_BYTES = 200
"""About what a row holds in memory besides its text."""
_ROW_GROUP_BYTES = 8 << 20
_ROW_GROUP_ROWS = 65_536
_REPEATING = ["source", "path", "reason"]

Temporary = Callable[[str], Path]
"""Gives the path for unfinished data beside a final name (relative to the artifact's folder)."""

OnRows = Callable[[pa.Table], None]
"""Is shown rows of a file."""


def _ignore(_: pa.Table) -> None:
    pass


class AcceptedRow(NamedTuple):
    """One row of an accepted file. Texts as UTF-8, the form in which they are read, hashed and written."""

    doc_id: bytes
    source: bytes
    path: bytes
    row: int
    text: bytes
    extra: bytes | None


class QuarantineRow(NamedTuple):
    """One row of a quarantine file. Texts as UTF-8."""

    source: bytes
    path: bytes
    row: int
    reason: bytes
    detail: bytes
    excerpt: bytes


def accepted_name(group: int, split: Split) -> str:
    """Returns the name of a scan's accepted file, relative to the artifact's folder."""
    return f"accepted/g{group:04d}-{split}.parquet"


def deduplicated_name(group: int, split: Split) -> str:
    """Returns the name of the file that replaces an accepted one that held documents of earlier groups."""
    return f"accepted/g{group:04d}-{split}-unique.parquet"


def quarantine_name(group: int) -> str:
    """Returns the name of a scan's quarantine file."""
    return f"quarantine/g{group:04d}.parquet"


def duplicates_name(group: int) -> str:
    """Returns the name of the quarantine file for documents that earlier groups hold."""
    return f"quarantine/g{group:04d}-duplicates.parquet"


class TableFile:
    """A Parquet file in the making: rows are gathered into row groups; the file appears under its name only when it is complete."""

    def __init__(self, name: str, *, output_dir: Path, temporary: Temporary, schema: pa.Schema, on_rows: OnRows = _ignore) -> None:
        """Args:
        name: final name, relative to `output_dir`. The file is created with the first row group; without rows there is none.
        on_rows: is shown every row group as it is written.
        """
        self.name = name
        self._on_rows = on_rows
        self._final, self._temporary = output_dir / name, temporary(name)
        self._schema = schema
        self._rows: list[tuple[Any, ...]] = []
        self._batches: list[pa.RecordBatch] = []
        self._num_rows = self._bytes = 0
        self._writer: pq.ParquetWriter | None = None

    def add(self, row: tuple[Any, ...], *, size: int) -> None:
        """Adds one row; `size` is about how many bytes it holds."""
        self._rows.append(row)
        self._count(rows=1, filled=self._bytes + size)

    def add_all(self, rows: pa.RecordBatch, *, sizes: NDArray[np.int64]) -> None:
        """Adds rows; row groups end where they would end had they been added one by one. `sizes`: about the bytes of each, [rows]."""
        self._gather()
        first = 0
        while first < rows.num_rows:
            filled = self._bytes + np.cumsum(sizes[first:])
            count = min(int(np.searchsorted(filled, _ROW_GROUP_BYTES)) + 1, _ROW_GROUP_ROWS - self._num_rows, rows.num_rows - first)
            self._batches.append(rows.slice(first, count))
            self._count(rows=count, filled=int(filled[count - 1]))
            first += count

    def publish(self) -> FileEntry | None:
        """Completes the file durably under its name and returns its entry; None when it has no row."""
        if self._num_rows:
            self._flush()
        if self._writer is None:
            return None
        self._writer.close()
        return publish_file(self._temporary, self._final).model_copy(update={"path": self.name})

    def discard(self) -> None:
        """Removes what is unfinished; nothing is left to remove after `publish`."""
        if self._writer is not None and self._writer.is_open:
            with contextlib.suppress(OSError):  # a full disk: what failed first is on its way to the caller already
                self._writer.close()
        self._temporary.unlink(missing_ok=True)

    def _count(self, *, rows: int, filled: int) -> None:
        """Counts added rows, and writes a row group when it is full."""
        self._num_rows += rows
        self._bytes = filled
        if self._bytes >= _ROW_GROUP_BYTES or self._num_rows >= _ROW_GROUP_ROWS:
            self._flush()

    def _gather(self) -> None:
        """Makes a batch of the rows that came one by one."""
        if self._rows:
            arrays = [_array(column, field=field) for column, field in zip(zip(*self._rows, strict=True), self._schema, strict=True)]
            self._batches.append(pa.RecordBatch.from_arrays(arrays, schema=self._schema))
            self._rows = []

    def _flush(self) -> None:
        if self._writer is None:
            make_folder(self._temporary.parent)
            self._writer = open_writer(self._temporary, schema=self._schema)
        self._gather()
        rows = pa.Table.from_batches(self._batches, schema=self._schema).combine_chunks()  # pages would end where batches do
        self._writer.write_table(rows)
        self._on_rows(rows)
        self._batches, self._num_rows, self._bytes = [], 0, 0


def open_writer(path: Path, *, schema: pa.Schema) -> pq.ParquetWriter:
    """Returns a writer with this stage's settings: zstd, page checksums for other readers, dictionaries only where values repeat."""
    repeating = [name for name in _REPEATING if name in schema.names]
    return pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=repeating, write_statistics=["row"], write_page_checksum=True)


def _array(values: tuple[Any, ...], *, field: pa.Field) -> pa.Array:
    """Returns a column from integers or UTF-8 bytes. `pa.array` would import pandas on its first call, 0.4 s of a job of 1 s."""
    if pa.types.is_int64(field.type):
        return pa.Array.from_buffers(field.type, len(values), [None, pa.py_buffer(np.array(values, dtype=np.int64))])
    present = np.array([value is not None for value in values]) if field.nullable else None
    return string_array(tuple(value or b"" for value in values), present=present)


def string_array(values: Sequence[bytes], *, present: NDArray[np.bool_] | None = None) -> pa.StringArray:
    """Returns a column of texts from their UTF-8. `present`: which are not null; default: all."""
    sizes = np.fromiter(map(len, values), dtype=np.int64, count=len(values))
    return string_column(b"".join(values), sizes=sizes, present=present)


def string_column(content: bytes, *, sizes: NDArray[np.int64], present: NDArray[np.bool_] | None = None) -> pa.StringArray:
    """Returns a column of texts from their UTF-8, one after the other. `sizes`: bytes of each, [texts]. `present`: which are not null."""
    offsets = np.zeros(len(sizes) + 1, dtype=np.int32)
    np.cumsum(sizes, out=offsets[1:])
    validity = None if present is None or present.all() else bits_of(present)
    return pa.Array.from_buffers(pa.string(), len(sizes), [validity, pa.py_buffer(offsets), pa.py_buffer(content)])


def bits_of(values: NDArray[np.bool_]) -> pa.Buffer:
    """Returns truth values as Arrow keeps them."""
    return pa.py_buffer(np.packbits(values, bitorder="little"))
