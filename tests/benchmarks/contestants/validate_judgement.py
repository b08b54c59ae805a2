"""Reading and judging alone, as in the `validate` stage: its readers, rules and search for duplicates, and the bounds of the verdict.

Usage: SOURCE_PATTERN OUT_FOLDER
"""

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.config import RunConfig
from tasks.file_hashes import FileHashes
from tasks.validate.accepted_rows import Place, sizes_of
from tasks.validate.checks import corpus_checks, corpus_row, verdict_of
from tasks.validate.corpus_files import AcceptedRow, QuarantineRow
from tasks.validate.grouping import plan_groups
from tasks.validate.records import Columns
from tasks.validate.scan import Sink, judge_records
from tasks.validate.sources import plan_inputs
from tasks.validate.stats import SourceStats, SourceTally, merge_stats
from tests.benchmarks.contestants.measuring import measured, peak_mb
from tests.fakes.in_process_work import config_with


class _Counts(Sink):
    """Counts what the stage counts and keeps nothing; one for all groups, so that it sees every duplicate."""

    def accept_all(self, columns: Columns, kept: NDArray[np.bool_], *, hashes: NDArray[np.uint8], place: Place, tally: SourceTally) -> None:
        tally.accepted["train"].add_all(chars=columns.chars[kept], text_bytes=int(sizes_of(columns.texts)[kept].sum()))

    def accept(self, row: AcceptedRow, *, digest: bytes, chars: int, tally: SourceTally) -> None:
        tally.accepted["train"].add(chars=chars, text_bytes=len(row.text))

    def quarantine(self, row: QuarantineRow) -> None:
        pass


def main() -> None:
    """Judges once."""
    out = Path(sys.argv[2])
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    config = config_with(corpus={"sources": [sys.argv[1]]})
    import pyarrow.parquet  # noqa: F401  # off the clock, as what the peer imports

    try:
        measured(lambda: judged(config, out), facts=lambda total: facts(total, config))
    finally:
        shutil.rmtree(out, ignore_errors=True)


def judged(config: RunConfig, out: Path) -> SourceStats:
    """Returns the figures of the corpus, from which the verdict follows."""
    corpus = config.corpus
    with FileHashes(out / "file-hashes.sqlite") as hashes:
        inputs = plan_inputs(config, hashes)
    plan = plan_groups(inputs, group_bytes=corpus.group_bytes, source_names=corpus.source_names)
    with _Counts(0, corpus=corpus, output_dir=out, temporary=out.joinpath) as sink:
        for group in plan.groups:
            assert not judge_records(group, corpus=corpus, sink=sink, report=lambda _: None)
        output = sink.publish(faults=())
    assert not output.may_repeat, "more documents than are remembered at once"
    return merge_stats(output.stats, source="total")


def facts(total: SourceStats, config: RunConfig) -> dict[str, Any]:
    """Returns the verdict by the stage's own bounds, and the refused records by reason."""
    row = corpus_row(total)
    is_successful = True
    for check in corpus_checks(config.corpus.rules, previous=None):
        value = row[check.column]
        assert isinstance(value, int | float), check
        is_successful &= (check.minimum is None or check.minimum <= value) and (check.maximum is None or value <= check.maximum)
    verdict = verdict_of(is_successful=is_successful, quarantined=total.num_quarantined)
    return {"verdict": verdict.value, "reasons": total.reasons, "accepted": total.num_accepted, "peak_mb": peak_mb()}


if __name__ == "__main__":
    main()
