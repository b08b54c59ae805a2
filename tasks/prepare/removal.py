"""Rewriting the files of a group without its duplicates. Files of the group that hold none stay as they are, byte for byte."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

from schemas.artifact import FileEntry
from schemas.frozen import Frozen
from schemas.manifest import SPLITS, AcceptedFile, Split
from tasks.prepare.filtering import FilterOutput
from tasks.prepare.rows import REMOVED_NAME, kept_name, read_documents
from tasks.prepare.stats import SourceTally, without
from tasks.recorded_file import verified_path
from tasks.validate.corpus_files import ACCEPTED_SCHEMA, QUARANTINE_SCHEMA, ROW_OVERHEAD_BYTES, AcceptedRow, QuarantineRow, TableFile, Temporary
from tasks.validate.problem import excerpt
from tasks.validate.stats import SourceStats


class RemovalOutput(Frozen):
    """What a rewritten group tells the stage (`output` of its item record)."""

    group: int
    """The group."""
    splits: tuple[Split, ...]
    """The splits that were rewritten."""
    accepted: tuple[AcceptedFile, ...]
    """The new files of those splits; a split of which nothing is left has none."""
    sources: tuple[SourceStats, ...]
    """Of those splits: by source what is left, and what was removed by reason."""
    quarantine: FileEntry
    """The removed documents."""


def remove_duplicates(accepted: Sequence[AcceptedFile], listed: FileEntry, *, output_dir: Path, temporary: Temporary) -> RemovalOutput:
    """Rewrites the files of one group without what is listed, and quarantines that.

    Args:
        accepted: the group's files after the steps.
        listed: what is to be removed from any group.
        output_dir: the artifact's folder, where all of them are.
        temporary: gives paths for unfinished files.

    Raises:
        VerificationError: a file is missing or damaged.
    """
    group = accepted[0].group
    rows = pq.read_table(verified_path(output_dir, listed, subject="list of duplicates"), filters=[("group", "==", group)])
    files: list[AcceptedFile] = []
    splits: list[Split] = []
    tallies: dict[str, SourceTally] = {}
    quarantine = TableFile(REMOVED_NAME.format(group=group), output_dir=output_dir, temporary=temporary, schema=QUARANTINE_SCHEMA)
    try:
        for file in accepted:
            own = rows.filter(pc.equal(rows["split"], file.split)).to_pylist()
            if own:
                splits.append(file.split)
                removals = {row["position"]: (row["reason"], row["detail"]) for row in own}
                files += _rewrite(file, removals, output_dir=output_dir, temporary=temporary, quarantine=quarantine, tallies=tallies)
        entry = quarantine.publish()
    finally:
        quarantine.discard()
    assert entry is not None, f"group {group} was planned for rewriting and holds no duplicate"
    sources = tuple(tally.stats() for tally in tallies.values())
    return RemovalOutput(group=group, splits=tuple(splits), accepted=tuple(files), sources=sources, quarantine=entry)


def _rewrite(
    file: AcceptedFile,
    removals: Mapping[int, tuple[str, str]],
    *,
    output_dir: Path,
    temporary: Temporary,
    quarantine: TableFile,
    tallies: dict[str, SourceTally],
) -> list[AcceptedFile]:
    """Writes one file anew without the rows at the positions of `removals`; returns the new file, or nothing when no row is left."""
    documents = text_bytes = position = 0
    table = TableFile(kept_name(file.group, file.split), output_dir=output_dir, temporary=temporary, schema=ACCEPTED_SCHEMA)
    try:
        for part in read_documents(output_dir, file.file):
            for row in part.rows:
                tally = tallies.setdefault(row.source.decode(), SourceTally(row.source.decode()))
                removal = removals.get(position)
                position += 1
                if removal is not None:
                    tally.reasons[removal[0]] += 1
                    _refuse(row, *removal, quarantine=quarantine)
                    continue
                tally.keep(row.text.decode(), text_bytes=len(row.text), split=file.split)
                documents += 1
                text_bytes += len(row.text)
                table.add(row, size=len(row.text) + len(row.extra or b"") + ROW_OVERHEAD_BYTES)
        entry = table.publish()
    finally:
        table.discard()
    return [] if entry is None else [AcceptedFile(group=file.group, split=file.split, file=entry, documents=documents, text_bytes=text_bytes)]


def _refuse(row: AcceptedRow, reason: str, detail: str, *, quarantine: TableFile) -> None:
    shown = excerpt(row.text).encode()
    quarantine.add(
        QuarantineRow(row.source, row.path, row.row, reason.encode(), detail.encode(), shown), size=len(detail) + len(shown) + ROW_OVERHEAD_BYTES
    )


def without_duplicates(filtered: FilterOutput, removal: RemovalOutput | None) -> FilterOutput:
    """Returns what a group amounts to after its duplicates were removed; unchanged without a removal. Pure."""
    if removal is None:
        return filtered
    rewritten = {file.split: file for file in removal.accepted}
    accepted = {file.split: file for file in filtered.accepted if file.split not in removal.splits} | rewritten
    found = {stats.source: stats for stats in removal.sources}
    sources = tuple(
        without(stats, removed=found[stats.source].reasons, left=found[stats.source].accepted, splits=removal.splits)
        if stats.source in found
        else stats
        for stats in filtered.sources
    )
    return filtered.model_copy(update={"accepted": tuple(accepted[split] for split in SPLITS if split in accepted), "sources": sources})
