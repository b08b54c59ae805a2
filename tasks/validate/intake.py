"""The records of one file on their way into a group's sink: accepted, or quarantined with a reason.

Records come many at a time, and so they are taken: rules are applied to all of their texts at once, and what may break one is looked at alone.
The outcome is that of one by one, to the byte; `FileIntake.take` defines it.
"""

from collections import Counter
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from schemas.frozen import Frozen
from schemas.manifest import InputFile
from tasks.validate.accepted_rows import Place
from tasks.validate.corpus_files import AcceptedRow, QuarantineRow
from tasks.validate.documents import digest_of, digests_of
from tasks.validate.problem import Problem, Reason, excerpt
from tasks.validate.records import Batch, Columns, Record, columns_of_records
from tasks.validate.rules import DocumentRules, json_of

if TYPE_CHECKING:
    from tasks.validate.scan import Sink

_ENDS_OF_FILE = frozenset((Reason.TRUNCATED_FILE, Reason.DAMAGED_FILE, Reason.UNKNOWN_ENCODING))


class FileFault(Frozen):
    """A file of which no record has a column that all should have: a wrong file or a wrong recipe, not bad records."""

    source: str
    """Its source."""
    path: str
    """Its path within the source."""
    column: str
    """The column."""
    problem: str
    """What the first record has instead."""
    records: int
    """Records of the file."""


class FileIntake:
    """Takes the records of one file into the group's sink."""

    def __init__(self, file: InputFile, *, rules: DocumentRules, text_column: str, sink: "Sink") -> None:
        """Args: rules: those of the file's source."""
        self._file, self._rules, self._text_column, self._sink = file, rules, text_column, sink
        self._place = Place(file.source.encode(), file.relative_path.encode())
        self._tally = sink.tally(file.source)
        self._num_records = self._num_parsed = 0
        self._is_damaged = False
        self._faulty: Counter[str] = Counter()
        self._first_fault: dict[str, str] = {}

    def take_all(self, batch: Batch) -> None:
        """Accepts or quarantines records in order, as `take` does one by one and faster."""
        columns = batch if isinstance(batch, Columns) else columns_of_records(batch, text_column=self._text_column)
        if columns is not None:
            self._take_columns(columns)
            return
        assert not isinstance(batch, Columns)
        for record in batch:
            self.take(record)

    def _take_columns(self, columns: Columns) -> None:
        doubtful = self._rules.doubtful(columns)
        refused: dict[int, _Refusal] = {}
        positions = np.flatnonzero(doubtful).tolist()
        for index, record in zip(positions, columns.records(positions), strict=True):
            judged = self._judged(record)
            if isinstance(judged, _Refusal):
                refused[index] = judged
        assert refused.keys() >= set(columns.irregular), "a record without a text was taken for a document"
        num_clean = len(doubtful) - int(doubtful.sum())
        self._num_records += num_clean
        self._num_parsed += num_clean
        hashes, kept = digests_of(columns.data), _all_but(refused, count=len(doubtful))
        candidates = np.flatnonzero(kept)
        for index in candidates[self._sink.repeats_among(hashes[candidates])].tolist():
            refused[index] = _Refusal(index + columns.first_row, _repeat(hashes[index].tobytes()), columns.data[index])
            kept[index] = False
        for index in sorted(refused):
            self._quarantine(refused[index])
        if kept.any():
            self._tally.read += int(kept.sum())
            self._sink.accept_all(columns, kept, hashes=hashes, place=self._place, tally=self._tally)

    def take(self, record: Record) -> None:
        """Accepts or quarantines one record."""
        judged = self._judged(record)
        if isinstance(judged, _Refusal):
            self._quarantine(judged)
            return
        digest = digest_of(judged.data)
        if self._sink.repeats_among(digests_of([judged.data]))[0]:
            self._quarantine(_Refusal(record.row, _repeat(digest), judged.data))
            return
        row = AcceptedRow(digest.hex().encode(), *self._place, record.row, judged.data, judged.extra)
        self._tally.read += 1
        self._sink.accept(row, digest=digest, chars=judged.chars, tally=self._tally)

    def _judged(self, record: Record) -> "_Refusal | _Document":
        """Counts a record, and returns what it is by itself."""
        self._num_records += 1
        fields = record.fields
        if fields is None:
            assert record.problem is not None
            self._is_damaged = record.problem.reason in _ENDS_OF_FILE
            return _Refusal(record.row, record.problem, record.raw or b"")
        self._num_parsed += 1
        document = self._rules.document_of(fields)
        if isinstance(document, Problem):
            if document.column:
                self._faulty[document.column] += 1
                self._first_fault.setdefault(document.column, document.detail)
            return _Refusal(record.row, document, record.raw if record.raw is not None else _shown(fields))
        others = {name: value for name, value in fields.items() if name != self._text_column}
        extra = json_of(others) if others else None
        if isinstance(extra, Problem):
            return _Refusal(record.row, extra, document.data)
        return _Document(document.data, len(document.text), extra)

    def finish(self) -> list[FileFault]:
        """Counts the file and returns the columns that none of its records has."""
        if self._num_records == 0:
            self._quarantine(_Refusal(0, Problem(Reason.EMPTY_FILE), b""))
        self._tally.files += 1
        self._tally.raw_bytes += self._file.size
        if self._is_damaged and not self._num_parsed:
            self._tally.unreadable_bytes += self._file.size
        place = {"source": self._file.source, "path": self._file.relative_path, "records": self._num_parsed}
        return [
            FileFault(column=column, problem=self._first_fault[column], **place)
            for column, count in self._faulty.items()
            if count == self._num_parsed
        ]

    def _quarantine(self, refusal: "_Refusal") -> None:
        row, problem, raw = refusal
        self._tally.read += 1
        self._tally.reasons[problem.reason] += 1
        self._sink.quarantine(QuarantineRow(*self._place, row, problem.reason.encode(), excerpt(problem.detail).encode(), excerpt(raw).encode()))


class _Refusal(NamedTuple):
    """A record that goes to quarantine."""

    row: int
    problem: Problem
    raw: bytes


class _Document(NamedTuple):
    """A record that satisfies every rule."""

    data: bytes
    chars: int
    extra: bytes | None


def _repeat(digest: bytes) -> Problem:
    return Problem(Reason.DUPLICATE, f"doc_id {digest.hex()}")


def _all_but(left_out: Collection[int], *, count: int) -> NDArray[np.bool_]:
    """Returns which of `count` positions are not left out."""
    kept = np.ones(count, dtype=np.bool_)
    kept[list(left_out)] = False
    return kept


def _shown(fields: Mapping[str, Any]) -> bytes:
    """Returns what an excerpt shows of a record without bytes of its own."""
    shown = json_of(fields)
    return b"" if isinstance(shown, Problem) else shown
