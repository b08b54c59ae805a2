"""The accepted documents that people are shown: a sample that depends on the documents alone, so that it can be merged and repeated."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from schemas.frozen import Frozen
from schemas.manifest import Split
from tasks.validate.corpus_files import AcceptedRow
from tasks.validate.documents import sample_key
from tasks.validate.problem import excerpt

SAMPLE_DOCUMENTS = 20
_EXCERPT_CHARS = 400


class SampleDocument(Frozen):
    """An accepted document that people are shown."""

    key: int
    """The sample is the documents with the lowest keys."""
    doc_id: str
    """xxh3-128 of its text, hex."""
    source: str
    """Its source."""
    path: str
    """Its file within the source."""
    row: int
    """Its place in the file."""
    split: Split
    """Its split."""
    chars: int
    """Its length."""
    excerpt: str
    """Its beginning, escaped."""


class SampleTally:
    """Keeps the documents with the lowest keys of all that pass."""

    def __init__(self) -> None:
        self._documents: dict[int, SampleDocument] = {}
        self._bound = (1 << 64) - 1

    def wanted(self, keys: NDArray[np.uint64]) -> list[int]:
        """Returns the positions of the documents that may be among the lowest, of equal ones the first."""
        low = np.flatnonzero(keys <= np.uint64(self._bound))
        _, first = np.unique(keys[low], return_index=True)
        positions: list[int] = low[first[:SAMPLE_DOCUMENTS]].tolist()
        return positions

    def offer(self, digest: bytes, row: AcceptedRow, *, chars: int, split: Split) -> None:
        """Takes the document into the sample if its key is among the lowest so far; of equal texts the first stays."""
        key = sample_key(digest)
        if key > self._bound or key in self._documents:
            return
        self._documents[key] = SampleDocument(
            key=key,
            doc_id=row.doc_id.decode(),
            source=row.source.decode(),
            path=row.path.decode(),
            row=row.row,
            split=split,
            chars=chars,
            excerpt=excerpt(row.text, limit=_EXCERPT_CHARS),
        )
        if len(self._documents) > SAMPLE_DOCUMENTS:
            del self._documents[max(self._documents)]
        if len(self._documents) == SAMPLE_DOCUMENTS:
            self._bound = max(self._documents)

    def documents(self) -> tuple[SampleDocument, ...]:
        """Returns the sample, by key."""
        return merge_samples(self._documents.values())


def merge_samples(documents: Iterable[SampleDocument]) -> tuple[SampleDocument, ...]:
    """Returns the sample of several sets of documents, given in order of their groups; of equal texts the first stays."""
    by_id: dict[str, SampleDocument] = {}
    for document in documents:
        by_id.setdefault(document.doc_id, document)
    return tuple(sorted(by_id.values(), key=lambda document: document.key)[:SAMPLE_DOCUMENTS])
