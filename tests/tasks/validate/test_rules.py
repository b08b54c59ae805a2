"""What makes a document, rule by rule."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.corpus_config import RulesConfig
from tasks.validate.problem import EXCERPT_CHARS, Problem, Reason, excerpt
from tasks.validate.rules import Document, DocumentRules, num_unprintable
from tasks.validate.sources import Format


def judge(fields: dict[str, Any], *, kind: Format = "jsonl", **rules: Any) -> Document | Problem:
    return DocumentRules(RulesConfig.model_validate(rules), text_column="text", kind=kind).document_of(fields)


@pytest.mark.parametrize(
    ("fields", "rules", "reason"),
    [
        ({}, {}, Reason.MISSING_COLUMN),
        ({"Text": "x"}, {}, Reason.MISSING_COLUMN),
        ({"text": None}, {}, Reason.NULL_TEXT),
        ({"text": 3}, {}, Reason.WRONG_TYPE),
        ({"text": ["a", None]}, {}, Reason.WRONG_TYPE),
        ({"text": {"a": None}}, {}, Reason.WRONG_TYPE),
        ({"text": True}, {}, Reason.WRONG_TYPE),
        ({"text": ""}, {}, Reason.EMPTY_TEXT),
        ({"text": " \n\t\u3000"}, {}, Reason.BLANK_TEXT),
        ({"text": "ab "}, {"min_chars": 3}, Reason.TOO_SHORT),
        ({"text": "abcd"}, {"max_chars": 3}, Reason.TOO_LONG),
        ({"text": "a\0b"}, {}, Reason.NUL_CHARACTER),
        ({"text": "\x01\x02\x03abc"}, {}, Reason.UNPRINTABLE),
        ({"text": "\ufffd\ufffdabc"}, {}, Reason.UNPRINTABLE),
        ({"text": "x", "id": "7"}, {"required_columns": {"id": "integer"}}, Reason.WRONG_TYPE),
        ({"text": "x", "id": True}, {"required_columns": {"id": "integer"}}, Reason.WRONG_TYPE),
        ({"text": "x", "id": None}, {"required_columns": {"id": "string"}}, Reason.WRONG_TYPE),
        ({"text": "x"}, {"required_columns": {"id": "string"}}, Reason.MISSING_COLUMN),
    ],
)
def test_a_record_that_breaks_a_rule_is_refused_with_the_reason(fields: dict[str, Any], rules: dict[str, Any], reason: Reason) -> None:
    problem = judge(fields, **rules)
    assert isinstance(problem, Problem)
    assert problem.reason is reason
    assert bool(problem.column) == (reason in (Reason.MISSING_COLUMN, Reason.WRONG_TYPE))


@pytest.mark.parametrize(
    ("fields", "rules"),
    [
        ({"text": "x"}, {}),
        ({"text": " x "}, {"min_chars": 1}),
        ({"text": "日本語、テスト。 🙂 مرحبا"}, {"min_printable_share": 1.0}),
        ({"text": "a\tb\r\nc\fd\u00a0e"}, {"min_printable_share": 1.0}),
        ({"text": "\x01" + "a" * 9}, {"min_printable_share": 0.9}),
        ({"text": "x", "id": 7, "score": 1, "ok": False}, {"required_columns": {"id": "integer", "score": "number", "ok": "boolean"}}),
        ({"text": ""}, {"min_chars": 0}),
    ],
)
def test_a_record_that_satisfies_the_rules_is_a_document(fields: dict[str, Any], rules: dict[str, Any]) -> None:
    assert judge(fields, **rules) == Document(fields["text"], fields["text"].encode())


@pytest.mark.parametrize(
    ("value", "wanted", "is_right"),
    [
        ("7", "integer", True),
        ("7.5", "integer", False),
        ("7.5", "number", True),
        ("", "number", False),
        ("True", "boolean", True),
        ("maybe", "boolean", False),
    ],
)
def test_a_csv_value_passes_when_it_reads_as_the_type(value: str, wanted: str, is_right: bool) -> None:
    assert isinstance(judge({"text": "x", "id": value}, kind="csv", required_columns={"id": wanted}), Document) is is_right


def test_whole_files_of_text_have_no_columns_to_require() -> None:
    assert isinstance(judge({"text": "x"}, kind="text", required_columns={"id": "integer"}), Document)


@given(st.text())
def test_unprintable_characters_are_counted_as_python_sees_them(text: str) -> None:
    # ASCII's separators (0x1c to 0x1f) are white space to str.isspace(), but nothing that text should hold.
    expected = sum(char in "\ufffd\x1c\x1d\x1e\x1f" or not (char.isprintable() or char.isspace()) for char in text)
    assert num_unprintable(text.encode()) == expected


@given(st.one_of(st.text(max_size=400), st.binary(max_size=1200)))
def test_an_excerpt_is_short_printable_and_on_one_line(raw: str | bytes) -> None:
    shown = excerpt(raw)
    assert len(shown) <= EXCERPT_CHARS
    assert shown.isprintable()
    shown.encode()


def test_an_excerpt_shows_what_is_there() -> None:
    assert excerpt(b"caf\xc3\xa9 \xff\n\x1b[31m") == "café \\xff\\n\\x1b[31m"
    assert excerpt("\u202eevil") == "\\u202eevil"
