"""Arrow columns as numpy arrays and back, over their buffers: `to_numpy` and `pa.array` import pandas on their first call, 0.3 s of a job of 1 s."""

import numpy as np
import pyarrow as pa


def integers_of(column: pa.Array) -> np.ndarray:
    """Returns a column of integers without nulls, not copied."""
    width = np.dtype(f"i{column.type.bit_width // 8}")
    first = int(column.offset)
    return np.frombuffer(column.buffers()[1], dtype=width)[first : first + len(column)]


def bytes_of(texts: pa.Array) -> np.ndarray:
    """Returns the UTF-8 of a column of texts without nulls, one after the other; uint8, not copied."""
    ends, data = _ends_of(texts), texts.buffers()[2]
    found: np.ndarray = np.frombuffer(data or b"", dtype=np.uint8)[int(ends[0]) : int(ends[-1])]
    return found


def offsets_of(texts: pa.Array) -> np.ndarray:
    """Returns where each text begins in `bytes_of`, and where the last one ends; one more than there are texts."""
    ends = _ends_of(texts)
    found: np.ndarray = ends - ends[0]
    return found


def _ends_of(texts: pa.Array) -> np.ndarray:
    width = np.int64 if pa.types.is_large_string(texts.type) else np.int32
    found: np.ndarray = np.frombuffer(texts.buffers()[1], dtype=width)[texts.offset :][: len(texts) + 1]
    return found


def rows_of(positions: np.ndarray) -> pa.Array:
    """Returns row numbers for `take`."""
    return pa.Array.from_buffers(pa.int64(), len(positions), [None, pa.py_buffer(positions.astype(np.int64))])
