"""The steps that look at one document at a time, over one corpus group: accepted documents in; what is left, quarantine and figures out.

Memory is bounded by one row group, not by the group's size. A document keeps the split that `validate` gave it, whatever becomes of its text:
editing the preparation moves nothing from the test split into training.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from schemas.artifact import FileEntry
from schemas.corpus_config import CorpusConfig
from schemas.frozen import Frozen
from schemas.manifest import AcceptedFile, Split
from schemas.preparation_config import DuplicatesConfig
from tasks.prepare.conversations import spoken
from tasks.prepare.ngram_index import NgramIndex
from tasks.prepare.rows import Documents, read_documents, signatures_name
from tasks.prepare.signature_file import SignatureFile
from tasks.prepare.stats import SourceTally, StepStats, StepTally, merge_steps
from tasks.prepare.steps import Outcome, Step, steps_of
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
from tasks.validate.documents import digest_of
from tasks.validate.problem import excerpt
from tasks.validate.stats import SourceStats


class FilterOutput(Frozen):
    """What a group amounts to after the steps (`output` of its item record)."""

    group: int
    """The group."""
    accepted: tuple[AcceptedFile, ...]
    """What is left, by split."""
    quarantine: FileEntry | None
    """What was refused."""
    signatures: FileEntry | None
    """What the documents are compared by; null where duplicates are not looked for, or nothing is left."""
    steps: tuple[StepStats, ...]
    """Figures by step."""
    sources: tuple[SourceStats, ...]
    """Figures by source."""
    absent: tuple[Split, ...] = ()
    """Splits whose file is not there: they were taken over from an artifact that has them without their duplicates alone."""


def filter_group(
    files: Sequence[AcceptedFile],
    *,
    folder: Path,
    config: CorpusConfig,
    ngrams: NgramIndex | None,
    output_dir: Path,
    temporary: Temporary,
    report: Callable[[int], None],
) -> FilterOutput:
    """Applies the declared steps to all files of a group and publishes what comes out; on an error nothing is left behind.

    Args:
        files: the group's accepted files, in the order of the splits.
        folder: of the accepted corpus.
        config: the recipe's section of the corpus.
        ngrams: of the texts to compare with, where decontamination is declared.
        output_dir: the artifact's folder.
        temporary: gives paths for unfinished files.
        report: takes the text bytes done so far.

    Raises:
        VerificationError: an accepted file is missing or damaged.
    """
    steps: list[tuple[StepStats, ...]] = []
    done_bytes = 0
    with _Outputs(files[0].group, config=config.preparation.duplicates, output_dir=output_dir, temporary=temporary) as outputs:
        for file in files:
            pipelines = Pipelines(config, split=file.split, ngrams=ngrams)
            for documents in read_documents(folder, file.file):
                outputs.take(documents, pipelines.apply(documents), split=file.split)
                done_bytes += documents.num_bytes
                report(done_bytes)
            outputs.finish(file.split)
            steps += pipelines.stats()
        return outputs.publish(merge_steps(steps))


class Processed(NamedTuple):
    """What became of one document."""

    before: str
    """Its text when it came to the step that had the last word."""
    outcome: Outcome
    """That step's outcome."""
    compared: str
    """What it is compared by with others: its text without markup of ours."""


class Pipeline:
    """Steps one after the other: each sees what the ones before it left."""

    def __init__(self, steps: Sequence[Step]) -> None:
        """Args: steps: in order."""
        self._steps = tuple((step, StepTally(step.name)) for step in steps)

    def apply(self, texts: Sequence[str]) -> list[tuple[str, Outcome]]:
        """Returns for each text what it was when it came to the step that had the last word, and that step's outcome."""
        found = [(text, Outcome(text)) for text in texts]
        for step, tally in self._steps if texts else ():
            left = [index for index, (_, outcome) in enumerate(found) if outcome.text is not None]
            before = [outcome.text for _, outcome in found if outcome.text is not None]
            for index, text, outcome in zip(left, before, step.apply(before), strict=True):
                tally.add(text, outcome)
                found[index] = (text, outcome)
        return found

    def stats(self) -> tuple[StepStats, ...]:
        """Returns what each step did so far."""
        return tuple(tally.stats() for _, tally in self._steps)


class Pipelines:
    """The declared steps for each kind of document of one split: prose, and conversations."""

    def __init__(self, config: CorpusConfig, *, split: Split, ngrams: NgramIndex | None = None) -> None:
        """Args: see `filter_group`."""
        self._conversations = frozenset(name.encode() for name in config.conversations)
        kinds = (False, True) if config.conversations else (False,)
        self._by_kind = {talk: Pipeline(steps_of(config.preparation, split=split, ngrams=ngrams, talk=talk)) for talk in kinds}

    def is_talk(self, row: AcceptedRow) -> bool:
        """Whether a document is a conversation."""
        return row.source in self._conversations

    def apply(self, documents: Documents) -> list[Processed]:
        """Returns what becomes of each document, in order."""
        talks, texts = [self.is_talk(row) for row in documents.rows], documents.texts
        found: dict[int, Processed] = {}
        for talk, pipeline in self._by_kind.items():
            own = [index for index, each in enumerate(talks) if each is talk]
            for index, (before, outcome) in zip(own, pipeline.apply([texts[index] for index in own]), strict=True):
                compared = spoken(outcome.text) if talk and outcome.text is not None else outcome.text or ""
                found[index] = Processed(before, outcome, compared)
        return [found[index] for index in range(len(texts))]

    def stats(self) -> list[tuple[StepStats, ...]]:
        """Returns what each step did so far, by kind."""
        return [pipeline.stats() for pipeline in self._by_kind.values()]


class _Outputs:
    """The files of one group in the making."""

    def __init__(self, group: int, *, config: DuplicatesConfig, output_dir: Path, temporary: Temporary) -> None:
        """Args: see `filter_group`. Files are created with their first row."""
        self._group = group
        self._output_dir, self._temporary = output_dir, temporary
        self._quarantine = TableFile(quarantine_name(group), output_dir=output_dir, temporary=temporary, schema=QUARANTINE_SCHEMA)
        self._accepted: TableFile | None = None
        self._files: list[AcceptedFile] = []
        self._sources: dict[str, SourceTally] = {}
        self._signatures = SignatureFile(signatures_name(group), config=config, output_dir=output_dir, temporary=temporary)
        self._documents = self._text_bytes = 0

    def take(self, documents: Documents, found: Sequence[Processed], *, split: Split) -> None:
        """Takes some documents of one split and what became of each."""
        if self._accepted is None:
            name = accepted_name(self._group, split)
            self._accepted = TableFile(name, output_dir=self._output_dir, temporary=self._temporary, schema=ACCEPTED_SCHEMA)
        kept: list[AcceptedRow] = []
        texts: list[str] = []
        for row, (before, outcome, compared) in zip(documents.rows, found, strict=True):
            tally = self._tally(row)
            if outcome.text is None:
                tally.reasons[outcome.reason] += 1
                self._refuse(row, outcome, text=before)
                continue
            data = outcome.text.encode()
            kept.append(row if data == row.text else row._replace(doc_id=digest_of(data).hex().encode(), text=data))
            texts.append(compared)
            tally.keep(outcome.text, text_bytes=len(data), split=split)
        if kept:
            for row in kept:
                self._accepted.add(row, size=len(row.text) + len(row.extra or b"") + ROW_OVERHEAD_BYTES)
            self._signatures.add([row.doc_id for row in kept], texts)
        self._documents += len(kept)
        self._text_bytes += sum(len(row.text) for row in kept)

    def finish(self, split: Split) -> None:
        """Completes the file of a split, all of whose documents were taken."""
        entry = self._accepted.publish() if self._accepted is not None else None
        if entry is not None:
            file = AcceptedFile(group=self._group, split=split, file=entry, documents=self._documents, text_bytes=self._text_bytes)
            self._files.append(file)
        self._accepted, self._documents, self._text_bytes = None, 0, 0

    def publish(self, steps: tuple[StepStats, ...]) -> FilterOutput:
        """Completes all files and returns what the group amounts to."""
        return FilterOutput(
            group=self._group,
            accepted=tuple(self._files),
            quarantine=self._quarantine.publish(),
            signatures=self._signatures.publish(),
            steps=steps,
            sources=tuple(tally.stats() for tally in self._sources.values()),
        )

    def _tally(self, row: AcceptedRow) -> SourceTally:
        name = row.source.decode()
        tally = self._sources.setdefault(name, SourceTally(name))
        tally.read += 1
        return tally

    def _refuse(self, row: AcceptedRow, outcome: Outcome, *, text: str) -> None:
        detail, shown = outcome.detail.encode(), excerpt(text).encode()
        refused = QuarantineRow(row.source, row.path, row.row, outcome.reason.encode(), detail, shown)
        self._quarantine.add(refused, size=len(detail) + len(shown) + ROW_OVERHEAD_BYTES)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for table in (self._accepted, self._quarantine, self._signatures):
            if table is not None:
                table.discard()
