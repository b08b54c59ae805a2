"""Raw files as records, one at a time: JSON Lines, CSV, and whole files of text or code. Parquet is next door (`parquet_reader`).

A reader turns bytes into fields and says what it could not read; whether the fields make a document is for `rules` to say.
Every record has its place: `row` counts from 1 (JSON Lines: the line; CSV: the record after the header; Parquet: the row;
text: 1). Damage that ends a file takes the row after the last one that was read.
"""

import csv
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import orjson

from schemas.recipe_config import SourceConfig
from tasks.validate.problem import Problem, Reason
from tasks.validate.sources import Compression, Format, compression_of, delimiter_of, format_of
from tasks.validate.streams import DamagedStreamError, HashingFile, blocks

LINE_LIMIT_BYTES = 64 << 20
"""A longer line is passed over without being held, so that memory stays bounded. `max_chars` is 10 million by default."""
_KEPT_BYTES = 1024
"""What is kept of something oversized or broken, for the excerpt."""
_RECORDS_PER_BATCH = 256
_BOM = b"\xef\xbb\xbf"
_UTF8_BYTES_PER_CHAR = 4


class Record(NamedTuple):
    """One raw record."""

    row: int
    """Its place in the file."""
    fields: dict[str, Any] | None
    """Column → value; None when it could not be read."""
    problem: Problem | None
    """Why it could not be read."""
    raw: bytes | None
    """The bytes it came from, or their beginning; None when the fields are all there is to show."""


@dataclass(frozen=True)
class Reading:
    """How one file is read."""

    kind: Format
    """What is in it."""
    compression: Compression
    """How it is compressed."""
    text_column: str
    """Where a whole file's text goes."""
    delimiter: str
    """Between the values of a CSV file."""
    max_chars: int
    """A whole file that must be longer than this is not held in memory."""


def reading_of(path: str, source: SourceConfig, *, max_chars: int) -> Reading:
    """Returns how a file of `source` is read, by its ending where the recipe does not say."""
    kind = format_of(path, source)
    return Reading(
        kind=kind,
        compression="none" if kind == "parquet" else compression_of(path),
        text_column=source.text_column,
        delimiter=delimiter_of(path),
        max_chars=max_chars,
    )


def read_batches(file: HashingFile, reading: Reading) -> Iterator[Sequence[Record]]:
    """Yields the records of a file in order, some at a time. Damage becomes a record with a problem; only a failing disk raises (InputError)."""
    return _READERS[reading.kind](file, reading)


def read_records(file: HashingFile, reading: Reading) -> Iterator[Record]:
    """Yields what `read_batches` does, one by one."""
    for batch in read_batches(file, reading):
        yield from batch


def _read_jsonl(file: HashingFile, reading: Reading) -> Iterator[Sequence[Record]]:
    row = 1
    try:
        for lines in _lines(blocks(file, compression=reading.compression)):
            yield [_json_record(line, row=number) for number, line in enumerate(lines, start=row)]
            row += len(lines)
    except DamagedStreamError as damage:
        yield (_damage_record(damage, row=row),)


def _json_record(line: bytes, *, row: int) -> Record:
    try:
        fields = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return Record(row, None, _json_problem(line, error), line)
    if type(fields) is dict:
        return Record(row, fields, None, line)
    return Record(row, None, Problem(Reason.NOT_AN_OBJECT, f"a JSON value of type {type(fields).__name__}"), line)


def _together(records: Iterator[Record]) -> Iterator[Sequence[Record]]:
    """Yields records some at a time: few, since one may be as large as a document."""
    while batch := tuple(itertools.islice(records, _RECORDS_PER_BATCH)):
        yield batch


def _json_problem(line: bytes, error: orjson.JSONDecodeError) -> Problem:
    """Returns why a line is no JSON; the order of the tests is from the outside in."""
    if isinstance(line, _LongLine):
        return line.problem()
    if not line.strip():
        return Problem(Reason.BLANK_LINE)
    if problem := _utf8_problem(line):
        return problem
    return Problem(Reason.INVALID_JSON, str(error))


def _read_csv(file: HashingFile, reading: Reading) -> Iterator[Record]:
    csv.field_size_limit(LINE_LIMIT_BYTES)
    lines = _TextLines(_lines(blocks(file, compression=reading.compression)))
    rows = csv.reader(lines, delimiter=reading.delimiter, strict=True)
    header: list[str] | None = None
    row = 0
    while True:
        try:
            values = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            row += header is not None
            yield Record(row, None, Problem(Reason.MALFORMED_CSV, str(error)), lines.last)
            if header is None:
                return
            continue
        except DamagedStreamError as damage:
            yield _damage_record(damage, row=row + 1)
            return
        if header is None:
            header = values
            if problem := _header_problem(header):
                yield Record(0, None, problem, lines.last)
                return
            continue
        row += 1
        yield _csv_record(values, header=header, row=row, line=lines.last)


def _csv_record(values: list[str], *, header: list[str], row: int, line: bytes) -> Record:
    if not values:
        return Record(row, None, Problem(Reason.BLANK_LINE), line)
    if len(values) != len(header):
        return Record(row, None, Problem(Reason.MALFORMED_CSV, f"{len(values)} values, the header has {len(header)}"), line)
    joined = "".join(values)
    if not joined.isascii() and (problem := _utf8_problem(joined.encode("utf-8", "surrogateescape"))):
        return Record(row, None, problem, line)
    return Record(row, dict(zip(header, values, strict=True)), None, None)


def _header_problem(header: list[str]) -> Problem | None:
    """Returns why a header cannot be used, if so."""
    if problem := _utf8_problem("".join(header).encode("utf-8", "surrogateescape")):
        return Problem(problem.reason, f"in the header, {problem.detail}")
    twice = sorted({name for name in header if header.count(name) > 1})
    return Problem(Reason.MALFORMED_CSV, f"the header names a column twice: {', '.join(map(repr, twice))}") if twice else None


class _TextLines:
    """Lines for `csv.reader`, which wants text. Bytes that are not UTF-8 pass through as surrogates and are found per record."""

    def __init__(self, batches: Iterator[list[bytes]]) -> None:
        self._lines = (line for batch in batches for line in batch)
        self.last = b""
        """The line read last, for excerpts."""

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        self.last = next(self._lines)
        if isinstance(self.last, _LongLine):
            raise csv.Error(self.last.problem().detail)  # the reader drops the record that it is in, and goes on with the next line
        return self.last.decode("utf-8", "surrogateescape") + "\n"


def _read_text(file: HashingFile, reading: Reading) -> Iterator[Record]:
    limit = reading.max_chars * _UTF8_BYTES_PER_CHAR + len(_BOM)
    pieces: list[bytes] = []
    size = 0
    try:
        for block in blocks(file, compression=reading.compression):
            size += len(block)
            if size <= limit or not pieces:
                pieces.append(block)
    except DamagedStreamError as damage:
        damage.tail = b"".join(pieces)[:_KEPT_BYTES]
        yield _damage_record(damage, row=1)
        return
    data = b"".join(pieces).removeprefix(_BOM)
    if size > limit:
        yield Record(1, None, Problem(Reason.TOO_LONG, f"{size:,} bytes, more than {reading.max_chars:,} characters"), data[:_KEPT_BYTES])
    elif not size:
        return
    elif problem := _utf8_problem(data):
        yield Record(1, None, problem, data)
    else:
        yield Record(1, {reading.text_column: data.decode()}, None, data)


def _read_parquet(file: HashingFile, reading: Reading) -> Iterator[Sequence[Record]]:
    from tasks.validate.parquet_reader import read_parquet

    return read_parquet(file, text_column=reading.text_column)


_READERS: Mapping[Format, Callable[[HashingFile, Reading], Iterator[Sequence[Record]]]] = {
    "jsonl": _read_jsonl,
    "csv": lambda file, reading: _together(_read_csv(file, reading)),
    "text": lambda file, reading: _together(_read_text(file, reading)),
    "parquet": _read_parquet,
}


class _LongLine(bytes):
    """The beginning of a line above `LINE_LIMIT_BYTES`."""

    size: int

    def problem(self) -> Problem:
        return Problem(Reason.LINE_TOO_LONG, f"{self.size:,} bytes, the limit is {LINE_LIMIT_BYTES:,}")


class _Carry:
    """The unfinished line between two blocks; an endless one is counted, not held."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.size = 0

    def add(self, piece: bytes) -> None:
        self.size += len(piece)
        if self.size <= LINE_LIMIT_BYTES or not self.pieces:
            self.pieces.append(piece)

    def take(self) -> bytes:
        """Returns the line and forgets it."""
        line = b"".join(self.pieces)
        if self.size > LINE_LIMIT_BYTES:
            line = _LongLine(line[:_KEPT_BYTES])
            line.size = self.size
        self.pieces, self.size = [], 0
        return line


def _lines(content: Iterator[bytes]) -> Iterator[list[bytes]]:
    """Yields the lines of each block without their line feeds, and without a byte order mark at the start. Nothing follows the last line feed.

    Raises:
        DamagedStreamError: with the start of the unfinished line as `tail`.
    """
    carry = _Carry()
    first = True
    try:
        for block in content:
            lines = block.split(b"\n")
            if first:
                lines[0] = lines[0].removeprefix(_BOM)
                first = False
            rest = lines.pop()
            if lines:
                if carry.size:
                    carry.add(lines[0])
                    lines[0] = carry.take()
                yield lines
            carry.add(rest)
    except DamagedStreamError as damage:
        damage.tail = carry.take()[:_KEPT_BYTES]
        raise
    if carry.size:
        yield [carry.take()]


def _damage_record(damage: DamagedStreamError, *, row: int) -> Record:
    reason = Reason.TRUNCATED_FILE if damage.truncated else Reason.DAMAGED_FILE
    return Record(row, None, Problem(reason, damage.detail), damage.tail)


def _utf8_problem(data: bytes) -> Problem | None:
    """Returns where `data` stops being UTF-8, if it does."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return Problem(Reason.INVALID_UTF8, f"byte {error.start}: {error.reason}")
    return None
