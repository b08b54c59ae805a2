"""Raw files as records, one at a time: JSON Lines, CSV, Parquet, and whole files of text or code.

A reader turns bytes into fields and says what it could not read; whether the fields make a document is for `rules` to say.
Every record has its place: `row` counts from 1 (JSON Lines: the line; CSV: the record after the header; Parquet: the row);
row 0 stands for the file as a whole.
"""

import csv
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

from schemas.config import SourceConfig
from tasks.validate.problem import Problem, Reason
from tasks.validate.sources import Compression, Format, delimiter_of
from tasks.validate.streams import DamagedStreamError, HashingFile, blocks

LINE_LIMIT_BYTES = 64 << 20
"""A longer line is passed over without being held: memory stays bounded, and no document is that long (`max_chars` is 10 million by default)."""
_KEPT_BYTES = 1024
"""What is kept of an oversized or broken piece, for the excerpt."""
_BOM = b"\xef\xbb\xbf"


class Record(NamedTuple):
    """One raw record."""

    row: int
    """Its place in the file."""
    fields: Mapping[str, Any] | None
    """Column → value; None when it could not be read."""
    problem: Problem | None
    """Why it could not be read."""
    raw: bytes | None
    """The bytes it came from, or their beginning; None when there are none to show (Parquet, CSV: show the fields)."""


@dataclass(frozen=True)
class Source:
    """How one file is read."""

    path: str
    """For the ending."""
    config: SourceConfig
    """Format, text column."""
    compression: Compression
    """How it is compressed."""
    max_chars: int
    """A whole file of text that must be longer than this is not held in memory."""


def read_records(file: HashingFile, source: Source, *, kind: Format) -> Iterator[Record]:
    """Yields the records of a file in order. Damage becomes a record with a problem; only a failing disk raises (InputError)."""
    return _READERS[kind](file, source)


def _read_jsonl(file: HashingFile, source: Source) -> Iterator[Record]:
    row = 0
    try:
        for batch in _lines(blocks(file, compression=source.compression)):
            for line in batch:
                row += 1
                try:
                    fields = orjson.loads(line)
                except orjson.JSONDecodeError as error:
                    yield Record(row, None, _json_problem(line, error), line)
                    continue
                if type(fields) is dict:
                    yield Record(row, fields, None, line)
                else:
                    yield Record(row, None, Problem(Reason.NOT_AN_OBJECT, f"a JSON {_json_name(fields)}, not an object"), line)
    except DamagedStreamError as damage:
        yield Record(row + 1, None, _damage(damage, source), damage.tail)
    except _LongLineError as long:  # pragma: no cover  # replaced below
        yield Record(row + 1, None, Problem(Reason.LINE_TOO_LONG, str(long)), b"")
