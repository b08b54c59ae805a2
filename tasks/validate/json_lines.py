"""JSON Lines as records: many lines in one call of the parser, and what is not one object per line line by line.

Lines are joined to one JSON array with a number between them that occurs in none of them. If all of these numbers are elements of the array, with one
value between any two, then each line is exactly one JSON value: nothing can begin in one line and end in another.
"""

from collections.abc import Iterator, Sequence
from itertools import repeat

import numpy as np
import orjson
import pyarrow as pa

from tasks.validate.lines import RefusedLine
from tasks.validate.problem import Problem, Reason
from tasks.validate.records import Batch, Columns, Record, columns_of, json_column

_NUMBER = 918_273_645_546_372_819
"""Odd and above 2⁵³: no floating point number is equal to it."""
_DIGITS = b"%d" % _NUMBER
_JOINT = b",%s," % _DIGITS
_LINES_PER_PART = 256
"""Lines that are tried together once a run of lines turned out to be irregular."""
_CACHED_BYTES = 1 << 17
"""Lines that are parsed at once: their objects stay in the processor's cache until they are columns."""


def json_batches(run: bytes, *, first_row: int, text_column: str, as_fields: bool = False) -> Iterator[Batch]:
    """Yields the records of a run of lines (`lines.line_runs`). `as_fields`: whether columns are to have their fields, since rules ask for them."""
    if isinstance(run, RefusedLine):
        yield [json_record(run, row=first_row)]
    elif columns := json_columns(run, first_row=first_row, text_column=text_column, as_fields=as_fields):
        yield columns
    else:
        lines = run.split(b"\n")
        for start in range(0, len(lines), _LINES_PER_PART):
            part = lines[start : start + _LINES_PER_PART]
            joined, row = b"\n".join(part), first_row + start
            columns = json_columns(joined, first_row=row, text_column=text_column, as_fields=as_fields) if len(part) < len(lines) else None
            yield columns or [json_record(line, row=row) for row, line in enumerate(part, start=row)]


def json_columns(run: bytes, *, first_row: int, text_column: str, as_fields: bool = False) -> Columns | None:
    """Returns the records of a run of lines as columns; None unless every line is one JSON object that can be stored. Args: see `json_batches`."""
    data: list[bytes] = []
    irregular: list[int] = []
    extras: list[pa.StringArray] = []
    fields: list[dict[str, object]] = []
    for part in _parts_of(run):
        if (objects := _objects(part)) is None:
            return None
        try:
            texts = list(map(dict.pop, objects, repeat(text_column), repeat(None)))
        except TypeError:  # some JSON value that is no object
            return None
        try:
            encoded = list(map(str.encode, texts))  # type: ignore[arg-type]  # anything else raises
        except TypeError:
            irregular += [index for index, text in enumerate(texts, start=len(data)) if type(text) is not str]
            encoded = [text.encode() if type(text) is str else b"" for text in texts]
        if (extra := json_column(objects, were_json=True)) is None:
            return None
        data += encoded
        extras.append(extra)
        if as_fields:
            fields += objects
    column, chars = columns_of(data)

    def records(positions: Sequence[int]) -> list[Record]:
        feeds = np.flatnonzero(np.frombuffer(run, dtype=np.uint8) == ord("\n")) if positions else ()
        ends = np.concatenate(([-1], feeds, [len(run)]))
        return [json_record(run[ends[index] + 1 : ends[index + 1]], row=first_row + index) for index in positions]

    return Columns(
        first_row=first_row,
        data=data,
        texts=column,
        chars=chars,
        extras=pa.concat_arrays(extras),
        irregular=irregular,
        records=records,
        fields=fields if as_fields else None,
    )


def _parts_of(run: bytes) -> Iterator[bytes]:
    """Yields the lines of a run some at a time."""
    start = 0
    while (end := run.find(b"\n", start + _CACHED_BYTES)) >= 0:
        yield run[start:end]
        start = end + 1
    yield run[start:]


def _objects(run: bytes) -> list[dict[str, object]] | None:
    """Returns the JSON value of each line; None unless each of them is one."""
    if _DIGITS in run:
        return None
    joined = run.replace(b"\n", _JOINT)
    num_joints = (len(joined) - len(run)) // (len(_JOINT) - 1)
    try:
        values = orjson.loads(b"[" + joined + b"]")
    except orjson.JSONDecodeError:
        return None
    if len(values) != 2 * num_joints + 1 or values[1::2].count(_NUMBER) != num_joints:
        return None
    objects: list[dict[str, object]] = values[::2]
    return objects


def json_record(line: bytes, *, row: int) -> Record:
    """Returns the record of one line."""
    if isinstance(line, RefusedLine):
        return Record(row, None, line.problem, line)
    try:
        fields = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return Record(row, None, _json_problem(line, error), line)
    if type(fields) is dict:
        return Record(row, fields, None, line)
    return Record(row, None, Problem(Reason.NOT_AN_OBJECT, f"a JSON value of type {type(fields).__name__}"), line)


def _json_problem(line: bytes, error: orjson.JSONDecodeError) -> Problem:
    """Returns why a line is no JSON; the order of the tests is from the outside in."""
    if not line.strip():
        return Problem(Reason.BLANK_LINE)
    if problem := utf8_problem(line):
        return problem
    return Problem(Reason.INVALID_JSON, str(error))


def utf8_problem(data: bytes) -> Problem | None:
    """Returns where `data` stops being UTF-8, if it does."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return Problem(Reason.INVALID_UTF8, f"byte {error.start}: {error.reason}")
    return None
