"""Documents that are in two groups, or far apart in one: found by one DuckDB pass over the hashes, removed by rewriting the groups concerned.

Of equal documents the first stays, by (group, source, path, row). Equal texts are in the same split, so splits are looked at one by one.
Memory is bounded: DuckDB spills to disk above its limit, and a file is rewritten row group by row group.
"""

from collections import Counter
from collections.abc import Iterator, Sequence, Set
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from schemas.artifact import FileEntry
from schemas.frozen import Frozen
from schemas.manifest import SPLITS, AcceptedFile, Split
from tasks.validate.corpus_files import (
    ACCEPTED_SCHEMA,
    QUARANTINE_SCHEMA,
    ROW_OVERHEAD_BYTES,
    AcceptedRow,
    QuarantineRow,
    TableFile,
    Temporary,
    deduplicated_name,
    duplicates_name,
)
from tasks.validate.figures.corpus import SourceFigures, without_removed
from tasks.validate.figures.sampling import EVERY, Sampling
from tasks.validate.figures.tally import FiguresTally
from tasks.validate.problem import Reason, excerpt
from tasks.validate.scan import ScanOutput
from tasks.validate.stats import Lengths, LengthTally, SourceStats

if TYPE_CHECKING:
    import duckdb

REPEATS_NAME = "repeats.parquet"
_REPEATS_SCHEMA = pa.schema(
    [pa.field(name, pa.string() if name == "split" else pa.int64(), nullable=False) for name in ("group", "split", "position")]
)
_REPEAT_BYTES = 200
_MEMORY_LIMIT = "1GB"


class RepeatsOutput(Frozen):
    """What the search tells the stage (`output` of its item record)."""

    file: FileEntry | None
    """The repeats: group, split, position within the accepted file; null without any."""
    groups: dict[int, int]
    """Documents to remove, by group."""


class RemovalOutput(Frozen):
    """What a rewritten group tells the stage (`output` of its item record)."""

    group: int
    """The group."""
    splits: tuple[Split, ...]
    """The splits that were rewritten."""
    accepted: tuple[AcceptedFile, ...]
    """The new files of those splits; a split of which nothing is left has none."""
    lengths: dict[str, dict[Split, Lengths]]
    """Source → figures of what is left in the rewritten splits."""
    removed: dict[str, int]
    """Source → documents removed."""
    quarantine: FileEntry
    """The removed documents."""
    figures: tuple[SourceFigures, ...] = ()
    """What is left in the rewritten splits, and what was removed, by source."""


def find_repeats(accepted: Sequence[AcceptedFile], *, output_dir: Path, temporary: Temporary, scratch_dir: Path, threads: int) -> RepeatsOutput:
    """Finds every document whose text is in an earlier place of the corpus, and publishes the list.

    Args:
        accepted: all files of the scan.
        scratch_dir: where DuckDB may spill.
    """
    import duckdb  # here: the control half takes only types from this module, and DuckDB complains when such a process ends

    groups: Counter[int] = Counter()
    table = TableFile(REPEATS_NAME, output_dir=output_dir, temporary=temporary, schema=_REPEATS_SCHEMA)
    try:
        with duckdb.connect() as database:
            database.execute(f"SET memory_limit = '{_MEMORY_LIMIT}'")
            database.execute(f"SET threads = {max(1, threads)}")
            database.execute("SET temp_directory = $folder", {"folder": str(scratch_dir / "duckdb")})
            for split in sorted({file.split for file in accepted}):
                files = sorted((file for file in accepted if file.split == split), key=lambda file: file.group)
                for group, position in _repeats_of(database, files=files, output_dir=output_dir):
                    groups[group] += 1
                    table.add((group, split.encode(), position), size=_REPEAT_BYTES)
        entry = table.publish()
    finally:
        table.discard()
    return RepeatsOutput(file=entry, groups=dict(sorted(groups.items())))


def _repeats_of(database: "duckdb.DuckDBPyConnection", *, files: Sequence[AcceptedFile], output_dir: Path) -> Iterator[tuple[int, int]]:
    """Yields (group, position) of the repeats within one split, in order. Only hashes that come twice are ever put in order."""
    database.execute(
        """
        CREATE OR REPLACE TEMP TABLE ids AS
        WITH files AS (SELECT unnest($paths) AS filename, unnest($groups) AS grp)
        SELECT CAST(doc_id AS UUID) AS id, grp, file_row_number AS position
        FROM read_parquet($paths, filename = true, file_row_number = true) JOIN files USING (filename)
        """,
        {"paths": [str(output_dir / file.file.path) for file in files], "groups": [file.group for file in files]},
    )
    found = database.sql(
        """
        WITH twice AS (SELECT id FROM ids GROUP BY id HAVING count(*) > 1),
             placed AS (SELECT grp, position, row_number() OVER (PARTITION BY id ORDER BY grp, position) AS place FROM ids JOIN twice USING (id))
        SELECT CAST(grp AS BIGINT), CAST(position AS BIGINT) FROM placed WHERE place > 1 ORDER BY grp, position
        """
    )
    for batch in found.to_arrow_reader():
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


def remove_repeats(
    group: int, accepted: Sequence[AcceptedFile], *, output_dir: Path, temporary: Temporary, sampling: Sampling = EVERY
) -> RemovalOutput:
    """Rewrites the files of one group without its repeats, and quarantines those.

    Args:
        accepted: the group's files of the scan.
        sampling: which documents the figures look at closely.
    """
    repeats = pq.read_table(output_dir / REPEATS_NAME, filters=[("group", "==", group)])
    counts = _Counts(FiguresTally(sampling, keeps_duplicates=False))
    files, splits = [], []
    schema, on_rows = QUARANTINE_SCHEMA, counts.figures.refuse
    quarantine = TableFile(duplicates_name(group), output_dir=output_dir, temporary=temporary, schema=schema, on_rows=on_rows)
    try:
        for file in accepted:
            positions = set(repeats.filter(pc.equal(repeats["split"], file.split))["position"].to_pylist())
            if positions:
                splits.append(file.split)
                files += _rewrite(file, positions, output_dir=output_dir, temporary=temporary, quarantine=quarantine, counts=counts)
        entry = quarantine.publish()
    finally:
        quarantine.discard()
    assert entry is not None, f"group {group} was planned for rewriting and holds no repeat"
    return RemovalOutput(
        group=group,
        splits=tuple(splits),
        accepted=tuple(files),
        lengths=counts.lengths(),
        removed=dict(counts.removed),
        quarantine=entry,
        figures=counts.figures.figures(),
    )


class _Counts:
    """What is left of rewritten files, and what was removed."""

    def __init__(self, figures: FiguresTally) -> None:
        self.figures = figures
        self.left: dict[str, dict[Split, LengthTally]] = {}
        self.removed: Counter[str] = Counter()

    def keep(self, row: AcceptedRow, *, split: Split) -> None:
        """Counts a document that stays."""
        tally = self.left.setdefault(row.source.decode(), {}).setdefault(split, LengthTally())
        tally.add(chars=len(row.text.decode()), text_bytes=len(row.text))

    def lengths(self) -> dict[str, dict[Split, Lengths]]:
        return {source: {split: tally.lengths() for split, tally in tallies.items()} for source, tallies in self.left.items()}


def _rewrite(
    file: AcceptedFile, positions: Set[int], *, output_dir: Path, temporary: Temporary, quarantine: TableFile, counts: _Counts
) -> list[AcceptedFile]:
    """Writes one accepted file anew without the rows at `positions`; returns the new file, or nothing when no row is left."""
    documents = text_bytes = 0
    name, on_rows = deduplicated_name(file.group, file.split), partial(counts.figures.accept, split=file.split)
    table = TableFile(name, output_dir=output_dir, temporary=temporary, schema=ACCEPTED_SCHEMA, on_rows=on_rows)
    try:
        for position, row in enumerate(_rows(output_dir / file.file.path)):
            if position in positions:
                counts.removed[row.source.decode()] += 1
                shown = excerpt(row.text).encode()
                refused = QuarantineRow(row.source, row.path, row.row, Reason.DUPLICATE.encode(), b"doc_id " + row.doc_id, shown)
                quarantine.add(refused, size=len(shown) + ROW_OVERHEAD_BYTES)
                continue
            counts.keep(row, split=file.split)
            documents += 1
            text_bytes += len(row.text)
            table.add(row, size=len(row.text) + len(row.extra or b"") + ROW_OVERHEAD_BYTES)
        entry = table.publish()
    finally:
        table.discard()
    return [] if entry is None else [AcceptedFile(group=file.group, split=file.split, file=entry, documents=documents, text_bytes=text_bytes)]


def _rows(path: Path) -> Iterator[AcceptedRow]:
    """Yields the rows of an accepted file, one row group in memory at a time."""
    with pq.ParquetFile(path, page_checksum_verification=True) as parquet:
        for index in range(parquet.num_row_groups):
            table = parquet.read_row_group(index, columns=list(AcceptedRow._fields))
            columns = [column if pa.types.is_int64(column.type) else column.cast(pa.binary()) for column in table.columns]
            yield from map(AcceptedRow._make, zip(*(column.to_pylist() for column in columns), strict=True))


def without_repeats(scan: ScanOutput, removal: RemovalOutput | None) -> ScanOutput:
    """Returns what a group amounts to after its repeats were removed; unchanged without a removal. Pure."""
    if removal is None:
        return scan
    accepted = {file.split: file for file in scan.accepted if file.split not in removal.splits} | {file.split: file for file in removal.accepted}
    stats = tuple(_corrected(stats, removal) for stats in scan.stats)
    figures = without_removed(scan.figures, removal.figures, splits=removal.splits)
    files = tuple(accepted[split] for split in SPLITS if split in accepted)
    return scan.model_copy(update={"accepted": files, "stats": stats, "figures": figures})


def _corrected(stats: SourceStats, removal: RemovalOutput) -> SourceStats:
    reasons = Counter(stats.reasons)
    if removed := removal.removed.get(stats.source, 0):
        reasons[Reason.DUPLICATE.value] += removed
    left = removal.lengths.get(stats.source, {})
    accepted = {split: left.get(split, Lengths()) if split in removal.splits else lengths for split, lengths in stats.accepted.items()}
    return stats.model_copy(update={"reasons": dict(sorted(reasons.items())), "accepted": accepted})
