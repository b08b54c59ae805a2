"""Reading the accepted corpus: whole documents in batches of bounded memory, from files whose hash is checked first.

Imports neither prefect nor a tokenizer; pyarrow only when something is read.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import xxhash
from pydantic import ValidationError

from schemas.artifact import FileEntry
from schemas.errors import VerificationError
from schemas.manifest import AcceptedFile, CorpusManifest, Split
from tasks.recorded_file import verified_bytes, verified_path

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

MANIFEST_NAME = "manifest.json"
BATCH_BYTES = 16 << 20
"""Text handed over at a time, about: large enough for an encoder to keep all threads busy, small against memory."""

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
class Columns:
    """Some documents, in the order of their file, as Arrow columns: nothing is decoded that nobody looks at."""

    doc_ids: "pa.Array"
    """Identity of each document, string."""
    texts: "pa.Array"
    """Text of each document, string, without nulls."""
    sources: "pa.Array | None" = None
    """Name of each document's source, string; None: not asked for."""

    @property
    def sizes(self) -> "npt.NDArray[np.int64]":
        """UTF-8 bytes of each text."""
        import numpy as np

        # from the column's own offsets: pyarrow's ways to numpy import pandas, which takes as long as reading 50 MB
        offsets = self.texts.buffers()[1]
        ends = np.frombuffer(offsets, dtype=np.int32) if offsets is not None else np.zeros(1, dtype=np.int32)
        return np.diff(ends[self.texts.offset : self.texts.offset + len(self.texts) + 1]).astype(np.int64)


@dataclass(frozen=True)
class Corpus:
    """The accepted corpus in a local folder."""

    folder: Path
    manifest: CorpusManifest

    def columns(self, file: AcceptedFile, *, with_sources: bool = False) -> Iterator[Columns]:
        """Yields the documents of one file in order, about `BATCH_BYTES` at a time: a row group of it is in memory, which `validate` keeps small.

        Args:
            file: one of the manifest's files.
            with_sources: whether the names of the sources are wanted.

        Raises:
            VerificationError: the file is missing, or its bytes are not those that were accepted.
        """
        import pyarrow.parquet as pq

        path = verified_path(self.folder, file.file, subject="accepted corpus")
        names = ["doc_id", "text", *(["source"] if with_sources else [])]
        with pq.ParquetFile(path, pre_buffer=True) as parquet:  # a column of a row group in one read
            for index in range(parquet.num_row_groups):
                rows = parquet.read_row_group(index, columns=names, use_threads=False)
                for part in rows.combine_chunks().to_batches():
                    yield from _cut(Columns(part.column("doc_id"), part.column("text"), part.column("source") if with_sources else None))

    def batches(self, file: AcceptedFile) -> Iterator[Batch]:
        """Yields what `columns` does, as Python strings."""
        for columns in self.columns(file):
            yield Batch(doc_ids=columns.doc_ids.to_pylist(), texts=columns.texts.to_pylist(), sizes=columns.sizes.tolist())

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


def _cut(columns: Columns) -> Iterator[Columns]:
    """Yields documents in parts of about `BATCH_BYTES`."""
    filled = columns.sizes.cumsum() // BATCH_BYTES
    first = 0
    while first < len(filled):
        last = int(filled.searchsorted(filled[first], side="right"))
        sources = columns.sources[first:last] if columns.sources is not None else None
        yield Columns(doc_ids=columns.doc_ids[first:last], texts=columns.texts[first:last], sources=sources)
        first = last


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
