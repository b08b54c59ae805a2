"""Columns as one JSON object per row, as `orjson` writes it. Columns of numbers and plain names are written without looking at rows."""

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

from tasks.validate.corpus_files import string_column
from tasks.validate.figures.arrow import bytes_of
from tasks.validate.records import json_column

_ESCAPED = ('"', "\\")
_LAST_CONTROL = 0x1F


def json_of_columns(columns: pa.RecordBatch) -> pa.StringArray | None:
    """Returns the JSON object of each row, null without columns; None when a value has no such form."""
    if not columns.num_columns:
        return pa.nulls(columns.num_rows, pa.string())
    values = [_json_values(column) for column in columns.columns]
    if any(value is None for value in values):
        return _row_by_row(columns)
    parts: list[pa.StringArray] = []
    for index, (name, value) in enumerate(zip(columns.schema.names, values, strict=True)):
        parts += [_always((b"," if index else b"{") + orjson.dumps(name) + b":", like=columns), value]
    return pc.binary_join_element_wise(*parts, _always(b"}", like=columns), _always(b"", like=columns))


def _always(text: bytes, *, like: pa.RecordBatch | pa.Array) -> pa.StringArray:
    """Returns a column of as many equal texts. A `pa.Scalar` would do, but making one imports pandas."""
    return string_column(text * len(like), sizes=np.full(len(like), len(text)))


def _json_values(column: pa.Array) -> pa.StringArray | None:
    """Returns the values of a column as JSON; None when it takes more than a look at the column."""
    if types.is_integer(column.type):
        written = column.cast(pa.string())
    elif types.is_boolean(column.type):
        written = pc.if_else(column, _always(b"true", like=column), _always(b"false", like=column))
    elif types.is_string(column.type):
        try:
            column.validate(full=True)
        except pa.ArrowInvalid:
            return None
        present = column.drop_null()
        if not len(present):
            return _always(b"null", like=column)
        if (bytes_of(present) <= _LAST_CONTROL).any() or any(pc.any(pc.match_substring(present, char)).as_py() for char in _ESCAPED):
            return None
        quote = _always(b'"', like=column)
        written = pc.binary_join_element_wise(quote, column, quote, _always(b"", like=column))
    else:
        return None
    return pc.coalesce(written, _always(b"null", like=column)) if written.null_count else written


def _row_by_row(columns: pa.RecordBatch) -> pa.StringArray | None:
    try:
        values = [column.to_pylist() for column in columns.columns]
    except (pa.ArrowException, ValueError, OverflowError):
        return None
    names = columns.schema.names
    return json_column([dict(zip(names, row, strict=True)) for row in zip(*values, strict=True)])
