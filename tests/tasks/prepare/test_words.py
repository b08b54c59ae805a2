"""Words in every script, found the same way whichever way is taken."""

import re

from hypothesis import given
from hypothesis import strategies as st

from tasks.prepare.words import UNSPACED, words_of


def test_words_are_runs_of_letters_and_digits_or_single_characters_of_scripts_without_spaces() -> None:
    assert words_of("Hello, World's 你好世界 mixed中文 über 123_4 ไทย") == [
        *("hello", "world", "s", "你", "好", "世", "界", "mixed", "中", "文", "über", "123_4", "ไ", "ท", "ย")
    ]
    assert words_of("…\n—\n\t") == []


@given(st.lists(st.one_of(st.text(), st.text(st.characters(max_codepoint=127)))))
def test_lines_of_ascii_have_the_words_that_a_plain_search_finds(lines: list[str]) -> None:
    text = "\n".join(lines)
    assert words_of(text) == re.findall(rf"[{UNSPACED}]|[^\W{UNSPACED}]+", text.lower())
