"""The 5-gram is a probability distribution, agrees with a plain reimplementation of its formulas, and is strong on what it has seen."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.evaluate.ngram import NgramModel

VOCABULARY = 6
STREAMS = st.lists(st.integers(0, VOCABULARY - 1), min_size=8, max_size=120)


@settings(max_examples=60)
@given(STREAMS, st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=8), st.integers(1, 5))
def test_sums_to_one_in_every_context(stream: list[int], context: list[int], order: int) -> None:
    model = NgramModel(np.array(stream), vocab_size=VOCABULARY, order=order)
    distribution = model.distribution(context)
    assert distribution.min() > 0
    assert distribution.sum() == pytest.approx(1.0, abs=1e-9)


def plain_probability(stream: list[int], context: list[int], token: int, *, order: int, discounts: list[list[float]]) -> float:
    """The same model by dictionaries and recursion, as in the paper; `discounts` by order, then by count."""

    def counts(size: int) -> Counter[tuple[int, ...]]:
        if size == order:
            return Counter(tuple(stream[i : i + size]) for i in range(len(stream) - size + 1))
        longer = {tuple(stream[i : i + size + 1]) for i in range(len(stream) - size)}
        return Counter(gram[1:] for gram in longer)

    def probability(size: int) -> float:
        if size == 0:
            return 1 / VOCABULARY
        table = counts(size)
        before = tuple(context[len(context) - size + 1 :]) if size > 1 else ()
        following = {gram[-1]: count for gram, count in table.items() if gram[:-1] == before}
        total = sum(following.values())
        if size - 1 > len(context) or not total:
            return probability(size - 1) if size - 1 <= len(context) else probability(len(context) + 1)
        taken = sum(discounts[size - 1][min(count, 3)] for count in following.values())
        own = following.get(token, 0)
        return (own - discounts[size - 1][min(own, 3)]) / total + taken / total * probability(size - 1)

    return probability(order)


@settings(max_examples=40)
@given(STREAMS, st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=4))
def test_agrees_with_a_plain_reimplementation(stream: list[int], context: list[int]) -> None:
    order = 3
    model = NgramModel(np.array(stream), vocab_size=VOCABULARY, order=order)
    discounts = [level.discounts.tolist() for level in model.levels]
    found = model.distribution(context)
    expected = [plain_probability(stream, context, token, order=order, discounts=discounts) for token in range(VOCABULARY)]
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_a_context_never_reaches_beyond_its_document() -> None:
    random = np.random.default_rng(0)
    model = NgramModel(random.integers(0, VOCABULARY, 500), vocab_size=VOCABULARY)
    one, two = np.array([0, 3, 4, 5]), np.array([0, 1, 2])
    together = model.nats(np.concatenate([one, two]), positions=np.array([0, 1, 2, 3, 0, 1, 2]))
    np.testing.assert_allclose(together[4:], model.nats(two, positions=np.arange(3)))


def test_longer_context_helps_where_there_is_structure() -> None:
    stream = np.tile([1, 2, 3, 1, 4, 5], 200)
    nats = [NgramModel(stream, vocab_size=VOCABULARY, order=order).nats(stream[:60], positions=np.arange(60))[10:].mean() for order in (1, 2, 3)]
    assert nats[0] > nats[1] > nats[2]
    assert nats[2] < 0.05


def test_a_stream_shorter_than_the_order() -> None:
    model = NgramModel(np.array([1, 2]), vocab_size=VOCABULARY)
    assert model.distribution([1]).sum() == pytest.approx(1.0)


def test_a_huge_vocabulary_counts_the_same() -> None:
    """Keys that leave no room for positions are sorted another way."""
    stream = np.random.default_rng(1).integers(0, VOCABULARY, 300)
    small, huge = NgramModel(stream, vocab_size=VOCABULARY), NgramModel(stream, vocab_size=2**53)
    for level, other in zip(small.levels, huge.levels, strict=True):
        np.testing.assert_array_equal(level.counts, other.counts)
        np.testing.assert_array_equal(level.totals, other.totals)
