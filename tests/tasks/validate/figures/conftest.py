"""Rows as they are written, and figures of them."""

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import xxhash

from tasks.validate.corpus_files import ACCEPTED_SCHEMA, QUARANTINE_SCHEMA
from tasks.validate.figures.corpus import SourceFigures
from tasks.validate.figures.tally import FiguresTally


def accepted_rows(texts: Sequence[str], *, source: str = "prose", extras: Sequence[dict[str, Any] | None] | None = None) -> pa.Table:
    """Returns documents as they are written."""
    rows = [
        {
            "doc_id": xxhash.xxh3_128_hexdigest(text.encode()),
            "source": source,
            "path": "a.jsonl",
            "row": row,
            "text": text,
            "extra": None if extra is None else json.dumps(extra),
        }
        for row, (text, extra) in enumerate(zip(texts, extras or [None] * len(texts), strict=True), start=1)
    ]
    return pa.Table.from_pylist(rows, schema=ACCEPTED_SCHEMA)


def refused_rows(records: Sequence[tuple[str, int, str, str]], *, source: str = "prose") -> pa.Table:
    """Returns quarantined records (path, row, reason, detail) as they are written."""
    rows = [
        {"source": source, "path": path, "row": row, "reason": reason, "detail": detail, "excerpt": f"begins {path} {row}"}
        for path, row, reason, detail in records
    ]
    return pa.Table.from_pylist(rows, schema=QUARANTINE_SCHEMA)


def tallied(*tables: pa.Table, keeps_duplicates: bool = False) -> tuple[SourceFigures, ...]:
    """Returns the figures of row groups, documents in the train split."""
    tally = FiguresTally(keeps_duplicates=keeps_duplicates)
    for table in tables:
        if table.schema == ACCEPTED_SCHEMA:
            tally.accept(table, split="train")
        else:
            tally.refuse(table)
    return tally.figures()
