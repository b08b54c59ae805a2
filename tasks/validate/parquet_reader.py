"""Parquet files as records. A row group that cannot be decoded costs its own rows, each of which is quarantined, and no others."""

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import types

from tasks.validate.problem import Problem, Reason
from tasks.validate.readers import Record
from tasks.validate.streams import HashingFile

_BATCH_BYTES = 8 << 20
_MAX_BATCH_ROWS = 4096
_COLUMN_BUFFER_BYTES = 1 << 20
"""Read-ahead per column chunk; without it pyarrow holds a whole chunk."""
_MAX_LOST_ROWS = 1_000_000
"""A damaged footer may claim any number of rows; from here on one record stands for all lost ones."""
_DECODE_ERRORS = (pa.ArrowException, OSError, ValueError, OverflowError)


class _Unreadable:
    """A value that pyarrow cannot turn into a Python value."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem


def read_parquet(file: HashingFile, *, text_column: str) -> Iterator[Sequence[Record]]:
    """Yields the rows of a Parquet file, some at a time. Binary columns are left out, but for the text column, whose bytes are taken as UTF-8."""
    with file.reopened() as raw:
        try:
            parquet = pq.ParquetFile(raw, buffer_size=_COLUMN_BUFFER_BYTES, page_checksum_verification=True)
            columns = [field.name for field in parquet.schema_arrow if field.name == text_column or not _is_binary(field.type)]
        except _DECODE_ERRORS as error:
            yield (Record(1, None, Problem(Reason.DAMAGED_FILE, _one_line(error)), b""),)
            return
        first_row = 1
        for group in range(parquet.num_row_groups):
            metadata = parquet.metadata.row_group(group)
            rows_per_batch = max(1, min(_MAX_BATCH_ROWS, _BATCH_BYTES * metadata.num_rows // max(1, metadata.total_byte_size)))
            row = first_row
            try:
                for batch in parquet.iter_batches(batch_size=rows_per_batch, row_groups=[group], columns=columns):
                    yield _batch_records(batch, first_row=row, text_column=text_column)
                    row += batch.num_rows
            except _DECODE_ERRORS as error:
                yield from _lost_rows(row, first_row + metadata.num_rows, detail=_one_line(error))
            first_row += metadata.num_rows


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


def _lost_rows(start: int, stop: int, *, detail: str) -> Iterator[Sequence[Record]]:
    if stop - start > _MAX_LOST_ROWS:
        yield (Record(start, None, Problem(Reason.DAMAGED_FILE, f"rows {start} to {stop - 1}: {detail}"), b""),)
        return
    for row in range(start, stop):
        yield (Record(row, None, Problem(Reason.DAMAGED_FILE, detail), b""),)


def _text_values(column: pa.Array) -> list[Any]:
    """Returns the text column's values. Strings are decoded here, one by one, because pyarrow does not check them."""
    if types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if not (types.is_string(column.type) or types.is_large_string(column.type) or types.is_string_view(column.type) or _is_binary(column.type)):
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


def _is_binary(kind: pa.DataType) -> bool:
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind) or types.is_fixed_size_binary(kind))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
