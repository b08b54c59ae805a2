"""The file that holds what the documents of a group are compared by, in the order of its accepted files.

A row is 16 bytes of content hash, and where near duplicates are looked for, 2 bytes for each permutation; null for a text without words.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.storage import make_folder, publish_file
from schemas.artifact import FileEntry
from schemas.preparation_config import DuplicatesConfig
from tasks.validate.corpus_files import Temporary

_DIGEST_BYTES = 16


class SignatureFile:
    """The signatures of a group in the making; the file appears under its name only when it is complete."""

    def __init__(self, name: str, *, config: DuplicatesConfig, output_dir: Path, temporary: Temporary) -> None:
        """Args: name: final name, relative to `output_dir`. The file is created with the first documents; none where nothing is compared."""
        self.name = name
        self._final, self._temporary = output_dir / name, temporary(name)
        self._config = config
        self._writer: pq.ParquetWriter | None = None

    def add(self, doc_ids: Sequence[bytes], texts: Sequence[str]) -> None:
        """Adds documents. `doc_ids`: hex."""
        if not (self._config.exact or self._config.near):
            return
        digests = [bytes.fromhex(doc_id.decode()) for doc_id in doc_ids]
        columns = {"digest": pa.array(digests, type=pa.binary(16))}
        if self._config.near:
            from tasks.prepare.shingles import signatures_of  # rensa: only where it is needed

            signatures, has_words = signatures_of(texts, config=self._config)
            width = 2 * self._config.permutations
            rows = pa.py_buffer(signatures.astype("<u2").tobytes())
            validity = pa.py_buffer(np.packbits(has_words, bitorder="little"))
            columns["signature"] = pa.Array.from_buffers(pa.binary(width), len(texts), [validity, rows])
        table = pa.table(columns)
        if self._writer is None:
            make_folder(self._temporary.parent)
            self._writer = pq.ParquetWriter(self._temporary, table.schema, compression="none", use_dictionary=False, write_statistics=False)
        self._writer.write_table(table)

    def publish(self) -> FileEntry | None:
        """Completes the file durably under its name and returns its entry; None when there is nothing to compare."""
        if self._writer is None:
            return None
        self._writer.close()
        return publish_file(self._temporary, self._final).model_copy(update={"path": self.name})

    def discard(self) -> None:
        """Removes what is unfinished; nothing is left to remove after `publish`."""
        if self._writer is not None and self._writer.is_open:
            self._writer.close()
        self._temporary.unlink(missing_ok=True)


def read_signatures(
    path: Path, *, permutations: int
) -> Iterator[tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint16] | None, npt.NDArray[np.bool_]]]:
    """Yields row groups: digests [documents, 2], signatures [documents, permutations] where the file has them, and which of them are not null."""
    with pq.ParquetFile(path) as parquet:
        for index in range(parquet.num_row_groups):
            table = parquet.read_row_group(index, use_threads=False).combine_chunks()
            digests = _bytes_of(table["digest"].chunk(0), width=_DIGEST_BYTES).view(">u8").astype(np.uint64).reshape(-1, 2)
            if "signature" not in table.column_names:
                yield digests, None, np.zeros(len(digests), dtype=np.bool_)
                continue
            column = table["signature"].chunk(0)
            has_words = column.is_valid().to_numpy(zero_copy_only=False)
            yield digests, _bytes_of(column, width=2 * permutations).view("<u2").astype(np.uint16).reshape(-1, permutations), has_words


def _bytes_of(column: pa.FixedSizeBinaryArray, *, width: int) -> npt.NDArray[np.uint8]:
    data = np.frombuffer(column.buffers()[1], dtype=np.uint8)
    return data[column.offset * width : (column.offset + len(column)) * width]
