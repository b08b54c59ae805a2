import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.preparation_config import Normalization
from tasks.prepare.normalization import NormalizationStep, normalized


def test_forms() -> None:
    composed, compatible = (NormalizationStep(form).apply(["e\u0301 \ufb01 \uff21"])[0] for form in (Normalization.NFC, Normalization.NFKC))
    assert (composed.text, composed.counts) == ("\u00e9 \ufb01 \uff21", {"changed": 1})
    assert compatible.text == "\u00e9 fi A"


def test_line_ends_and_controls() -> None:
    assert normalized("a\r\nb\rc\x0cd\x85e\tf\x00g\x1b[0m\x7f", "NFC") == "a\nb\nc\nd\ne\tfg[0m"


def test_a_control_between_a_letter_and_its_accent_does_not_keep_them_apart() -> None:
    assert normalized("e\x00\u0301", "NFC") == "\u00e9"


def test_a_text_of_which_nothing_is_left_is_refused_and_others_come_back_as_they_are() -> None:
    gone, same = NormalizationStep(Normalization.NFC).apply(["\x00 \x01", "plain text\n"])
    assert (gone.text, gone.reason, gone.detail) == (None, "normalization-empty", "3 characters, none of which is left")
    assert (same.text, same.counts) == ("plain text\n", {})


@pytest.mark.parametrize("form", ["NFC", "NFKC"])
@given(text=st.text())
def test_twice_is_as_once(form: str, text: str) -> None:
    once = normalized(text, form)  # type: ignore[arg-type]
    assert normalized(once, form) == once  # type: ignore[arg-type]
    assert unicodedata.is_normalized(form, once)  # type: ignore[arg-type]
    assert not any(unicodedata.category(char) == "Cc" and char not in "\n\t" for char in once)
