"""Which languages there are: of a few documents per source and split, those with the lowest hashes, as identifying all would cost more than the scan.

A share is right to about 7 percentage points (one standard deviation). Merges exactly: the lowest of all are among the lowest of the parts.
"""

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final

import numpy as np
import pyarrow as pa

from tasks.validate.figures.arrow import bytes_of
from tasks.validate.figures.distinct import hashes_of

KEPT_DOCUMENTS: Final = 50
UNKNOWN: Final = "unknown"
"""Of a text in which nothing was recognised."""
_LOOKED_AT_CHARS: Final = 400
_MOST_BYTES_PER_CHAR: Final = 4


class LanguageTally:
    """Keeps how the documents with the lowest hashes begin, and identifies their languages in the end."""

    def __init__(self) -> None:
        self._kept: dict[bytes, str] = {}
        self._bound = b"~"  # above every hexadecimal digit

    def add(self, rows: pa.RecordBatch) -> None:
        """Takes rows of `ACCEPTED_SCHEMA`."""
        if not rows.num_rows:
            return
        hashes = hashes_of(bytes_of(rows.column("doc_id")))
        low = np.flatnonzero(hashes < self._bound)
        _, first = np.unique(hashes[low], return_index=True)  # of copies the first; in order
        for position in low[first[:KEPT_DOCUMENTS]].tolist():
            head = bytes_of(rows.column("text").slice(position, 1))[: _LOOKED_AT_CHARS * _MOST_BYTES_PER_CHAR]
            self._kept[bytes(hashes[position])] = head.tobytes().decode(errors="ignore")[:_LOOKED_AT_CHARS]
        if len(self._kept) >= KEPT_DOCUMENTS:
            self._kept = {key: self._kept[key] for key in heapq.nsmallest(KEPT_DOCUMENTS, self._kept)}
            self._bound = max(self._kept)

    def languages(self) -> dict[int, str]:
        """Returns the language of each of these documents (ISO 639-1), by its hash."""
        return {int(key, 16): _language_of(self._kept[key]) for key in sorted(self._kept)}


def merge_languages(parts: Iterable[Mapping[int, str]]) -> dict[int, str]:
    """Returns the languages of the documents with the lowest hashes of several sets."""
    together = {key: code for part in parts for key, code in part.items()}
    return {key: together[key] for key in heapq.nsmallest(KEPT_DOCUMENTS, together)}


def language_counts(languages: Mapping[int, str]) -> dict[str, int]:
    """Returns documents by language, the most frequent first."""
    return dict(sorted(Counter(languages.values()).items(), key=lambda item: (-item[1], item[0])))


def _language_of(text: str) -> str:
    """Returns the language that most of a text is in."""
    from tasks.prepare.language import language_shares  # CLD2 with its tables: only where a text is looked at

    return next(iter(language_shares(text)), UNKNOWN)
