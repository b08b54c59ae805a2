"""Why a record is quarantined, and how its beginning is shown. Pure."""

from enum import StrEnum
from typing import NamedTuple

EXCERPT_CHARS = 200
"""Most characters of an excerpt."""
_UTF8_BYTES_PER_CHAR = 4


class Reason(StrEnum):
    """Why a record is quarantined. The value is what people read and what the counts are kept by."""

    INVALID_UTF8 = "invalid UTF-8"
    UNDECODABLE = "undecodable text"
    UNKNOWN_ENCODING = "unknown encoding"
    INVALID_JSON = "invalid JSON"
    NOT_AN_OBJECT = "not a JSON object"
    BLANK_LINE = "blank line"
    LINE_TOO_LONG = "line too long"
    MALFORMED_CSV = "malformed CSV"
    EMPTY_FILE = "empty file"
    TRUNCATED_FILE = "truncated file"
    DAMAGED_FILE = "damaged file"
    MISSING_COLUMN = "missing column"
    WRONG_TYPE = "wrong type"
    NULL_TEXT = "null text"
    EMPTY_TEXT = "empty text"
    BLANK_TEXT = "blank text"
    TOO_SHORT = "too short"
    TOO_LONG = "too long"
    NUL_CHARACTER = "NUL character"
    UNPRINTABLE = "unprintable characters"
    DUPLICATE = "duplicate"
    NO_CONVERSATION = "no conversation"


class Problem(NamedTuple):
    """What is wrong with one record."""

    reason: Reason
    """The rule that it breaks."""
    detail: str = ""
    """What was found."""
    column: str = ""
    """The column that is missing or has the wrong type: a whole file of those is a wrong file, not a bad record."""


def excerpt(raw: bytes | str, *, limit: int = EXCERPT_CHARS) -> str:
    r"""Returns the beginning of a record on one line, safe to print and to store: at most `limit` characters.

    Bytes that are not UTF-8 appear as `\xff`, control, format and other invisible characters as escapes: no terminal must obey them.
    """
    text = raw[: limit * _UTF8_BYTES_PER_CHAR].decode("utf-8", errors="backslashreplace") if isinstance(raw, bytes) else raw
    text = text[:limit]
    return text if text.isprintable() else text.translate(_ESCAPES)[:limit]


class _Escapes(dict[int, str]):
    """Code point → how it is shown; filled as characters come up, because `str.translate` asks once per character."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        shown = char if char.isprintable() else char.encode("unicode_escape").decode()
        self[code] = shown
        return shown


_ESCAPES = _Escapes()
