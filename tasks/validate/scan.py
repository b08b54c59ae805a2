"""One streaming pass over one group: raw files in; accepted documents per split, quarantine and exact figures out.

Memory is bounded by one row group per open file and the hashes of the last `REMEMBERED_DOCUMENTS` documents, not by the group's size.
"""

import contextlib
import gc
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from schemas.artifact import FileEntry
from schemas.corpus_config import CorpusConfig
from schemas.errors import InputError
from schemas.frozen import Frozen
from schemas.manifest import SPLITS, AcceptedFile, CorpusGroup, FileEncoding, InputFile
from tasks.validate.accepted_rows import Place, accepted_rows, sizes_of
from tasks.validate.conversations import with_conversations
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
from tasks.validate.figures.corpus import SourceFigures
from tasks.validate.figures.sampling import EVERY, Sampling
from tasks.validate.figures.tally import FiguresTally
from tasks.validate.intake import FileFault, FileIntake
from tasks.validate.readers import Reading, read_batches, reading_of
from tasks.validate.records import Columns
from tasks.validate.rules import DocumentRules
from tasks.validate.sample import SampleDocument, SampleTally
from tasks.validate.seen import SeenHashes
from tasks.validate.stats import SourceStats, SourceTally, merge_lengths
from tasks.validate.streams import HashingFile

REMEMBERED_DOCUMENTS = 1_000_000
"""Content hashes held to find duplicates at once, 24 MB. Beyond that they are forgotten, and the duplicates are found after the scan."""


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
    encodings: tuple[FileEncoding, ...] = ()
    """What files were read as, where that is not UTF-8 by default."""
    figures: tuple[SourceFigures, ...] = ()
    """What was written, by source."""


def scan_group(
    group: CorpusGroup,
    *,
    corpus: CorpusConfig,
    output_dir: Path,
    temporary: Temporary,
    report: Callable[[int], None],
    sampling: Sampling = EVERY,
    place_of: Callable[[InputFile], Path] = lambda file: Path(file.path),
) -> ScanOutput:
    """Scans all inputs of a group and publishes its files; on an error nothing is left behind.

    Args:
        output_dir: the artifact's folder.
        temporary: gives paths for unfinished files.
        report: takes the raw bytes done so far.
        sampling: which documents the figures look at closely.
        place_of: tells where an input lies on this machine.

    Raises:
        InputError: an input changed since it was planned, or cannot be read.
    """
    with Sink(group.index, corpus=corpus, output_dir=output_dir, temporary=temporary, sampling=sampling) as sink:
        return sink.publish(faults=judge_records(group, corpus=corpus, sink=sink, report=report, place_of=place_of))


def judge_records(
    group: CorpusGroup,
    *,
    corpus: CorpusConfig,
    sink: "Sink",
    report: Callable[[int], None],
    place_of: Callable[[InputFile], Path] = lambda file: Path(file.path),
) -> tuple[FileFault, ...]:
    """Reads all inputs of a group, hands the sink what becomes of each record, and returns what stops the stage. Args, raises: see `scan_group`."""
    sources = dict(zip(corpus.source_names, corpus.sources, strict=True))
    faults: list[FileFault] = []
    done_bytes = 0
    with _no_collector():
        for file in group.inputs:
            source = sources[file.source]
            reading = reading_of(file.path, source, rules=corpus.rules, encoding=corpus.encoding)
            rules = DocumentRules(corpus.rules, text_column=source.text_column, kind=reading.kind)
            intake = FileIntake(file, rules=rules, text_column=source.text_column, sink=sink)
            with HashingFile(place_of(file)) as raw:
                for batch in read_batches(raw, reading):
                    intake.take_all(with_conversations(batch, column=source.text_column) if source.kind == "chat" else batch)
                    report(done_bytes + raw.bytes_read)
                _check_unchanged(raw, file)
            faults += intake.finish()
            sink.note_encoding(file, reading)
            done_bytes += file.size
    return tuple(faults)


@contextlib.contextmanager
def _no_collector() -> Iterator[None]:
    """Switches the search for cycles off: records hold none, and every batch of them would be looked through in vain."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


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

    def __init__(self, group: int, *, corpus: CorpusConfig, output_dir: Path, temporary: Temporary, sampling: Sampling = EVERY) -> None:
        """Args: see `scan_group`. Files are created with their first row."""
        self._group = group
        self._drop_duplicates = corpus.rules.drop_duplicates
        self._splitter = Splitter(corpus.splits)
        self._figures = FiguresTally(sampling, keeps_duplicates=not corpus.rules.drop_duplicates)
        table = partial(TableFile, output_dir=output_dir, temporary=temporary)
        self._accepted = {
            split: table(accepted_name(group, split), schema=ACCEPTED_SCHEMA, on_rows=partial(self._figures.accept, split=split)) for split in SPLITS
        }
        self._quarantine = table(quarantine_name(group), schema=QUARANTINE_SCHEMA, on_rows=self._figures.refuse)
        self._tallies: dict[str, SourceTally] = {}
        self._sample = SampleTally()
        self._seen = SeenHashes(REMEMBERED_DOCUMENTS)
        self._encodings: list[FileEncoding] = []

    def tally(self, source: str) -> SourceTally:
        """Returns the counts of one source."""
        return self._tallies.setdefault(source, SourceTally(source))

    def note_encoding(self, file: InputFile, reading: Reading) -> None:
        """Takes down what a file was read as, where the recipe left that open or said another encoding than UTF-8."""
        decoding = reading.decoding
        if reading.kind == "parquet" or decoding.declared == "utf-8":
            return
        encoding, evidence = decoding.outcome
        self._encodings.append(FileEncoding(source=file.source, relative_path=file.relative_path, encoding=encoding, evidence=evidence))
        self.tally(file.source).encodings[encoding or "unknown"] += 1

    def quarantine(self, row: QuarantineRow) -> None:
        """Takes a refused record."""
        self._quarantine.add(row, size=len(row.detail) + len(row.excerpt) + ROW_OVERHEAD_BYTES)

    def accept(self, row: AcceptedRow, *, digest: bytes, chars: int, tally: SourceTally) -> None:
        """Takes a document and counts it."""
        split = self._splitter.split_of(digest)
        self._accepted[split].add(row, size=len(row.text) + len(row.extra or b"") + ROW_OVERHEAD_BYTES)
        self._sample.offer(digest, row, chars=chars, split=split)
        tally.accepted[split].add(chars=chars, text_bytes=len(row.text))

    def accept_all(self, columns: Columns, kept: NDArray[np.bool_], *, hashes: NDArray[np.uint8], place: Place, tally: SourceTally) -> None:
        """Takes some of a file's records, at least one, and counts them.

        Args:
            columns: the records.
            kept: which of them are documents, [records].
            hashes: of each record's text, [records, 16].
            place: source and path, as UTF-8.
            tally: of their source.
        """
        members = {split: is_member & kept for split, is_member in self._splitter.members_of(hashes).items()}
        for split, is_member in members.items():
            if is_member.any():
                rows = accepted_rows(columns, is_member, hashes=hashes, place=place)
                text_sizes = sizes_of(rows.column("text"))
                self._accepted[split].add_all(rows, sizes=text_sizes + sizes_of(rows.column("extra")) + ROW_OVERHEAD_BYTES)
                tally.accepted[split].add_all(chars=columns.chars[is_member], text_bytes=int(text_sizes.sum()))
        documents = np.flatnonzero(kept)
        for index in documents[self._sample.wanted(sample_keys(hashes[documents]))].tolist():
            digest = hashes[index].tobytes()
            row = AcceptedRow(digest.hex().encode(), *place, columns.first_row + index, columns.data[index], None)
            split = next(split for split, is_member in members.items() if is_member[index])
            self._sample.offer(digest, row, chars=int(columns.chars[index]), split=split)

    def repeats_among(self, hashes: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Returns which documents came before, earlier or further up among these, as far as hashes are remembered; remembers all.

        Args:
            hashes: of their texts, [documents, 16].
        """
        return self._seen.repeats(hashes) if self._drop_duplicates else np.zeros(len(hashes), dtype=np.bool_)

    def publish(self, *, faults: tuple[FileFault, ...]) -> ScanOutput:
        """Completes all files and returns what the group amounts to."""
        entries = {split: table.publish() for split, table in self._accepted.items()}
        quarantine = self._quarantine.publish()
        stats = tuple(tally.stats() for tally in self._tallies.values())
        accepted = []
        for split, entry in entries.items():
            if entry is not None:
                lengths = merge_lengths(part.accepted[split] for part in stats)
                accepted.append(AcceptedFile(group=self._group, split=split, file=entry, documents=lengths.documents, text_bytes=lengths.text_bytes))
        return ScanOutput(
            group=self._group,
            accepted=tuple(accepted),
            quarantine=quarantine,
            stats=stats,
            faults=faults,
            sample=self._sample.documents(),
            may_repeat=self._seen.has_forgotten,
            encodings=tuple(self._encodings),
            figures=self._figures.figures(),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for table in (*self._accepted.values(), self._quarantine):
            table.discard()
