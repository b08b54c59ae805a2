"""Signatures of texts: equal on every machine, and as similar as the shingles of their texts are."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.preparation_config import DuplicatesConfig
from tasks.prepare.shingles import band_keys, rows_per_band, signatures_of
from tasks.prepare.words import words_of

CONFIG = DuplicatesConfig(near=True)


def jaccard(one: str, other: str, *, shingle: int) -> float:
    sets = [{tuple(words[at : at + shingle]) for at in range(len(words) - shingle + 1)} for words in (words_of(one), words_of(other))]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def similarity(*texts: str, config: DuplicatesConfig = CONFIG) -> float:
    signatures, _ = signatures_of(texts, config=config)
    return float((signatures[0] == signatures[1]).mean())


def test_signatures_are_the_same_wherever_and_whenever_they_are_made() -> None:
    signatures, has_words = signatures_of(["the quick brown fox jumps over the lazy dog", "你好世界你好世界"], config=CONFIG)
    assert signatures[:, :6].tolist() == GOLDEN
    assert has_words.all()


GOLDEN = [[44870, 31974, 22620, 13629, 53902, 61299], [665, 60776, 43231, 24154, 27703, 47606]]


def test_a_signature_does_not_depend_on_the_texts_beside_it() -> None:
    texts = ["one two three four five six", "", "one", "你好 world", "...", "one two three four five six seven"]
    together, has_words = signatures_of(texts, config=CONFIG)
    for index, text in enumerate(texts):
        alone, words = signatures_of([text], config=CONFIG)
        assert (alone[0] == together[index]).all()
        assert words[0] == has_words[index]
    assert has_words.tolist() == [True, False, True, True, False, True]


@settings(max_examples=30)
@given(words=st.integers(60, 600), changed=st.floats(0.0, 0.2), seed=st.integers(0, 2**32))
def test_the_estimate_is_near_the_similarity_of_the_shingles(words: int, changed: float, seed: int) -> None:
    chosen = random.Random(seed)
    one = [f"w{chosen.randrange(10**6)}" for _ in range(words)]
    other = [f"x{chosen.randrange(10**6)}" if chosen.random() < changed else word for word in one]
    true = jaccard(" ".join(one), " ".join(other), shingle=CONFIG.shingle)
    assert similarity(" ".join(one), " ".join(other)) == pytest.approx(true, abs=5.5 * (max(true * (1 - true), 0.01) / 128) ** 0.5)


def test_case_and_punctuation_are_no_difference_and_short_texts_are_compared_in_whole() -> None:
    assert similarity("Some words, in a row; and more.", "some words in a row and more") == 1.0
    assert similarity("three words only", "three words only!") == 1.0
    assert similarity("three words only", "three words also") < 0.1


@pytest.mark.parametrize(("threshold", "permutations"), [(0.5, 128), (0.7, 128), (0.8, 128), (0.95, 128), (0.8, 16), (0.1, 256)])
def test_a_pair_at_the_threshold_shares_a_band_with_the_promised_probability(threshold: float, permutations: int) -> None:
    config = DuplicatesConfig(near=True, threshold=threshold, permutations=permutations)
    rows = rows_per_band(config)
    bands = permutations // rows
    drawn = np.random.default_rng(1)
    one = drawn.integers(0, 2**16, size=(3000, permutations), dtype=np.uint16)
    other = np.where(drawn.random(one.shape) < threshold, one, one + np.uint16(1))
    found = (band_keys(one, rows=rows) == band_keys(other, rows=rows)).any(axis=0).mean()
    assert found > 0.93
    assert band_keys(one, rows=rows).shape == (bands, 3000)
