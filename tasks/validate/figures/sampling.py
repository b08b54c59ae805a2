"""How many of a corpus' documents are looked at closely. Pure.

Lengths are taken of all documents. What texts consist of, and what other columns hold, is taken of some, where there are many: the same ones for any
number of workers and any order, as a document's own hash decides. The shares follow from the size of the whole corpus, which the frozen plan fixes,
so figures of its groups merge exactly.
"""

from typing import Final

import numpy as np
import pyarrow as pa

from schemas.frozen import Frozen
from tasks.validate.figures.arrow import bytes_of, rows_of

_TEXT_BYTES: Final = 8 << 20
_COLUMNS_BYTES: Final = 2 << 20
"""Raw bytes up to which every document is looked at: counting a text's characters takes 3 ns a byte, parsing a record's other columns 2 µs."""
_FEWEST: Final = 64
_ID_CHARS: Final = 32


class Sampling(Frozen):
    """One in so many documents; powers of two."""

    text: int = 1
    """Whose characters are counted."""
    columns: int = 1
    """Whose other columns are counted: all of them are among the others."""


EVERY: Final = Sampling()
"""Every document."""


def sampling_of(raw_bytes: int) -> Sampling:
    """Returns how many documents of a corpus of this size are looked at: at least one in 64."""
    return Sampling(text=_one_in(raw_bytes, _TEXT_BYTES), columns=_one_in(raw_bytes, _COLUMNS_BYTES))


def chosen(rows: pa.RecordBatch, *, one_in: int) -> pa.RecordBatch:
    """Returns the rows that are looked at. The last two digits of `doc_id` decide: the first half of them decides on the split."""
    if one_in == 1 or not rows.num_rows:
        return rows
    digits = bytes_of(rows.column("doc_id")).reshape(-1, _ID_CHARS)[:, -2:]
    values = (digits & 0x0F) + 9 * (digits >> 6)  # of hexadecimal digits in ASCII, lower case
    return rows.take(rows_of(np.flatnonzero((values[:, 0] * 16 + values[:, 1]) % one_in == 0)))


def _one_in(raw_bytes: int, looked_at: int) -> int:
    return min(_FEWEST, 1 << (max(0, raw_bytes - 1) // looked_at).bit_length())
