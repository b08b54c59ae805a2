from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import InputError
from schemas.preparation_config import DecontaminationConfig
from tasks.prepare import ngram_index
from tasks.prepare.decontamination import DecontaminationStep
from tasks.prepare.ngram_index import INDEX_FILES, HeldOutText, NgramIndex, ngrams_of
from tasks.prepare.words import words_of

QUESTION = "Which of these animals is known for its ability to change the colour of its skin?"
HELD_OUT = [
    HeldOutText("test/a", QUESTION, "test"),
    HeldOutText("test/b", "我们今天一起去北京大学看书", "test"),
    HeldOutText("test/c", "too short", "test"),
    HeldOutText("exam.jsonl:1", "What do you get when you multiply six by nine in base thirteen?", "exam.jsonl"),
]
INDEX = NgramIndex.build(HELD_OUT, n=8)


def step(index: NgramIndex = INDEX, **limits: float) -> DecontaminationStep:
    return DecontaminationStep(DecontaminationConfig(ngram=index.n, **limits), index)  # type: ignore[arg-type]


def test_a_document_with_a_shared_ngram_is_refused_and_the_finding_names_it_and_its_source() -> None:
    text = "quiz: WHICH of these animals -- is known for its\nability ... to win?"
    same, other, chinese = step().apply([text, "Which of these animals is known for nothing at all to anybody", "昨天我们今天一起去北京大"])
    assert (same.text, same.reason) == (None, "contaminated")
    assert same.detail == "3 of 5 8-grams, the first 'which of these animals is known for its' of test/a"
    assert other.text is not None
    assert chinese.detail == "3 of 5 8-grams, the first '我 们 今 天 一 起 去 北' of test/b"
    assert (same.counts, other.counts) == ({"shared with test": 1}, {})
    (asked,) = step().apply([HELD_OUT[3].text])
    assert (asked.counts, asked.detail.endswith("of exam.jsonl:1")) == ({"shared with exam.jsonl": 1}, True)


def test_ngrams_do_not_reach_over_the_end_of_a_text() -> None:
    words = QUESTION.split()
    assert all(outcome.text is not None for outcome in step().apply([" ".join(words[:5]), " ".join(words[5:10]), ""]))


def test_limits() -> None:
    text = " ".join(QUESTION.split()[:9]) + " and much else that nobody has ever asked about any animal"
    assert step(max_shared=1).apply([text])[0].reason == "contaminated"  # it shares 2
    assert step(max_shared=2).apply([text])[0].text == text
    assert step(min_shared_share=0.5).apply([text])[0].text == text
    assert step(min_shared_share=0.5).apply([QUESTION])[0].reason == "contaminated"


def test_common_text_is_no_evaluation() -> None:
    header = "licensed under the terms of the licence that came with it"
    texts = [HeldOutText(str(index), f"{header} {index} own words of this text alone", "test") for index in range(4)]
    assert step(NgramIndex.build(texts, n=8)).apply([header])[0].reason == "contaminated"
    index = NgramIndex.build(texts, n=8, max_texts=3)
    assert step(index).apply([header])[0].text == header
    assert step(index).apply([texts[2].text])[0].reason == "contaminated"


def test_a_repeated_ngram_of_one_text_is_of_one_text() -> None:
    text = HeldOutText("a", "one two three four five " * 20, "test")
    assert len(NgramIndex.build([text], n=5, max_texts=1).hashes) == 5


def test_texts_too_short_to_compare_with_are_counted() -> None:
    assert INDEX.num_short == 1


def test_an_index_comes_back_from_its_files_byte_for_byte(tmp_path: Path) -> None:
    first, second = tmp_path / "1", tmp_path / "2"
    for folder in (first, second):
        folder.mkdir()
    INDEX.save(first)
    NgramIndex.load(first).save(second)
    for name in INDEX_FILES:
        assert (first / name).read_bytes() == (second / name).read_bytes()
    assert step(NgramIndex.load(first)).apply([QUESTION]) == step().apply([QUESTION])


def test_how_texts_are_batched_does_not_change_an_index() -> None:
    small = NgramIndex.build(HELD_OUT, n=8, batch_chars=1)
    assert np.array_equal(small.hashes, INDEX.hashes)
    assert np.array_equal(small.owners, INDEX.owners)
    assert (small.names, small.origins, small.num_short) == (INDEX.names, INDEX.origins, INDEX.num_short)


def test_an_empty_index_refuses_nothing() -> None:
    assert step(NgramIndex.build([], n=8)).apply([QUESTION])[0].text == QUESTION


def test_an_index_that_would_be_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ngram_index, "MAX_NGRAMS", 5)
    with pytest.raises(InputError, match=r"hold more than .* n-grams"):
        NgramIndex.build(HELD_OUT, n=8)


def test_hashes_are_the_same_in_every_process_and_release() -> None:
    assert ngrams_of(["a b c d e f"], n=5).hashes.tolist() == [GOLDEN_FIRST, GOLDEN_SECOND]


GOLDEN_FIRST, GOLDEN_SECOND = 18_087_130_916_781_002_264, 10_504_455_364_762_601_937

documents = st.lists(st.lists(st.sampled_from("abc水。"), max_size=30).map(" ".join), max_size=5)


@given(documents, documents)
def test_what_is_found_equals_a_comparison_of_words(held_out: list[str], texts: list[str]) -> None:
    def plain(text: str) -> set[tuple[str, ...]]:
        words = words_of(text)
        return {tuple(words[start : start + 5]) for start in range(len(words) - 4)}

    index = NgramIndex.build([HeldOutText(str(number), text, "test") for number, text in enumerate(held_out)], n=5)
    wanted = [bool(plain(text) & set().union(*map(plain, held_out))) for text in texts]
    assert [outcome.text is None for outcome in step(index).apply(texts)] == wanted
