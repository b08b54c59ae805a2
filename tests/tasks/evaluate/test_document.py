"""Which documents are evaluated: stable, bounded, and independent of the order they come in."""

import random

from hypothesis import given
from hypothesis import strategies as st

from tasks.evaluate.document import Document, select

TEXTS = st.lists(st.text(min_size=1, max_size=30), min_size=1, max_size=40, unique=True)


@given(TEXTS, st.integers(1, 400), st.integers(0, 99))
def test_the_order_of_arrival_does_not_matter(texts: list[str], max_bytes: int, seed: int) -> None:
    documents = [Document(text, source="a") for text in texts]
    shuffled = list(documents)
    random.Random(seed).shuffle(shuffled)
    chosen = select(documents, max_bytes=max_bytes)
    assert chosen == select(shuffled, max_bytes=max_bytes)
    assert len(chosen) == 1 or sum(document.num_bytes for document in chosen) <= max_bytes


@given(TEXTS, st.integers(1, 200))
def test_a_larger_budget_keeps_what_a_smaller_one_chose(texts: list[str], max_bytes: int) -> None:
    documents = [Document(text, source="a") for text in texts]
    small, large = select(documents, max_bytes=max_bytes), select(documents, max_bytes=2 * max_bytes)
    assert large[: len(small)] == small


def test_everything_when_it_fits() -> None:
    documents = [Document(str(number), source="a") for number in range(50)]
    assert set(select(documents, max_bytes=10_000)) == set(documents)
