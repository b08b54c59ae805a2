"""The records of one file on their way into a group's sink: accepted, or quarantined with a reason.

Records come some at a time, and so they are taken: rules are applied to all of their texts at once, and what may break one is looked at alone.
The outcome is that of one by one, to the byte; `FileIntake.take` defines it.
"""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any

from schemas.frozen import Frozen
from schemas.manifest import InputFile
from tasks.validate.corpus_files import AcceptedRow, QuarantineRow
from tasks.validate.documents import digest_of
from tasks.validate.problem import Problem, Reason, excerpt
from tasks.validate.readers import Record
from tasks.validate.rules import DocumentRules, json_of

if TYPE_CHECKING:
    from tasks.validate.scan import Sink

_ENDS_OF_FILE = frozenset((Reason.TRUNCATED_FILE, Reason.DAMAGED_FILE))


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
        self._place = file.source.encode(), file.relative_path.encode()
        self._tally = sink.tally(file.source)
        self._num_records = self._num_parsed = 0
        self._is_damaged = False
        self._faulty: Counter[str] = Counter()
        self._first_fault: dict[str, str] = {}

    def take_all(self, records: Sequence[Record]) -> None:
        """Accepts or quarantines records in order, as `take` does one by one and faster: what may be refused is looked at alone."""
        refused = self._rules.may_refuse([record.fields for record in records])
        for run in _runs(len(records), refused):
            if run.start in refused:
                self.take(records[run.start])
            else:
                self._take_run(records[run.start : run.stop])

    def _take_run(self, records: Sequence[Record]) -> None:
        """Takes records that have a text and the columns that they must have."""
        column = self._text_column
        texts: list[str] = [record.fields[column] for record in records]  # type: ignore[index]
        data = [text.encode() for text in texts]
        suspects = self._rules.suspects(texts, data)
        for run in _runs(len(records), suspects):
            if run.start in suspects:
                self.take(records[run.start])
            else:
                part = slice(run.start, run.stop)
                self._take_clean(records[part], texts[part], data[part])

    def _take_clean(self, records: Sequence[Record], texts: Sequence[str], data: Sequence[bytes]) -> None:
        """Takes records whose texts satisfy every rule; only duplicates can be among them, and columns that cannot be stored."""
        extras = self._extras(records, texts)
        if extras is None:
            for record in records:
                self.take(record)
            return
        digests = [digest_of(each) for each in data]
        rows = [record.row for record in records]
        repeats = self._sink.repeats_among(digests)
        if repeats:
            for index in repeats:
                self._quarantine(rows[index], Problem(Reason.DUPLICATE, f"doc_id {digests[index].hex()}"), texts[index])
            kept = sorted(set(range(len(rows))).difference(repeats))
            digests, rows, texts, data, extras = (_chosen(each, kept) for each in (digests, rows, texts, data, extras))
        self._num_records += len(records)
        self._num_parsed += len(records)
        self._tally.read += len(rows)
        doc_ids = [digest.hex().encode() for digest in digests]
        source, path = self._place
        accepted = list(zip(doc_ids, itertools.repeat(source), itertools.repeat(path), rows, data, extras))
        self._sink.accept_all(accepted, digests=digests, chars=list(map(len, texts)), tally=self._tally)

    def _extras(self, records: Sequence[Record], texts: Sequence[str]) -> list[bytes | None] | None:
        """Takes the text out of each record, and returns the other columns as JSON, None where there are none; None when some cannot be stored."""
        rests: list[dict[str, Any]] = [record.fields for record in records]  # type: ignore[misc]
        column = self._text_column
        for rest in rests:
            del rest[column]
        extras = [json_of(rest) if rest else None for rest in rests]
        if not any(type(extra) is Problem for extra in extras):
            return extras  # type: ignore[return-value]
        for rest, text in zip(rests, texts, strict=True):
            rest[column] = text
        return None

    def take(self, record: Record) -> None:
        """Accepts or quarantines one record."""
        self._num_records += 1
        fields = record.fields
        if fields is None:
            assert record.problem is not None
            self._is_damaged = record.problem.reason in _ENDS_OF_FILE
            self._quarantine(record.row, record.problem, record.raw or b"")
            return
        self._num_parsed += 1
        document = self._rules.document_of(fields)
        if isinstance(document, Problem):
            if document.column:
                self._faulty[document.column] += 1
                self._first_fault.setdefault(document.column, document.detail)
            self._quarantine(record.row, document, record.raw if record.raw is not None else _shown(fields))
            return
        text, data = document
        del fields[self._text_column]
        extra = json_of(fields) if fields else None
        if isinstance(extra, Problem):
            self._quarantine(record.row, extra, text)
            return
        digest = digest_of(data)
        if self._sink.is_repeat(digest):
            self._quarantine(record.row, Problem(Reason.DUPLICATE, f"doc_id {digest.hex()}"), text)
            return
        row = AcceptedRow(digest.hex().encode(), *self._place, record.row, data, extra)
        split = self._sink.accept(row, digest=digest, chars=len(text))
        self._tally.read += 1
        self._tally.accepted[split].add(chars=len(text), text_bytes=len(data))

    def finish(self) -> list[FileFault]:
        """Counts the file and returns the columns that none of its records has."""
        if self._num_records == 0:
            self._quarantine(0, Problem(Reason.EMPTY_FILE), b"")
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

    def _quarantine(self, row: int, problem: Problem, raw: bytes | str) -> None:
        self._tally.read += 1
        self._tally.reasons[problem.reason] += 1
        self._sink.quarantine(QuarantineRow(*self._place, row, problem.reason.encode(), excerpt(problem.detail).encode(), excerpt(raw).encode()))


def _runs(count: int, apart: Set[int]) -> Iterator[range]:
    """Yields range(count) in pieces: each of `apart` alone, and what lies between them."""
    first = 0
    for index in (*sorted(apart), count):
        if first < index:
            yield range(first, index)
        if index < count:
            yield range(index, index + 1)
        first = index + 1


def _chosen(values: Sequence[Any], kept: Sequence[int]) -> list[Any]:
    return [values[index] for index in kept]


def _shown(fields: Mapping[str, Any]) -> bytes:
    """Returns what an excerpt shows of a record without bytes of its own."""
    shown = json_of(fields)
    return b"" if isinstance(shown, Problem) else shown
