"""No text that breaks a rule passes for one that does not, and hardly any good one is looked at twice."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.corpus_config import RulesConfig
from tasks.validate.corpus_files import string_array
from tasks.validate.problem import Problem
from tasks.validate.records import chars_of
from tasks.validate.rules import DocumentRules
from tasks.validate.text_scan import doubtful_texts, num_unprintable

SPACES = [chr(code) for code in range(0x110000) if chr(code).isspace()]
ODD = st.sampled_from([*SPACES, "\0", "\x7f", "\x80", "\ufffd", "\ue000", "\u200b", "\u0378", "\u3042", "水", "é", "🙂", "a", "\ufeff"])
TEXTS = st.one_of(st.text(max_size=12), st.text(ODD, max_size=8), st.text("abc \n水", max_size=12))


def doubtful(texts: list[str], rules: RulesConfig, *, sliced: bool = False) -> list[bool]:
    data = [text.encode() for text in texts]
    column = string_array([b"cut off", *data]).slice(1) if sliced else string_array(data)
    found: list[bool] = doubtful_texts(column, data=data, chars=chars_of(column), rules=rules).tolist()
    return found


@given(
    texts=st.lists(TEXTS, min_size=1, max_size=20).map(lambda texts: ["é水"] * 15 + texts + ["plain"] * 5),
    rules=st.builds(RulesConfig, min_chars=st.integers(0, 5), max_chars=st.integers(5, 9), min_printable_share=st.sampled_from([0.0, 0.5, 1.0])),
    sliced=st.booleans(),
)
@settings(max_examples=150)
def test_every_text_that_breaks_a_rule_is_found(texts: list[str], rules: RulesConfig, sliced: bool) -> None:
    judge = DocumentRules(rules, text_column="text", kind="jsonl")
    for text, is_doubtful in zip(texts, doubtful(texts, rules, sliced=sliced), strict=True):
        breaks = isinstance(judge.document_of({"text": text}), Problem)
        assert is_doubtful or not breaks, repr(text)
        may_break = num_unprintable(text.encode()) or len(text) > rules.max_chars or len(text.strip()) < rules.min_chars
        assert is_doubtful == bool(may_break), repr(text)


@pytest.mark.parametrize("space", SPACES)
def test_every_kind_of_white_space_counts_as_such(space: str) -> None:
    assert doubtful([space * 3, f"a{space * 3}", f"{space * 3}水", "abc水"], RulesConfig(min_chars=3))[:3] == [True, True, True]
