"""Lines parsed together are lines parsed one by one, whatever is in them."""

import json
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.validate import json_lines
from tasks.validate.json_lines import json_batches, json_columns, json_record
from tasks.validate.lines import RefusedLine
from tasks.validate.problem import Problem, Reason
from tasks.validate.records import Columns
from tasks.validate.rules import json_of

DIGITS = str(json_lines._NUMBER).encode()
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.dictionaries(st.sampled_from(["text", "id", "b", "\n", '"']), VALUES, max_size=4)
LINES = st.one_of(
    *[st.builds(lambda fields, text: orjson.dumps(fields | {"text": text}), OBJECTS, st.text(max_size=20))] * 6,
    OBJECTS.map(lambda fields: json.dumps(fields, ensure_ascii=True).encode()),
    st.sampled_from(
        [b"", b" ", b"{}", b'{"text":"a"},{"text":"b"}', b'{"a":[{}', b"{}]}", b'{"a":{}', b'"b":{}}', b"1", b"[1,2]", b"null", b'{"text":"\xff"}']
    ),
    st.sampled_from([DIGITS, b"1," + DIGITS + b",2", b'{"text":"' + DIGITS + b'"}', b'{"text":"a","text":"b","id":1,"id":2}', b' {"text" : "a"}\r']),
    st.binary(max_size=12).map(lambda data: data.replace(b"\n", b"")),
)


def as_alone(line: bytes) -> tuple[Any, ...]:
    """(text, other columns) of a line by itself; why not, if so."""
    record = json_record(line, row=1)
    if record.fields is None:
        return ("refused", record.problem)
    text = record.fields.pop("text", None)
    return (text, json_of(record.fields) if record.fields else None)


def as_column(columns: Columns, index: int) -> tuple[Any, ...]:
    if index in columns.irregular:
        return as_alone(columns.record(index).raw or b"")
    assert columns.data[index] == columns.texts[index].as_py().encode()
    assert columns.chars[index] == len(columns.texts[index].as_py())
    extra = columns.extras[index].as_py()
    return (columns.texts[index].as_py(), None if extra is None else extra.encode())


@given(lines=st.lists(LINES, min_size=1, max_size=30), part=st.integers(1, 8), cached_bytes=st.sampled_from([0, 20, 100, 1 << 17]))
@settings(max_examples=150)
def test_lines_together_are_lines_one_by_one(lines: list[bytes], part: int, cached_bytes: int) -> None:
    run = b"\n".join(lines)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_lines, "_LINES_PER_PART", part)
        patch.setattr(json_lines, "_CACHED_BYTES", cached_bytes)
        row = 1
        for batch in json_batches(run, first_row=1, text_column="text"):
            for index in range(len(batch)):
                line = lines[row - 1]
                if isinstance(batch, Columns):
                    assert batch.first_row + index == row
                    assert batch.record(index) == json_record(line, row=row)
                    assert as_column(batch, index) == as_alone(line)
                else:
                    assert batch[index] == json_record(line, row=row)
                row += 1
        assert row == len(lines) + 1


@pytest.mark.parametrize(
    "lines",
    [
        [b'{"a":[{}', b"{}]}", b'{"x":1},{"y":2}'],  # one value over two lines, two values on one: as many values as lines
        [b'{"a":[{}', b"{}]}", b'{"x":1},{"y":2},{"z":3}'],  # as many elements as lines and numbers between them
        [b'{"a":[{}', b"{}]}", b'{"x":1},' + DIGITS + b',{"y":2}'],
        [b'{"a":1', b'"b":2}'],
        [b'{"text":"a"}', b"", b'{"text":"b"} {"text":"c"}'],
        [b'{"text":"a"}', b"7"],
        [b'{"text":"' + DIGITS + b'"}'],
    ],
)
def test_what_is_not_one_object_per_line_is_looked_at_line_by_line(lines: list[bytes]) -> None:
    assert json_columns(b"\n".join(lines), first_row=1, text_column="text") is None
    (batch,) = json_batches(b"\n".join(lines), first_row=1, text_column="text")
    assert batch == [json_record(line, row=row) for row, line in enumerate(lines, start=1)]


def test_a_line_with_a_fault_keeps_only_its_neighbours_from_being_taken_together() -> None:
    lines = [b'{"text":"%d"}' % number for number in range(1000)]
    lines[300] = b"broken"
    batches = list(json_batches(b"\n".join(lines), first_row=1, text_column="text"))
    assert [(len(batch), isinstance(batch, Columns)) for batch in batches] == [(256, True), (256, False), (256, True), (232, True)]


def test_a_line_that_was_refused_before_stays_refused() -> None:
    problem = Problem(Reason.LINE_TOO_LONG, "long")
    ((record,),) = json_batches(RefusedLine.of(b'{"text":"a"}', problem), first_row=5, text_column="text")  # type: ignore[misc]
    assert (record.row, record.fields, record.problem) == (5, None, problem)
