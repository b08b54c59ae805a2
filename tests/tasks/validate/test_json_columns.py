"""Arrow columns written as JSON are what the rows are, written one by one."""

import datetime as dt
import decimal
from typing import Any

import orjson
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.validate.json_columns import json_of_columns
from tasks.validate.rules import json_of

COLUMNS = st.one_of(
    st.tuples(st.sampled_from([pa.int8(), pa.int64()]), st.just(st.none() | st.integers(-128, 127))),
    st.just((pa.uint64(), st.integers(0, 2**64 - 1))),
    st.just((pa.bool_(), st.none() | st.booleans())),
    st.just((pa.string(), st.none() | st.text(st.sampled_from('ab水"\\\n\x1f\x7f/'), max_size=5))),
    st.just((pa.string(), st.none() | st.sampled_from(["plain", "水轮"]))),
    st.just((pa.string(), st.none())),
    st.just((pa.float64(), st.none() | st.floats())),
    st.just((pa.list_(pa.int64()), st.none() | st.lists(st.integers(0, 3), max_size=2))),
    st.just((pa.date32(), st.dates())),
)


@given(kinds=st.lists(COLUMNS, max_size=4), count=st.integers(1, 6), data=st.data(), start=st.integers(0, 2))
@settings(max_examples=80)
def test_columns_are_written_as_rows_are(kinds: list[Any], count: int, data: Any, start: int) -> None:
    names = [f'c"{index}' for index in range(len(kinds))]
    values = [data.draw(st.lists(strategy, min_size=count + start, max_size=count + start)) for _, strategy in kinds]
    arrays = [pa.array(column, kind) for column, (kind, _) in zip(values, kinds, strict=True)]
    batch = pa.RecordBatch.from_arrays(arrays, names=names).slice(start) if kinds else pa.RecordBatch.from_struct_array(pa.array([{}] * count))
    written = json_of_columns(batch)
    assert written is not None
    expected = [json_of(row) if row else None for row in batch.to_pylist()]
    assert [None if value is None else value.encode() for value in written.to_pylist()] == expected


@pytest.mark.parametrize(
    "column", [pa.array([b"a", b"\xe9"]).view(pa.string()), pa.array([2**62], pa.timestamp("s")), pa.array([[b"\xff"]]).cast(pa.list_(pa.binary()))]
)
def test_what_has_no_form_is_left_to_rows(column: pa.Array) -> None:
    found = json_of_columns(pa.RecordBatch.from_arrays([column], names=["a"]))
    assert found is None or orjson.loads(found[0].as_py())


def test_other_types_are_written_as_rows_are() -> None:
    batch = pa.RecordBatch.from_pydict({"when": [dt.datetime(2026, 1, 2)], "price": [decimal.Decimal("1.50")]})
    assert json_of_columns(batch).to_pylist() == ['{"when":"2026-01-02T00:00:00","price":"1.50"}']
