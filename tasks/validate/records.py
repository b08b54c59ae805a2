"""Raw records, one at a time or many as columns. What becomes of them is the same; columns are what can be looked at together."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tasks.validate.corpus_files import string_array, string_column
from tasks.validate.figures.arrow import integers_of
from tasks.validate.problem import Problem

_MARK = orjson.Fragment(b"\n")
"""Stands between objects that are written together: no JSON string holds a line feed."""
_SEPARATOR = b",\n,"
_NO_OBJECT = len(b"{}")


class Record(NamedTuple):
    """One raw record."""

    row: int
    """Its place in the file."""
    fields: dict[str, Any] | None
    """Column → value; None when it could not be read."""
    problem: Problem | None
    """Why it could not be read."""
    raw: bytes | None
    """The bytes it came from, or their beginning; None when the fields are all there is to show."""


@dataclass(frozen=True)
class Columns:
    """Records that follow each other in a file, at least one, as columns."""

    first_row: int
    """The first one's place in the file."""
    data: Sequence[bytes]
    """Their texts as UTF-8; empty where a record is irregular."""
    texts: pa.StringArray
    """The same."""
    chars: NDArray[np.int64]
    """Characters of each text, [records]."""
    extras: pa.StringArray
    """The other columns of each as a JSON object, null where there are none."""
    irregular: Sequence[int]
    """Positions of the records without a text: none of them makes a document."""
    records: Callable[[Sequence[int]], Sequence[Record]]
    """Returns the records at some positions by themselves."""
    fields: Sequence[Mapping[str, Any] | None] | None
    """Column → value of each, with or without the text; None where nobody asks for other columns."""

    def __len__(self) -> int:
        return len(self.data)

    def record(self, index: int) -> Record:
        """Returns the record at a position by itself."""
        return self.records([index])[0]


Batch = Columns | Sequence[Record]


def columns_of(data: Sequence[bytes]) -> tuple[pa.StringArray, NDArray[np.int64]]:
    """Returns texts as an Arrow column, and their lengths in characters."""
    texts = string_array(data)
    return texts, chars_of(texts)


def chars_of(texts: pa.StringArray) -> NDArray[np.int64]:
    """Returns the lengths of texts in characters."""
    return integers_of(pc.utf8_length(texts)).astype(np.int64)


def columns_of_records(records: Sequence[Record], *, text_column: str) -> Columns | None:
    """Returns records as columns; None when the other columns of one of them cannot be stored."""
    fields = [record.fields for record in records]
    texts = [each.get(text_column) if each is not None else None for each in fields]
    data = [text.encode() if type(text) is str else b"" for text in texts]
    rests = [{name: value for name, value in (each or {}).items() if name != text_column} for each in fields]
    if (extras := json_column(rests)) is None:
        return None
    column, chars = columns_of(data)
    return Columns(
        first_row=records[0].row,
        data=data,
        texts=column,
        chars=chars,
        extras=extras,
        irregular=[index for index, text in enumerate(texts) if type(text) is not str],
        records=lambda positions: [records[index] for index in positions],
        fields=fields,
    )


def json_column(objects: Sequence[Mapping[str, Any]], *, were_json: bool = False) -> pa.StringArray | None:
    """Returns each object as JSON, as `rules.json_of` does one by one, null where one is empty; None when one of them has no such form.

    Args:
        objects: column → value.
        were_json: whether they were parsed from JSON, so that all names are texts: not to look takes half the time.
    """
    if not any(objects):
        return pa.nulls(len(objects), pa.string())
    interleaved: list[Any] = [_MARK] * (2 * len(objects))
    interleaved[::2] = objects
    try:
        written = orjson.dumps(interleaved, default=str, option=None if were_json else orjson.OPT_NON_STR_KEYS)
    except orjson.JSONEncodeError:
        return None
    ends = np.flatnonzero(np.frombuffer(written, dtype=np.uint8) == ord("\n")) - 1
    starts = np.concatenate(([1], ends[:-1] + len(_SEPARATOR)))
    sizes = ends - starts
    return string_column(written[1 : -len(_SEPARATOR)].replace(_SEPARATOR, b""), sizes=sizes, present=sizes > _NO_OBJECT)
