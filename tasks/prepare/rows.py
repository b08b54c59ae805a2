"""Reading accepted documents row group by row group, and the names of the files that this stage makes."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.artifact import FileEntry
from schemas.manifest import Split
from tasks.recorded_file import verified_path
from tasks.validate.corpus_files import AcceptedRow

DUPLICATES_NAME = "duplicates.parquet"
"""The list of documents to remove; it is dropped once they are."""
INDEX_FOLDER = "ngrams"
"""Where the index of held-out texts lies while documents are compared with it."""
SIGNATURES_FOLDER = "signatures"
"""Where signatures lie: they stay, so that the next corpus need not make those of the same documents again."""
REMOVED_NAME = "quarantine/g{group:04d}-duplicates.parquet"
"""Quarantine of one group's duplicates."""


@dataclass(frozen=True)
class Documents:
    """The documents of one row group of an accepted file, in order."""

    rows: list[AcceptedRow]
    """Their rows, as UTF-8."""

    @property
    def texts(self) -> list[str]:
        """Their texts."""
        return [row.text.decode() for row in self.rows]

    @property
    def num_bytes(self) -> int:
        """UTF-8 bytes of all texts."""
        return sum(len(row.text) for row in self.rows)


def signatures_name(group: int) -> str:
    """Returns the name of the file that holds what documents of a group are compared by."""
    return f"{SIGNATURES_FOLDER}/g{group:04d}.parquet"


def kept_name(group: int, split: Split) -> str:
    """Returns the name of the file that replaces one that held duplicates."""
    return f"accepted/g{group:04d}-{split}-unique.parquet"


def read_documents(folder: Path, file: FileEntry) -> Iterator[Documents]:
    """Yields the documents of an accepted file, one row group in memory at a time.

    Raises:
        VerificationError: the file is missing, or its bytes are not those that were accepted.
    """
    path = verified_path(folder, file, subject="accepted corpus")
    with pq.ParquetFile(path, page_checksum_verification=True) as parquet:
        for index in range(parquet.num_row_groups):
            table = parquet.read_row_group(index, columns=list(AcceptedRow._fields), use_threads=False)
            columns = [column if pa.types.is_int64(column.type) else column.cast(pa.binary()) for column in table.columns]
            yield Documents([AcceptedRow._make(row) for row in zip(*(column.to_pylist() for column in columns), strict=True)])
