"""JSON Lines as records: many lines in one call of the parser, and what is not one object per line line by line.

Lines are joined to one JSON array with a number between them that occurs in none of them. If all of these numbers are elements of the array, with one
value between any two, then each line is exactly one JSON value: nothing can begin in one line and end in another.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import orjson

from tasks.validate.lines import RefusedLine
from tasks.validate.problem import Problem, Reason
from tasks.validate.records import Batch, Columns, Record, columns_of, json_column

_NUMBER = 918_273_645_546_372_819
"""Odd and above 2⁵³: no floating point number is equal to it."""
_DIGITS = b"%d" % _NUMBER
_JOINT = b",%s," % _DIGITS
_LINES_PER_PART = 256
"""Lines that are tried together once a run of lines turned out to be irregular."""


def json_batches(run: bytes, *, first_row: int, text_column: str) -> Iterator[Batch]:
    """Yields the records of a run of lines (`lines.line_runs`)."""
    if isinstance(run, RefusedLine):
        yield [json_record(run, row=first_row)]
    elif columns := json_columns(run, first_row=first_row, text_column=text_column):
        yield columns
    else:
        lines = run.split(b"\n")
        for start in range(0, len(lines), _LINES_PER_PART):
            part = lines[start : start + _LINES_PER_PART]
            columns = json_columns(b"\n".join(part), first_row=first_row + start, text_column=text_column) if len(part) < len(lines) else None
            yield columns or [json_record(line, row=row) for row, line in enumerate(part, start=first_row + start)]


def json_columns(run: bytes, *, first_row: int, text_column: str) -> Columns | None:
    """Returns the records of a run of lines as columns; None unless every line is one JSON object that can be stored."""
    objects = _objects(run)
    if objects is None:
        return None
    try:
        texts = [each.pop(text_column, None) for each in objects]
    except (AttributeError, TypeError):  # some JSON value that is no object
        return None
    irregular: Sequence[int] = ()
    try:
        data = list(map(str.encode, texts))  # type: ignore[arg-type]  # anything else raises
    except TypeError:
        irregular = [index for index, text in enumerate(texts) if type(text) is not str]
        for index in irregular:
            texts[index] = ""
        data = list(map(str.encode, texts))  # type: ignore[arg-type]
    if (extras := json_column(objects, were_json=True)) is None:
        return None
    column, chars = columns_of(data)

    def records(positions: Sequence[int]) -> list[Record]:
        feeds = np.flatnonzero(np.frombuffer(run, dtype=np.uint8) == ord("\n")) if positions else ()
        ends = np.concatenate(([-1], feeds, [len(run)]))
        return [json_record(run[ends[index] + 1 : ends[index + 1]], row=first_row + index) for index in positions]

    return Columns(first_row=first_row, data=data, texts=column, chars=chars, extras=extras, irregular=irregular, records=records, fields=objects)


def _objects(run: bytes) -> list[dict[str, object]] | None:
    """Returns the JSON value of each line; None unless each of them is one."""
    if _DIGITS in run:
        return None
    try:
        values = orjson.loads(b"[" + run.replace(b"\n", _JOINT) + b"]")
    except orjson.JSONDecodeError:
        return None
    num_joints = run.count(b"\n")
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
