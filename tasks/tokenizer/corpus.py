"""Reading the accepted corpus: whole documents in batches of bounded memory, from files whose hash is checked first.

Imports neither prefect nor a tokenizer; pyarrow only when something is read.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import xxhash
from pydantic import ValidationError

from schemas.artifact import FileEntry
from schemas.errors import VerificationError
from schemas.manifest import AcceptedFile, CorpusManifest, Split
from tasks.recorded_file import verified_bytes, verified_path

MANIFEST_NAME = "manifest.json"
BATCH_BYTES = 16 << 20
"""Text handed over at a time, about: large enough for an encoder to keep all threads busy, small against memory."""

_ROWS_PER_READ = 64
"""Rows decoded at a time: with the largest documents that validation lets pass (10 M characters) at most a few hundred MB."""
_SPREAD = 4
"""A sample is taken from about this many times its size in files, so that it never reads a large corpus to the end."""


@dataclass(frozen=True)
class Batch:
    """Some documents, in the order of their file."""

    doc_ids: list[str]
    """Identity of each document."""
    texts: list[str]
    """Text of each document."""
    sizes: list[int]
    """UTF-8 bytes of each text."""

    @property
    def num_bytes(self) -> int:
        """UTF-8 bytes of all texts."""
        return sum(self.sizes)


@dataclass(frozen=True)
class Corpus:
    """The accepted corpus in a local folder."""

    folder: Path
    manifest: CorpusManifest

    def batches(self, file: AcceptedFile) -> Iterator[Batch]:
        """Yields the documents of one file in order, about `BATCH_BYTES` at a time.

        Raises:
            VerificationError: the file is missing, or its bytes are not those that were accepted.
        """
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        path = verified_path(self.folder, file.file, subject="accepted corpus")
        doc_ids: list[str] = []
        texts: list[str] = []
        sizes: list[int] = []
        pending = 0
        with pq.ParquetFile(path) as parquet:
            for rows in parquet.iter_batches(batch_size=_ROWS_PER_READ, columns=["doc_id", "text"]):
                lengths = pc.binary_length(rows.column("text")).to_pylist()
                doc_ids += rows.column("doc_id").to_pylist()
                texts += rows.column("text").to_pylist()
                sizes += lengths
                pending += sum(lengths)
                if pending >= BATCH_BYTES:
                    yield Batch(doc_ids=doc_ids, texts=texts, sizes=sizes)
                    doc_ids, texts, sizes, pending = [], [], [], 0
        if texts:
            yield Batch(doc_ids=doc_ids, texts=texts, sizes=sizes)

    def sample(self, split: Split, *, max_bytes: int) -> Iterator[Batch]:
        """Yields documents of a split, chosen by the hash of their id: about `max_bytes` of text, or all of it when there is less.

        The choice depends on nothing but the documents, so a corpus that grows keeps most of its sample. Never empty when the split is not.
        """
        files = _spread(self.manifest.of_split(split), max_bytes=max_bytes)
        total = sum(file.text_bytes for file in files)
        limit = 1 << 64 if total <= max_bytes else (max_bytes << 64) // total
        first: Batch | None = None
        found = False
        for file in files:
            for batch in self.batches(file):
                first = first or batch
                kept = [index for index, doc_id in enumerate(batch.doc_ids) if xxhash.xxh3_64_intdigest(doc_id.encode()) < limit]
                if kept:
                    found = True
                    yield _take(batch, kept)
        if first is not None and not found:
            yield _take(first, [0])


def open_corpus(folder: Path, *, manifest: FileEntry) -> Corpus:
    """Returns the corpus in `folder`, whose manifest must have the recorded hash.

    Raises:
        VerificationError: it is missing or damaged.
    """
    content = verified_bytes(folder, manifest, subject="accepted corpus")
    try:
        return Corpus(folder=folder, manifest=CorpusManifest.model_validate_json(content))
    except ValidationError as error:
        finding = f"{folder / manifest.path}: not a corpus manifest ({error.error_count()} problems)"
        raise VerificationError((finding,), subject="accepted corpus") from error


def _spread(files: tuple[AcceptedFile, ...], *, max_bytes: int) -> tuple[AcceptedFile, ...]:
    """Returns enough of `files` for a sample of `max_bytes`, chosen by the hash of their group number, in the manifest's order."""
    if sum(file.text_bytes for file in files) <= _SPREAD * max_bytes:
        return files
    chosen: set[int] = set()
    size = 0
    for file in sorted(files, key=lambda file: xxhash.xxh3_64_intdigest(f"{file.group:d}".encode())):
        if size >= _SPREAD * max_bytes:
            break
        chosen.add(file.group)
        size += file.text_bytes
    return tuple(file for file in files if file.group in chosen)


def _take(batch: Batch, indices: list[int]) -> Batch:
    if len(indices) == len(batch.texts):
        return batch
    return Batch(
        doc_ids=[batch.doc_ids[index] for index in indices],
        texts=[batch.texts[index] for index in indices],
        sizes=[batch.sizes[index] for index in indices],
    )
