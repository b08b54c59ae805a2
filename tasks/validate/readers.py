"""Raw files as records, one at a time: JSON Lines, CSV, and whole files of text or code. Parquet is next door (`parquet_reader`).

A reader turns bytes into fields and says what it could not read; whether the fields make a document is for `rules` to say.
Every record has its place: `row` counts from 1 (JSON Lines: the line; CSV: the record after the header; Parquet: the row;
text: 1). Damage that ends a file takes the row after the last one that was read.
"""

import csv
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Self

from schemas.corpus_config import EncodingName, RulesConfig, SourceConfig
from tasks.validate.encodings import Decoding, UnknownEncodingError
from tasks.validate.json_lines import json_batches, utf8_problem
from tasks.validate.lines import KEPT_BYTES, LINE_LIMIT_BYTES, RefusedLine
from tasks.validate.problem import Problem, Reason
from tasks.validate.records import Batch, Columns, Record
from tasks.validate.sources import Compression, Format, compression_of, delimiter_of, format_of
from tasks.validate.streams import DamagedStreamError, HashingFile, blocks

_RECORDS_PER_BATCH = 256
_MOST_BYTES_PER_CHAR = 4
"""In UTF-8, UTF-16, UTF-32 and GB 18030."""


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
    has_required_columns: bool
    """Whether rules ask for other columns than the text."""
    decoding: Decoding
    """How its bytes become text; it finds out while the file is read. Parquet files have no use for it."""


def reading_of(path: str, source: SourceConfig, *, rules: RulesConfig, encoding: EncodingName = "utf-8") -> Reading:
    """Returns how a file of `source` is read, by its ending where the recipe does not say. `encoding`: where the source does not say."""
    kind = format_of(path, source)
    return Reading(
        kind=kind,
        compression="none" if kind == "parquet" else compression_of(path),
        text_column=source.text_column,
        delimiter=delimiter_of(path),
        max_chars=rules.max_chars,
        has_required_columns=bool(rules.required_columns),
        decoding=Decoding(source.encoding or encoding),
    )


def read_batches(file: HashingFile, reading: Reading) -> Iterator[Batch]:
    """Yields the records of a file in order, some at a time. Damage becomes a record with a problem; only a failing disk raises (InputError)."""
    return _READERS[reading.kind](file, reading)


def read_records(file: HashingFile, reading: Reading) -> Iterator[Record]:
    """Yields what `read_batches` does, one by one."""
    for batch in read_batches(file, reading):
        yield from batch if not isinstance(batch, Columns) else batch.records(range(len(batch)))


def _read_jsonl(file: HashingFile, reading: Reading) -> Iterator[Batch]:
    row = 1
    try:
        for run in reading.decoding.line_runs(blocks(file, compression=reading.compression)):
            for batch in json_batches(run, first_row=row, text_column=reading.text_column, as_fields=reading.has_required_columns):
                yield batch
                row += len(batch)
    except (DamagedStreamError, UnknownEncodingError) as end:
        yield (_end_record(end, row=row),)


def _together(records: Iterator[Record]) -> Iterator[Batch]:
    """Yields records some at a time: few, since one may be as large as a document."""
    while batch := tuple(itertools.islice(records, _RECORDS_PER_BATCH)):
        yield batch


def _read_csv(file: HashingFile, reading: Reading) -> Iterator[Record]:
    csv.field_size_limit(LINE_LIMIT_BYTES)
    lines = _TextLines(reading.decoding.line_runs(blocks(file, compression=reading.compression)))
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
            yield Record(row, None, _csv_problem(lines.last, error), lines.last)
            if header is None:
                return
            continue
        except (DamagedStreamError, UnknownEncodingError) as end:
            yield _end_record(end, row=row + 1)
            return
        if header is None:
            header = values
            if problem := _header_problem(header):
                yield Record(0, None, problem, lines.last)
                return
            continue
        row += 1
        yield _csv_record(values, header=header, row=row, line=lines.last)


def _csv_problem(line: bytes, error: csv.Error) -> Problem:
    if isinstance(line, RefusedLine) and line.problem.reason is Reason.UNDECODABLE:
        return line.problem
    return Problem(Reason.MALFORMED_CSV, str(error))


def _csv_record(values: list[str], *, header: list[str], row: int, line: bytes) -> Record:
    if not values:
        return Record(row, None, Problem(Reason.BLANK_LINE), line)
    if len(values) != len(header):
        return Record(row, None, Problem(Reason.MALFORMED_CSV, f"{len(values)} values, the header has {len(header)}"), line)
    joined = "".join(values)
    if not joined.isascii() and (problem := utf8_problem(joined.encode("utf-8", "surrogateescape"))):
        return Record(row, None, problem, line)
    return Record(row, dict(zip(header, values, strict=True)), None, None)


def _header_problem(header: list[str]) -> Problem | None:
    """Returns why a header cannot be used, if so."""
    if problem := utf8_problem("".join(header).encode("utf-8", "surrogateescape")):
        return Problem(problem.reason, f"in the header, {problem.detail}")
    twice = sorted({name for name in header if header.count(name) > 1})
    return Problem(Reason.MALFORMED_CSV, f"the header names a column twice: {', '.join(map(repr, twice))}") if twice else None


class _TextLines:
    """Lines for `csv.reader`, which wants text. Bytes that are not UTF-8 pass through as surrogates and are found per record."""

    def __init__(self, runs: Iterator[bytes]) -> None:
        self._lines = (line for run in runs for line in lines_of(run))
        self.last = b""
        """The line read last, for excerpts."""

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        self.last = next(self._lines)
        if isinstance(self.last, RefusedLine):
            raise csv.Error(self.last.problem.detail)  # the reader drops the record that it is in, and goes on with the next line
        return self.last.decode("utf-8", "surrogateescape") + "\n"


def _read_text(file: HashingFile, reading: Reading) -> Iterator[Record]:
    limit = (1 + reading.max_chars) * _MOST_BYTES_PER_CHAR  # a byte order mark is a character
    pieces: list[bytes] = []
    size = 0
    try:
        for block in blocks(file, compression=reading.compression):
            size += len(block)
            if size <= limit or not pieces:
                pieces.append(block)
    except DamagedStreamError as damage:
        damage.tail = b"".join(pieces)[:KEPT_BYTES]
        yield _end_record(damage, row=1)
        return
    raw = b"".join(pieces)
    if size > limit:
        yield Record(1, None, Problem(Reason.TOO_LONG, f"{size:,} bytes, more than {reading.max_chars:,} characters"), raw[:KEPT_BYTES])
    elif not size:
        return
    elif isinstance(data := reading.decoding.text(raw), Problem):
        yield Record(1, None, data, raw)
    elif problem := utf8_problem(data):
        yield Record(1, None, problem, data)
    else:
        yield Record(1, {reading.text_column: data.decode()}, None, data)


def _read_parquet(file: HashingFile, reading: Reading) -> Iterator[Batch]:
    from tasks.validate.parquet_reader import read_parquet

    return read_parquet(file, text_column=reading.text_column, as_fields=reading.has_required_columns)


_READERS: Mapping[Format, Callable[[HashingFile, Reading], Iterator[Batch]]] = {
    "jsonl": _read_jsonl,
    "csv": lambda file, reading: _together(_read_csv(file, reading)),
    "text": lambda file, reading: _together(_read_text(file, reading)),
    "parquet": _read_parquet,
}


def lines_of(run: bytes) -> list[bytes]:
    """Returns the lines of a run (`lines.line_runs`)."""
    return [run] if isinstance(run, RefusedLine) else run.split(b"\n")


def _end_record(end: DamagedStreamError | UnknownEncodingError, *, row: int) -> Record:
    """Returns the record for what ends a file before its end."""
    if isinstance(end, UnknownEncodingError):
        return Record(row, None, end.problem, b"")
    reason = Reason.TRUNCATED_FILE if end.truncated else Reason.DAMAGED_FILE
    return Record(row, None, Problem(reason, end.detail), end.tail)
