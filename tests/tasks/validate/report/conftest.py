"""Figures of small corpora, made as the stage makes them: by counting rows."""

from collections.abc import Mapping, Sequence
from typing import Any

from schemas.manifest import SPLITS, Split
from tasks.validate.figures.corpus import corpus_figures
from tasks.validate.figures.tally import FiguresTally
from tasks.validate.problem import Reason
from tasks.validate.stats import CorpusStats, LengthTally, SourceStats, corpus_stats
from tests.tasks.validate.figures.conftest import accepted_rows, refused_rows

Documents = Mapping[str, Sequence[tuple[str, dict[str, Any] | None]]]
"""Source → (text, other columns)."""


def stats_of(documents: Documents, *, refused: Mapping[str, Mapping[Reason, int]] | None = None, keeps_duplicates: bool = False) -> CorpusStats:
    """Returns the figures of documents (one of 10 is held out, in turn) and of so many refused records by source and reason."""
    tally = FiguresTally(keeps_duplicates=keeps_duplicates)
    counts = []
    for source, found in documents.items():
        reasons = (refused or {}).get(source, {})
        lengths: dict[Split, LengthTally] = {split: LengthTally() for split in SPLITS}
        splits: dict[Split, list[tuple[str, dict[str, Any] | None]]] = {split: [] for split in SPLITS}
        for index, (text, extra) in enumerate(found):
            split = SPLITS[0] if index % 10 else SPLITS[1 + index // 10 % 2]
            lengths[split].add(chars=len(text), text_bytes=len(text.encode()))
            splits[split].append((text, extra))
        for split, rows in splits.items():
            if rows:
                tally.accept(accepted_rows([text for text, _ in rows], source=source, extras=[extra for _, extra in rows]), split=split)
        records = [("bad.jsonl", row, reason.value, f"doc_id {row % 2:032x}") for reason, count in reasons.items() for row in range(1, count + 1)]
        if records:
            tally.refuse(refused_rows(records, source=source))
        size = sum(len(text.encode()) for text, _ in found)
        accepted = {split: each.lengths() for split, each in lengths.items()}
        read = len(found) + len(records)
        by_reason = {reason.value: count for reason, count in reasons.items()}
        counts.append(SourceStats(source=source, files=1, raw_bytes=size, read=read, reasons=by_reason, accepted=accepted))
    figures = corpus_figures(tally.figures(), source_names=tuple(documents))
    return corpus_stats(counts, source_names=tuple(documents), figures=figures)


def even(number: int, *, length: int = 400, word: str = "water ") -> list[tuple[str, dict[str, Any] | None]]:
    """Returns different documents without other columns, of lengths about `length`."""
    return [(f"{index} " + (word * length)[: length + index % 50], None) for index in range(number)]
