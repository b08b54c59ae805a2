"""Which held-out documents are evaluated: chosen by content hash, so the choice is stable, fair to all sources, and bounded in memory."""

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import xxhash

from schemas.artifact import FileEntry
from schemas.errors import InputError
from tasks.recorded_file import verified_path
from tasks.tokenizer.corpus import open_corpus

_BATCH_ROWS = 64


@dataclass(frozen=True)
class Document:
    """A held-out document."""

    text: str
    source: str

    @property
    def num_bytes(self) -> int:
        """UTF-8 bytes."""
        return len(self.text.encode())


def select(documents: Iterable[Document], *, max_bytes: int) -> tuple[Document, ...]:
    """Returns documents in order of their content hash, as many as fit into `max_bytes` UTF-8 bytes, at least one if there is one.

    Holds little more than `max_bytes` in memory, however many documents are offered.
    """
    heap: list[tuple[int, int, Document]] = []  # largest hash on top; the middle entry breaks ties without comparing documents
    total = 0
    for number, document in enumerate(documents):
        key = xxhash.xxh3_128(document.text.encode()).intdigest()
        heapq.heappush(heap, (-key, -number, document))
        total += document.num_bytes
        while len(heap) > 1 and total - heap[0][2].num_bytes >= max_bytes:
            total -= heapq.heappop(heap)[2].num_bytes
    chosen: list[Document] = []
    used = 0
    for _, _, document in sorted(heap, key=lambda entry: (-entry[0], -entry[1])):
        used += document.num_bytes
        if chosen and used > max_bytes:
            break
        chosen.append(document)
    return tuple(chosen)


def read_test_split(corpus_dir: Path, *, manifest: FileEntry) -> Iterator[Document]:
    """Yields the documents of the `test` split of a `validate` artifact, each file checked against the manifest first.

    Args:
        corpus_dir: local folder of the artifact.
        manifest: entry of its `manifest.json`, from its record.

    Raises:
        InputError: the split is empty.
        VerificationError: a file is missing or its bytes changed.
    """
    import pyarrow.parquet as pq

    corpus = open_corpus(corpus_dir, manifest=manifest)
    files = corpus.manifest.of_split("test")
    if not any(file.documents for file in files):
        mend = "raise corpus.splits.test, or give more documents"
        raise InputError("the test split is empty", why=f"{corpus.manifest.accepted} documents were accepted, none fell into it", mend=mend)
    for file in files:
        with pq.ParquetFile(verified_path(corpus_dir, file.file, subject="accepted corpus")) as parquet:
            for batch in parquet.iter_batches(batch_size=_BATCH_ROWS, columns=["source", "text"]):
                for row in batch.to_pylist():
                    yield Document(text=row["text"], source=row["source"])
