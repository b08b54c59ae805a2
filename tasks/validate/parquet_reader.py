"""Parquet files as records. A row group that cannot be decoded costs its own rows, each of which is quarantined, and no others.

Rows stay the Arrow columns that they were read as, where their texts are valid and their other columns can be written as JSON.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import types

from tasks.validate.corpus_files import string_column
from tasks.validate.figures.arrow import integers_of, offsets_of, rows_of
from tasks.validate.json_columns import json_of_columns
from tasks.validate.problem import Problem, Reason
from tasks.validate.records import Batch, Columns, Record, chars_of
from tasks.validate.streams import HashingFile

_BATCH_BYTES = 8 << 20
_MAX_BATCH_ROWS = 16_384
_FEW_ROWS = 4096
"""Rows that are decoded together in a damaged row group: those before the damage are read."""
_COLUMN_BUFFER_BYTES = 1 << 20
"""Read-ahead per column chunk; without it pyarrow holds a whole chunk."""
_MAX_LOST_ROWS = 1_000_000
"""A damaged footer may claim any number of rows; from here on one record stands for all lost ones."""
_DECODE_ERRORS = (pa.ArrowException, OSError, ValueError, OverflowError)


class _Unreadable:
    """A value that pyarrow cannot turn into a Python value."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem


def read_parquet(file: HashingFile, *, text_column: str, as_fields: bool = False) -> Iterator[Batch]:
    """Yields the rows of a Parquet file, some at a time. Binary columns are left out, but for the text column, whose bytes are taken as UTF-8.

    Args:
        file: open; it is read once more, in any order.
        text_column: holds the text.
        as_fields: whether every record is to have its fields, since rules ask for other columns.
    """
    with file.reopened() as raw:
        try:
            parquet = pq.ParquetFile(raw, buffer_size=_COLUMN_BUFFER_BYTES, page_checksum_verification=True)
            columns = [field.name for field in parquet.schema_arrow if field.name == text_column or not _is_binary(field.type)]
        except _DECODE_ERRORS as error:
            yield (Record(1, None, Problem(Reason.DAMAGED_FILE, _one_line(error)), b""),)
            return
        first_row = 1
        for group in range(parquet.num_row_groups):
            row = first_row
            try:
                for batch in _batches(parquet, group, columns=columns):
                    together = None if as_fields or not batch.num_rows else _columns(batch, first_row=row, text_column=text_column)
                    yield together or _batch_records(batch, first_row=row, text_column=text_column)
                    row += batch.num_rows
            except _DECODE_ERRORS as error:
                yield from _lost_rows(row, first_row + parquet.metadata.row_group(group).num_rows, detail=_one_line(error))
            first_row += parquet.metadata.row_group(group).num_rows


def _batches(parquet: pq.ParquetFile, group: int, *, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Yields the rows of a row group up to what cannot be decoded, and raises one of `_DECODE_ERRORS` there."""
    metadata = parquet.metadata.row_group(group)
    fitting = max(1, _BATCH_BYTES * metadata.num_rows // max(1, metadata.total_byte_size))
    few = min(_FEW_ROWS, fitting)
    many = min(_MAX_BATCH_ROWS, fitting) // few * few
    done = 0
    try:
        for batch in parquet.iter_batches(batch_size=many, row_groups=[group], columns=columns):
            done += batch.num_rows
            yield batch
        return
    except _DECODE_ERRORS:
        if many == few:
            raise
    for batch in parquet.iter_batches(batch_size=few, row_groups=[group], columns=columns):
        if not done:
            yield batch
        else:
            done -= batch.num_rows


def _columns(batch: pa.RecordBatch, *, first_row: int, text_column: str) -> Columns | None:
    """Returns rows as columns; None when they have to be looked at one by one."""
    names = batch.schema.names
    if names.count(text_column) != 1 or len(set(names)) < len(names):
        return None
    column = batch.column(text_column)
    if types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if not (_is_text(column.type) or _is_binary(column.type)):
        return None
    try:
        texts = column if types.is_string(column.type) else column.cast(pa.large_binary()).cast(pa.binary()).cast(pa.string())
        texts.validate(full=True)  # reading does not check that it is UTF-8
        irregular = pc.indices_nonzero(texts.is_null()).to_pylist() if texts.null_count else []
        texts = _without_nulls(texts) if irregular else texts
    except pa.ArrowException:
        return None
    extras = json_of_columns(batch.drop_columns([text_column]))
    if extras is None:
        return None

    def records(positions: Sequence[int]) -> list[Record]:
        if not positions:
            return []
        try:
            some = [batch.take(rows_of(np.array(positions, dtype=np.int64)))]
        except pa.ArrowNotImplementedError:  # string views, for one
            some = [batch.slice(index, 1) for index in positions]
        found = [record for part in some for record in _batch_records(part, first_row=0, text_column=text_column)]
        return [record._replace(row=first_row + index) for index, record in zip(positions, found, strict=True)]

    data = texts.cast(pa.binary()).to_pylist()
    chars = chars_of(texts)
    return Columns(first_row=first_row, data=data, texts=texts, chars=chars, extras=extras, irregular=irregular, records=records, fields=None)


def _without_nulls(texts: pa.StringArray) -> pa.StringArray:
    """Returns texts with empty ones in place of nulls, not copied where nulls hold no bytes. `fill_null` would import pandas."""
    if not np.diff(offsets_of(texts))[integers_of(pc.indices_nonzero(texts.is_null()))].any():
        _, offsets, content = texts.buffers()
        return pa.Array.from_buffers(pa.string(), len(texts), [None, offsets, content], offset=texts.offset)
    return pc.coalesce(texts, string_column(b"", sizes=np.zeros(len(texts), dtype=np.int64)))


def _batch_records(batch: pa.RecordBatch, *, first_row: int, text_column: str) -> list[Record]:
    names = batch.schema.names
    columns = [_text_values(column) if name == text_column else _values(column) for name, column in zip(names, batch.columns, strict=True)]
    records = [
        Record(row, dict(zip(names, values, strict=True)), None, None) for row, values in enumerate(zip(*columns, strict=True), start=first_row)
    ]
    for position in sorted({position for column in columns for position, value in enumerate(column) if type(value) is _Unreadable}):
        problem = next(column[position].problem for column in columns if type(column[position]) is _Unreadable)
        records[position] = Record(first_row + position, None, problem, None)
    return records


def _lost_rows(start: int, stop: int, *, detail: str) -> Iterator[Batch]:
    if stop - start > _MAX_LOST_ROWS:
        yield (Record(start, None, Problem(Reason.DAMAGED_FILE, f"rows {start} to {stop - 1}: {detail}"), b""),)
        return
    for row in range(start, stop):
        yield (Record(row, None, Problem(Reason.DAMAGED_FILE, detail), b""),)


def _text_values(column: pa.Array) -> list[Any]:
    """Returns the text column's values. Strings are decoded here, one by one, because pyarrow does not check them."""
    if types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if not (_is_text(column.type) or _is_binary(column.type)):
        return _values(column)
    return [None if data is None else _decoded(data) for data in column.cast(pa.large_binary()).to_pylist()]


def _decoded(data: bytes) -> str | _Unreadable:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        return _Unreadable(Problem(Reason.INVALID_UTF8, f"byte {error.start}: {error.reason}"))


def _values(column: pa.Array) -> list[Any]:
    """Returns a column's values; those that have no Python form become `_Unreadable`."""
    try:
        values: list[Any] = column.to_pylist()
    except _DECODE_ERRORS:
        return [_value(scalar) for scalar in column]
    return values


def _value(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError as error:
        return _Unreadable(Problem(Reason.INVALID_UTF8, error.reason))
    except _DECODE_ERRORS as error:
        return _Unreadable(Problem(Reason.WRONG_TYPE, _one_line(error)))


def _is_text(kind: pa.DataType) -> bool:
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _is_binary(kind: pa.DataType) -> bool:
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind) or types.is_fixed_size_binary(kind))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
