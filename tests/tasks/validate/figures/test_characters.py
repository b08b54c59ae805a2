"""Characters by class and script, against the standard library's own knowledge of them."""

import unicodedata
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.validate.figures import characters as counting
from tasks.validate.figures.characters import Characters, CharacterTally, merge_characters


def counted(*texts: str) -> Characters:
    tally = CharacterTally()
    for text in texts:
        tally.add(np.frombuffer(text.encode(), dtype=np.uint8), starts=np.zeros(1, dtype=np.int32))
    return tally.characters()


def test_ascii_is_counted_by_class() -> None:
    assert counted("Ab 1,\t\n\x01\x7f").classes == {"controls": 2, "digits": 1, "letters": 2, "punctuation and symbols": 1, "white space": 3}


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("Straße naïve łódź Tiếng", "Latin"),
        ("Ελλάδα ἀρχή", "Greek"),
        ("Съешь ещё", "Cyrillic"),
        ("שלום", "Hebrew"),
        ("السلام عليكم", "Arabic"),
        ("नमस्ते", "Devanagari"),
        ("สวัสดี", "Thai"),
        ("안녕하세요", "Hangul"),
        ("ひらがな カタカナ", "Kana"),
        ("数据质量𠀀", "Han"),
        ("გამარჯობა", "Georgian"),
        ("வணக்கம்", "Tamil"),
    ],
)
def test_letters_are_counted_by_script(text: str, script: str) -> None:
    found = counted(text)
    assert found.scripts == {script: len(text.replace(" ", ""))}
    assert found.classes["letters"] == len(text.replace(" ", ""))


def test_what_is_no_letter() -> None:
    assert counted("“—”。，😀🚀\ue000\x85").classes == {"controls": 1, "emoji": 2, "private use": 1, "punctuation and symbols": 5}


def test_signs_of_broken_encodings_are_counted() -> None:
    broken = "Käse and “quotes” don’t".encode().decode("cp1252", errors="replace")
    found = counted("fine \ufffd\ufffd", broken, "Käse é à la carte")
    assert found.mojibake == 4
    assert found.replaced == 2 + broken.count("\ufffd")


@settings(max_examples=30)
@given(st.lists(st.text(alphabet=st.characters(codec="utf-8"), max_size=40), max_size=8), st.integers(min_value=1, max_value=9))
def test_every_character_is_counted_once_however_the_text_is_cut(texts: list[str], chunk: int) -> None:
    whole = counted("".join(texts))
    assert whole.total == len("".join(texts))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counting, "_CHUNK_BYTES", chunk)
        assert counted("".join(texts)) == whole
    apart = counted(*texts)
    assert apart == merge_characters(counted(text) for text in texts)
    alone = whole.model_copy(update={"mojibake": apart.mojibake})  # two texts may make a sign that neither of them has
    assert apart == alone
    assert apart.mojibake <= whole.mojibake


def test_classes_agree_with_unicode_for_common_characters() -> None:
    """Blocks are coarser than the standard's table: of what text is made of, few characters may be taken for something else."""
    common = [chr(point) for start, stop in ((0x20, 0x250), (0x370, 0x600), (0x4E00, 0x9FFF), (0xAC00, 0xD7A4)) for point in range(start, stop)]
    named = {"L": "letters", "Nd": "digits", "Zs": "white space", "Cc": "controls"}
    wanted = Counter(named.get(unicodedata.category(char), named.get(unicodedata.category(char)[0], "rest")) for char in common)
    found = counted("".join(common)).classes
    assert abs(found["letters"] - wanted["letters"]) < 0.01 * wanted["letters"]
    assert found["digits"] == wanted["digits"]
