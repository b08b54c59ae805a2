from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.preparation_config import C4Limits, FineWebLimits, GopherLimits, QualityConfig, RepetitionLimits
from tasks.prepare.quality import QualityStep, quality_steps
from tasks.prepare.quality_c4 import num_sentences, trim
from tasks.prepare.quality_repetition import duplicate_ngram_chars, repetition_refusals, top_ngram_chars
from tasks.prepare.word_table import WordTable

PROSE = (
    "The mill stands at the end of the valley, and the water that drives it comes down from the hills in a long channel of stone. "
    "Nobody knows who built it. In spring the channel is full, and the wheel turns day and night. "
    "In summer there are weeks in which it does not turn. "
    "Then the miller mends what the winter has broken."
)
CHINESE = (
    "水磨坊在山谷的尽头,水从山上沿着一条长长的石渠流下来推动水轮。没有人知道是谁修建了它。春天渠里水很满,轮子日夜不停地转动。"
    "夏天有几个星期它完全不转,磨坊主便修理冬天损坏的东西。他的孙子想要一台发动机,因为城里的人都有。我们一起等待下雨。"
)
JAPANESE = (
    "水車小屋は谷の奥にあり、山から長い石の水路を通って流れてくる水がそれを動かしている。誰がそれを建てたのかは誰も知らない。"
    "春には水路がいっぱいになり、水車は昼も夜も回る。夏にはまったく回らない週もあり、そのとき粉屋は冬に壊れたものを直す。孫はエンジンがほしいと言う。"
)
THAI = (
    "โรงสีตั้งอยู่ที่ปลายหุบเขา และน้ำที่หมุนกังหันไหลลงมาจากภูเขาตามรางหินยาว ไม่มีใครรู้ว่าใครเป็นคนสร้าง "
    "ในฤดูใบไม้ผลิรางน้ำเต็มและกังหันหมุนทั้งวันทั้งคืน ในฤดูร้อนมีหลายสัปดาห์ที่มันไม่หมุนเลย แล้วคนโม่แป้งก็ซ่อมสิ่งที่ฤดูหนาวทำให้พัง"
)
HINDI = (
    "चक्की घाटी के छोर पर खड़ी है, और उसे चलाने वाला पानी पहाड़ियों से पत्थर की एक लंबी नाली में नीचे आता है। कोई नहीं जानता कि इसे किसने बनाया। "
    "वसंत में नाली भरी रहती है और पहिया दिन रात घूमता है। गर्मियों में कई सप्ताह ऐसे होते हैं जब वह बिल्कुल नहीं घूमता।"
)
GOPHER = QualityConfig(gopher=True, gopher_repetition=True)


def reason(text: str, config: QualityConfig) -> str:
    (outcome,) = QualityStep(config).apply([text])
    return outcome.reason


@pytest.mark.parametrize("text", [PROSE, CHINESE, JAPANESE, THAI], ids=["english", "chinese", "japanese", "thai"])
def test_prose_passes_gophers_rules_in_scripts_with_and_without_spaces(text: str) -> None:
    assert reason(text, GOPHER) == ""
    assert reason(text, QualityConfig(fineweb=True)) == ""


def test_another_language_asks_for_its_own_stop_words_and_its_vowel_signs_are_letters_of_words() -> None:
    assert reason(HINDI, GOPHER) == "gopher-stop-words"
    own = GopherLimits(stop_words=("और", "है", "के", "में"))
    assert reason(HINDI, QualityConfig(gopher=True, gopher_repetition=True, gopher_limits=own)) == ""


def test_repetition_is_found_in_scripts_without_spaces() -> None:
    assert reason(CHINESE + "请点击这里查看更多内容" * 12, GOPHER).startswith("gopher-repetition-")


def test_c4_keeps_lines_of_scripts_without_spaces() -> None:
    text = CHINESE.replace("。", "。\n")
    assert reason(text, QualityConfig(c4=True)) == ""


def test_each_limit_moves_its_verdict() -> None:
    assert reason(PROSE, QualityConfig(gopher=True, gopher_limits=GopherLimits(min_words=500))) == "gopher-word-count"
    assert reason(PROSE, QualityConfig(gopher=True, gopher_limits=GopherLimits(max_mean_word_length=3.5))) == "gopher-word-length"
    assert reason(PROSE, QualityConfig(gopher=True, gopher_limits=GopherLimits(stop_words=("zounds",)))) == "gopher-stop-words"
    tight = RepetitionLimits(max_top_ngram_chars=(0.2, 0.01, 0.2))
    assert reason(PROSE, QualityConfig(gopher_repetition=True, gopher_repetition_limits=tight)) == "gopher-repetition-top-3-gram"
    assert reason(PROSE, QualityConfig(fineweb=True, fineweb_limits=FineWebLimits(short_line_chars=1000))) == "fineweb-short-lines"


def test_detail_says_what_was_found_and_what_is_allowed() -> None:
    (outcome,) = QualityStep(QualityConfig(gopher=True)).apply(["one two three"])
    assert (outcome.text, outcome.reason, outcome.detail) == (None, "gopher-word-count", "3 words, 50 to 100,000 are allowed")


def test_families_are_applied_one_after_the_other_and_c4_changes_what_the_next_sees() -> None:
    menu = "Home\nAbout us\nContact\nImprint\n" * 10
    text = menu + PROSE.replace(". ", ".\n")
    assert reason(text, QualityConfig(fineweb=True)) != ""
    (outcome,) = QualityStep(QualityConfig(c4=True, fineweb=True)).apply([text])
    assert outcome.text == PROSE.replace(". ", ".\n")
    assert outcome.counts == {"c4-lines-cut": 40}


def test_no_family_makes_no_step() -> None:
    assert quality_steps(QualityConfig()) == []
    assert [step.name for step in quality_steps(QualityConfig(c4=True))] == ["quality"]


def test_batches_are_cut_anywhere_with_equal_verdicts(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [PROSE, "short", PROSE * 3, CHINESE, "", "a b " * 300, THAI] * 3
    config = QualityConfig(gopher=True, gopher_repetition=True, fineweb=True)
    whole = QualityStep(config).apply(texts)
    monkeypatch.setattr("tasks.prepare.quality._BATCH_CHARS", 700)
    assert QualityStep(config).apply(texts) == whole
    assert len({outcome.reason for outcome in whole}) > 2


# ---- the parts ------------------------------------------------------------------------------------------------------


def test_words_are_what_the_published_programs_count() -> None:
    (words,) = WordTable.of(["Don't run /etc/x.sh --now, pay 1,000.50 (or 3.14)... see https://a.example/b?c=d; me@a.example!"]).texts
    assert words == [
        *["Don", "'t", "run", "/etc", "/", "x.sh", "--now", ",", "pay", "1,000.50", "(", "or", "3.14", ")", "...", "see", "https://a.example/b?c=d;"],
        *["me@a.example", "!"],
    ]


def test_a_selection_has_the_arrays_of_its_texts_alone() -> None:
    table = WordTable.of(["a b", "c, d", "", "e"])
    part = table.select([1, 3])
    alone = WordTable.of(["c, d", "e"])
    assert part.texts == alone.texts
    for name in ("lengths", "is_plain", "has_letter", "num_words", "owners"):
        assert getattr(part, name).tolist() == getattr(alone, name).tolist(), name


def test_sentences_are_counted_without_abbreviations_and_initials() -> None:
    assert num_sentences("It is e.g. here. Is it? J. Miller knows it!") == 3
    assert num_sentences("没有人知道。春天来了!") == 2
    assert num_sentences("no mark") == 1
    assert num_sentences("  ") == 0


def test_c4_cuts_by_line_and_refuses_by_document() -> None:
    lines = [
        "One sentence with a citation[3].",
        "No mark at its end",
        "Too short.",
        "Please enable JavaScript now.",
        "They use cookies for that purpose.",
        "It ends...",
    ]
    trimmed = trim("\n".join(lines), C4Limits(min_sentences=1))
    assert (trimmed.text, trimmed.num_cut, trimmed.refusal) == ("One sentence with a citation.", 5, None)
    assert trim("A line with a { bracket.", C4Limits(min_sentences=0)).refusal is not None
    assert trim("A line with a { bracket.", C4Limits(min_sentences=0, drop_curly_brackets=False)).text == "A line with a { bracket."
    assert trim("{ is in a line that is cut\nThis line is kept.", C4Limits(min_sentences=1)).text == "This line is kept."


def test_duplicate_ngrams_count_no_character_twice() -> None:
    assert duplicate_ngram_chars("abcabcabc", 3) == 6
    assert duplicate_ngram_chars("aaaaa", 2) == 4  # copies at 1 and, behind that, at 3: not at 2, which is inside of the first
    assert top_ngram_chars("ababc", 2) == 6
    assert top_ngram_chars(["a"], 2) == 0


@given(st.lists(st.lists(st.sampled_from(["a", "bb", "ccc", "d", "。", "水"]), max_size=60), max_size=6))
def test_screened_verdicts_equal_those_of_looking_at_every_ngram(documents: list[list[str]]) -> None:
    texts = [" ".join(words) for words in documents]
    limits = RepetitionLimits()
    table = WordTable.of(texts)
    lines = RepetitionLimits(max_top_ngram_chars=(1.0,) * 3, max_duplicate_ngram_chars=(1.0,) * 6)
    for text, words, is_unspaced, refusal, by_line in zip(
        texts,
        table.texts,
        table.is_mostly_unspaced.tolist(),
        repetition_refusals(texts, table, limits),
        repetition_refusals(texts, table, lines),
        strict=True,
    ):
        factor = 2 if is_unspaced else 1
        shares = [top_ngram_chars(words, n * factor, gap=not is_unspaced) / max(len(text), 1) for n in (2, 3, 4)]
        shares += [duplicate_ngram_chars(words, n * factor) / max(len(text), 1) for n in range(5, 11)]
        names = [*(f"top-{n}-gram" for n in (2, 3, 4)), *(f"{n}-grams" for n in range(5, 11))]
        all_limits = (*limits.max_top_ngram_chars, *limits.max_duplicate_ngram_chars)
        broken = [f"gopher-repetition-{name}" for name, share, most in zip(names, shares, all_limits, strict=True) if share > most]
        line_reason = by_line.reason if by_line is not None and not by_line.reason.endswith(("gram", "grams")) else ""
        assert (refusal.reason if refusal else "") == (line_reason or (broken or [""])[0])


def test_limits_of_larger_ngrams_are_not_above_those_of_smaller_ones_by_default() -> None:
    limits = RepetitionLimits()
    assert all(small >= large for small, large in pairwise(limits.max_duplicate_ngram_chars))
