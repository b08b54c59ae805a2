"""Which held-out documents are evaluated: chosen by content hash, so the choice is stable, fair to all sources, and bounded in memory."""

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import xxhash

from cluster.storage import hash_file
from schemas.errors import InputError, VerificationError
from schemas.manifest import CorpusManifest

_BATCH_ROWS = 256


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


def read_test_split(corpus_dir: Path) -> Iterator[Document]:
    """Yields the documents of the `test` split of a `validate` artifact, each file checked against the manifest first.

    Raises:
        InputError: the split is empty.
        VerificationError: a file's bytes changed.
    """
    import pyarrow.parquet as pq

    manifest = CorpusManifest.model_validate_json((corpus_dir / "manifest.json").read_bytes())
    files = manifest.of_split("test")
    if not any(file.documents for file in files):
        mend = "raise corpus.splits.test, or give more documents"
        raise InputError("the test split is empty", why=f"{manifest.accepted} documents were accepted, none fell into it", mend=mend)
    for file in files:
        path = corpus_dir / file.file.path
        if hash_file(path) != file.file.xxh3:
            raise VerificationError((f"{file.file.path}: its bytes are not what was committed",), subject=str(corpus_dir))
        with pq.ParquetFile(path) as parquet:
            for batch in parquet.iter_batches(batch_size=_BATCH_ROWS, columns=["source", "text"]):
                for row in batch.to_pylist():
                    yield Document(text=row["text"], source=row["source"])
