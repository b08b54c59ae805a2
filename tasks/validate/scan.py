"""One streaming pass over one group: raw files in; accepted documents per split, quarantine and exact figures out.

Memory is bounded by one row group per open file and the hashes of the last `REMEMBERED_DOCUMENTS` documents, not by the group's size.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from schemas.artifact import FileEntry
from schemas.errors import InputError
from schemas.frozen import Frozen
from schemas.manifest import SPLITS, AcceptedFile, CorpusGroup, InputFile, Split
from schemas.recipe_config import CorpusConfig
from tasks.validate.corpus_files import (
    ACCEPTED_SCHEMA,
    QUARANTINE_SCHEMA,
    ROW_OVERHEAD_BYTES,
    AcceptedRow,
    QuarantineRow,
    TableFile,
    Temporary,
    accepted_name,
    quarantine_name,
)
from tasks.validate.documents import Splitter, digest_of
from tasks.validate.problem import Problem, Reason, excerpt
from tasks.validate.readers import Record, read_records, reading_of
from tasks.validate.rules import DocumentRules, json_of
from tasks.validate.sample import SampleDocument, SampleTally
from tasks.validate.stats import SourceStats, SourceTally, merge_lengths
from tasks.validate.streams import HashingFile

REMEMBERED_DOCUMENTS = 1_000_000
"""Content hashes held to find duplicates at once, about 100 MB. Beyond that they are forgotten, and the duplicates are found after the scan."""
_REPORT_EVERY_RECORDS = 256
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


class ScanOutput(Frozen):
    """What a scanned group tells the stage (`output` of its item record)."""

    group: int
    """The group."""
    accepted: tuple[AcceptedFile, ...]
    """Accepted documents by split."""
    quarantine: FileEntry | None
    """Quarantined records."""
    stats: tuple[SourceStats, ...]
    """Figures by source."""
    faults: tuple[FileFault, ...]
    """Files that stop the stage."""
    sample: tuple[SampleDocument, ...]
    """Documents to show."""
    may_repeat: bool
    """Whether hashes were forgotten on the way, so that duplicates may be left within the group."""


def scan_group(group: CorpusGroup, *, corpus: CorpusConfig, output_dir: Path, temporary: Temporary, report: Callable[[int], None]) -> ScanOutput:
    """Scans all inputs of a group and publishes its files; on an error nothing is left behind.

    Args:
        output_dir: the artifact's folder.
        temporary: gives paths for unfinished files.
        report: takes the raw bytes done so far.

    Raises:
        InputError: an input changed since it was planned, or cannot be read.
    """
    sources = dict(zip(corpus.source_names, corpus.sources, strict=True))
    with Sink(group.index, corpus=corpus, output_dir=output_dir, temporary=temporary) as sink:
        faults: list[FileFault] = []
        done_bytes = 0
        for file in group.inputs:
            source = sources[file.source]
            reading = reading_of(file.path, source, max_chars=corpus.rules.max_chars)
            rules = DocumentRules(corpus.rules, text_column=source.text_column, kind=reading.kind)
            intake = FileIntake(file, rules=rules, text_column=source.text_column, sink=sink)
            with HashingFile(Path(file.path)) as raw:
                for count, record in enumerate(read_records(raw, reading)):
                    intake.take(record)
                    if count % _REPORT_EVERY_RECORDS == 0:
                        report(done_bytes + raw.bytes_read)
                _check_unchanged(raw, file)
            faults += intake.finish()
            done_bytes += file.size
        return sink.publish(faults=tuple(faults))


def _check_unchanged(raw: HashingFile, file: InputFile) -> None:
    """Raises InputError when the bytes that were read are not those that were planned."""
    if raw.digest() != file.xxh3 or raw.changed():
        raise InputError(
            f"{file.path}: changed while the corpus was being made",
            why=f"it was planned with hash {file.xxh3[:12]} and {file.size:,} bytes, and other bytes were read",
            mend="run again: the corpus is planned anew from the files as they are now",
        )


class Sink:
    """Where the records of a group go: accepted documents by split, everything else to quarantine, all of them counted."""

    def __init__(self, group: int, *, corpus: CorpusConfig, output_dir: Path, temporary: Temporary) -> None:
        """Args: see `scan_group`. Files are created with their first row."""
        self._group = group
        self._drop_duplicates = corpus.rules.drop_duplicates
        self._splitter = Splitter(corpus.splits)
        self._accepted = {
            split: TableFile(accepted_name(group, split), output_dir=output_dir, temporary=temporary, schema=ACCEPTED_SCHEMA) for split in SPLITS
        }
        self._quarantine = TableFile(quarantine_name(group), output_dir=output_dir, temporary=temporary, schema=QUARANTINE_SCHEMA)
        self._tallies: dict[str, SourceTally] = {}
        self._sample = SampleTally()
        self._seen: set[bytes] = set()
        self._may_repeat = False

    def tally(self, source: str) -> SourceTally:
        """Returns the counts of one source."""
        return self._tallies.setdefault(source, SourceTally(source))

    def quarantine(self, row: QuarantineRow) -> None:
        """Takes a refused record."""
        self._quarantine.add(row, size=len(row.detail) + len(row.excerpt) + ROW_OVERHEAD_BYTES)

    def accept(self, row: AcceptedRow, *, digest: bytes, chars: int) -> Split:
        """Takes a document and returns its split."""
        split = self._splitter.split_of(digest)
        self._accepted[split].add(row, size=len(row.text) + len(row.extra or b"") + ROW_OVERHEAD_BYTES)
        self._sample.offer(digest, row, chars=chars, split=split)
        return split

    def is_repeat(self, digest: bytes) -> bool:
        """Whether a document with this hash came before, as far as hashes are remembered; remembers it."""
        if not self._drop_duplicates:
            return False
        if digest in self._seen:
            return True
        if len(self._seen) >= REMEMBERED_DOCUMENTS:
            self._seen.clear()
            self._may_repeat = True
        self._seen.add(digest)
        return False

    def publish(self, *, faults: tuple[FileFault, ...]) -> ScanOutput:
        """Completes all files and returns what the group amounts to."""
        entries = {split: table.publish() for split, table in self._accepted.items()}
        stats = tuple(tally.stats() for tally in self._tallies.values())
        accepted = []
        for split, entry in entries.items():
            if entry is not None:
                lengths = merge_lengths(part.accepted[split] for part in stats)
                accepted.append(AcceptedFile(group=self._group, split=split, file=entry, documents=lengths.documents, text_bytes=lengths.text_bytes))
        return ScanOutput(
            group=self._group,
            accepted=tuple(accepted),
            quarantine=self._quarantine.publish(),
            stats=stats,
            faults=faults,
            sample=self._sample.documents(),
            may_repeat=self._may_repeat,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for table in (*self._accepted.values(), self._quarantine):
            table.discard()


class FileIntake:
    """Takes the records of one file into the group's sink."""

    def __init__(self, file: InputFile, *, rules: DocumentRules, text_column: str, sink: Sink) -> None:
        """Args: rules: those of the file's source."""
        self._file, self._rules, self._text_column, self._sink = file, rules, text_column, sink
        self._place = file.source.encode(), file.relative_path.encode()
        self._tally = sink.tally(file.source)
        self._num_records = self._num_parsed = 0
        self._is_damaged = False
        self._faulty: Counter[str] = Counter()
        self._first_fault: dict[str, str] = {}

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


def _shown(fields: Mapping[str, Any]) -> bytes:
    """Returns what an excerpt shows of a record without bytes of its own."""
    shown = json_of(fields)
    return b"" if isinstance(shown, Problem) else shown
