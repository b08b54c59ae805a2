"""What makes a document of a record's fields. Pure: rules from the recipe, one record in, a text or a problem out."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from schemas.corpus_config import RulesConfig
from tasks.validate.problem import Problem, Reason
from tasks.validate.records import Columns
from tasks.validate.sources import Format
from tasks.validate.text_scan import doubtful_texts, num_unprintable

_JSON_NAMES: Mapping[type, str] = {type(None): "null", bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}


class Document(NamedTuple):
    """A text that satisfies the rules."""

    text: str
    """The text."""
    data: bytes
    """The same as UTF-8."""


TypeCheck = Callable[[Any], bool]


class DocumentRules:
    """The rules for the files of one source, ready to be applied to many records."""

    def __init__(self, rules: RulesConfig, *, text_column: str, kind: Format) -> None:
        """Args:
        rules: from the recipe.
        text_column: holds the text.
        kind: what the files are. CSV values are text that reads as a type; whole files of text have no columns, so `required_columns` does not apply.
        """
        self._rules = rules
        self._text_column = text_column
        checks = _WRITTEN if kind == "csv" else _TYPED
        self._required = [(name, wanted, checks[wanted]) for name, wanted in rules.required_columns.items()] if kind != "text" else []

    def document_of(self, fields: Mapping[str, Any]) -> Document | Problem:
        """Returns the record's document, or what is wrong with it: the first rule that it breaks."""
        for name, wanted, is_right in self._required:
            if name not in fields:
                return Problem(Reason.MISSING_COLUMN, f"no column {name!r}", column=name)
            if not is_right(fields[name]):
                return Problem(Reason.WRONG_TYPE, f"{name!r} is {_type_name(fields[name])}, must be {wanted}", column=name)
        try:
            text = fields[self._text_column]
        except KeyError:
            return Problem(Reason.MISSING_COLUMN, f"no column {self._text_column!r}", column=self._text_column)
        if type(text) is not str:
            if text is None:
                return Problem(Reason.NULL_TEXT)
            return Problem(Reason.WRONG_TYPE, f"{self._text_column!r} is {_type_name(text)}, must be string", column=self._text_column)
        data = text.encode()
        return self._problem_of(text, data) or Document(text, data)

    def doubtful(self, columns: Columns) -> NDArray[np.bool_]:
        """Returns which records may break a rule, so that `document_of` has to look at them, [records]; all others satisfy every rule."""
        found = doubtful_texts(columns.texts, data=columns.data, chars=columns.chars, rules=self._rules)
        found[list(columns.irregular)] = True
        if self._required:
            assert columns.fields is not None, "columns without fields, and rules that ask for them"
            for name, _, is_right in self._required:
                if name == self._text_column:
                    found |= not is_right("")  # every other text is a string, too
                else:
                    found |= [fields is None or name not in fields or not is_right(fields[name]) for fields in columns.fields]
        return found

    def _problem_of(self, text: str, data: bytes) -> Problem | None:
        rules = self._rules
        if len(text) > rules.max_chars:
            return Problem(Reason.TOO_LONG, f"{len(text):,} characters, at most {rules.max_chars:,}")
        num_chars = len(text.strip())
        if num_chars < rules.min_chars:
            if not text:
                return Problem(Reason.EMPTY_TEXT)
            if not num_chars:
                return Problem(Reason.BLANK_TEXT, f"{len(text):,} characters of white space")
            return Problem(Reason.TOO_SHORT, f"{num_chars:,} characters, at least {rules.min_chars:,}")
        if "\0" in text:
            return Problem(Reason.NUL_CHARACTER, f"at character {text.index(chr(0))}")
        hidden = num_unprintable(data)
        if hidden and (len(text) - hidden) < rules.min_printable_share * len(text):
            return Problem(Reason.UNPRINTABLE, f"{hidden:,} of {len(text):,} characters; at most {1 - rules.min_printable_share:.0%} may be")
        return None


def json_of(fields: Mapping[str, Any]) -> bytes | Problem:
    """Returns columns as a JSON object (dates as ISO 8601, decimals as strings, NaN as null), or why they have no such form."""
    try:
        return orjson.dumps(fields, default=str, option=orjson.OPT_NON_STR_KEYS)
    except orjson.JSONEncodeError as error:  # nested deeper than 254 levels, which reading allows
        return Problem(Reason.WRONG_TYPE, f"the other columns cannot be stored: {error}")


def _type_name(value: Any) -> str:
    return _JSON_NAMES.get(type(value), type(value).__name__)


def _is_written_as(convert: Callable[[str], object]) -> TypeCheck:
    def check(value: Any) -> bool:
        try:
            convert(value)
        except ValueError:
            return False
        return True

    return check


_TYPED: Mapping[str, TypeCheck] = {
    "string": lambda value: type(value) is str,
    "integer": lambda value: type(value) is int,
    "number": lambda value: type(value) in (int, float),
    "boolean": lambda value: type(value) is bool,
}
_WRITTEN: Mapping[str, TypeCheck] = {
    "string": lambda _: True,
    "integer": _is_written_as(int),
    "number": _is_written_as(float),
    "boolean": lambda value: value.strip().lower() in ("true", "false", "0", "1"),
}
"""CSV has no types: a value passes when it reads as one."""
