"""One streaming pass over one group: raw files in; accepted documents per split, quarantine and exact figures out.

Memory is bounded by one row group per open file and the hashes of the last `REMEMBERED_DOCUMENTS` documents, not by the group's size.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

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
from tasks.validate.documents import Splitter, sample_keys
from tasks.validate.intake import FileFault, FileIntake
from tasks.validate.readers import read_batches, reading_of
from tasks.validate.rules import DocumentRules
from tasks.validate.sample import SampleDocument, SampleTally
from tasks.validate.stats import SourceStats, SourceTally, merge_lengths
from tasks.validate.streams import HashingFile

REMEMBERED_DOCUMENTS = 1_000_000
"""Content hashes held to find duplicates at once, about 100 MB. Beyond that they are forgotten, and the duplicates are found after the scan."""

Row = tuple[bytes, bytes, bytes, int, bytes, bytes | None]
"""`AcceptedRow` without its names: a million of those take a second to make."""
_TEXT: Final = 4
_EXTRA: Final = 5


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
                for records in read_batches(raw, reading):
                    intake.take_all(records)
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

    def accept_all(self, rows: Sequence[Row], *, digests: Sequence[bytes], chars: Sequence[int], tally: SourceTally) -> None:
        """Takes documents, in order, and counts them. `rows`: the columns of `AcceptedRow`."""
        splits = self._splitter.splits_of(digests)
        for split in SPLITS:
            own = [index for index, each in enumerate(splits) if each == split]
            if own:
                chosen = [rows[index] for index in own]
                sizes = [len(row[_TEXT]) for row in chosen]
                held = [size + len(row[_EXTRA] or b"") + ROW_OVERHEAD_BYTES for size, row in zip(sizes, chosen, strict=True)]
                self._accepted[split].add_all(chosen, sizes=held)
                tally.accepted[split].add_all(chars=[chars[index] for index in own], text_bytes=sizes)
        for index, key in enumerate(sample_keys(digests)):
            if self._sample.wants(key):
                self._sample.offer(digests[index], AcceptedRow._make(rows[index]), chars=chars[index], split=splits[index])

    def repeats_among(self, digests: Sequence[bytes]) -> list[int]:
        """Returns the positions of the documents for which `is_repeat` says yes, one after the other; remembers all."""
        fresh = set(digests)
        if self._drop_duplicates and len(fresh) == len(digests) <= REMEMBERED_DOCUMENTS - len(self._seen) and self._seen.isdisjoint(fresh):
            self._seen |= fresh
            return []
        return [index for index, digest in enumerate(digests) if self.is_repeat(digest)]

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
