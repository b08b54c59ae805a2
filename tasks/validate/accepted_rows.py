"""Rows of accepted files, made of columns as they were read."""

import binascii
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tasks.validate.corpus_files import ACCEPTED_SCHEMA, bits_of, string_column
from tasks.validate.figures.arrow import integers_of, offsets_of
from tasks.validate.records import Columns


class Place(NamedTuple):
    """Where records come from, as UTF-8."""

    source: bytes
    """Name of the source."""
    path: bytes
    """Path within it."""


def accepted_rows(columns: Columns, kept: NDArray[np.bool_], *, hashes: NDArray[np.uint8], place: Place) -> pa.RecordBatch:
    """Returns rows of `ACCEPTED_SCHEMA`.

    Args:
        columns: records of one file.
        kept: which of them are meant, at least one, [records].
        hashes: of their texts, [records, 16].
        place: the file.
    """
    texts, extras, rows = columns.texts, columns.extras, np.flatnonzero(kept)
    count = len(rows)
    if count < len(texts):
        mask = pa.Array.from_buffers(pa.bool_(), len(kept), [None, bits_of(kept)])
        texts, extras, hashes = texts.filter(mask), extras.filter(mask), hashes[rows]
    doc_ids = string_column(binascii.hexlify(hashes.data), sizes=np.full(count, 2 * hashes.shape[1]))
    source, path = (string_column(name * count, sizes=np.full(count, len(name))) for name in place)
    places = pa.Array.from_buffers(pa.int64(), count, [None, pa.py_buffer((rows + columns.first_row).astype(np.int64))])
    return pa.RecordBatch.from_arrays([doc_ids, source, path, places, texts, extras], schema=ACCEPTED_SCHEMA)


def sizes_of(texts: pa.StringArray) -> NDArray[np.int64]:
    """Returns the bytes of each text, 0 of a null."""
    sizes = np.diff(offsets_of(texts)).astype(np.int64)
    if texts.null_count:
        sizes[integers_of(pc.indices_nonzero(texts.is_null()))] = 0
    return sizes
