"""How much of a corpus is encoded a second time, and which documents."""

import itertools
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest

from schemas.errors import VerificationError
from tasks.tokenize.shadow import ShadowCheck, shadow_bytes
from tasks.tokenizer.corpus import Columns
from tasks.tokenizer.engine import Encoded

KIBIBYTE = 1 << 10


class Letters:
    """A reference whose ids are code points; remembers what it was asked."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def encode(self, texts: list[str]) -> Encoded:
        self.seen += texts
        return encoded(texts)


def encoded(texts: Sequence[str]) -> Encoded:
    ids = np.array([ord(letter) for text in texts for letter in text], dtype=np.uint32)
    return Encoded(ids=ids, offsets=np.cumsum([0, *map(len, texts)], dtype=np.int64))


def checked(texts: Sequence[str], *, documents: int, most_bytes: int, batch: int = 7) -> list[str]:
    """Shows a check all texts, some at a time, and returns those that it encoded."""
    reference = Letters()
    check = ShadowCheck(reference, engine=Letters(), documents=documents, of=len(texts), most_bytes=most_bytes)  # type: ignore[arg-type]
    for first in range(0, len(texts), batch):
        show(check, texts[first : first + batch])
    assert check.checked == len(reference.seen)
    return reference.seen


def show(check: ShadowCheck, texts: Sequence[str], *, ids: Encoded | None = None) -> None:
    columns = Columns(doc_ids=pa.array([text[:8] for text in texts]), texts=pa.array(list(texts)))
    check.check(columns, ids or encoded(texts), sizes=columns.sizes)


@pytest.mark.parametrize(
    ("groups", "least", "most"),
    [
        ([5_000_000], 256 * KIBIBYTE, 256 * KIBIBYTE),
        ([64_000_000] * 4, 256 * KIBIBYTE - 4, 256 * KIBIBYTE),
        ([64_000_000] * 1000, 64_000_000_000 // 2080, 64_000_000_000 // 2048),
        ([1, 2**40], 2**29, 2**29 + 1),
    ],
)
def test_256_kib_of_every_corpus_and_a_2048th_of_a_large_one(groups: list[int], least: int, most: int) -> None:
    assert least <= sum(shadow_bytes(group_bytes=group, corpus_bytes=sum(groups)) for group in groups) <= most


def test_something_of_every_group_is_checked() -> None:
    assert shadow_bytes(group_bytes=1, corpus_bytes=2**40) == 1
    assert shadow_bytes(group_bytes=0, corpus_bytes=0) == 1


def test_documents_are_spread_over_the_whole_group_however_few_there_are() -> None:
    texts = [f"{number:08d}" + "x" * 92 for number in range(1000)]
    assert [int(text[:8]) for text in checked(texts, documents=4, most_bytes=10**9)] == [0, 250, 500, 750]
    few = [int(text[:8]) for text in checked(texts, documents=500, most_bytes=1000)]
    assert len(few) == 10
    assert all(first // 100 + 1 == second // 100 for first, second in itertools.pairwise(few[1:])), "one of each hundred"
    assert checked(texts, documents=0, most_bytes=1000) == []


def test_of_a_document_that_memory_would_not_hold_the_beginning_is_checked() -> None:
    long = "水" * 300_000
    assert checked([long, long + "x"], documents=2, most_bytes=10) == ["水" * (256 * KIBIBYTE // 3)]

    class Wrong(Letters):
        def encode(self, texts: list[str]) -> Encoded:
            return encoded([text[:-1] + "x" for text in texts])

    check = ShadowCheck(Letters(), engine=Wrong(), documents=1, of=1, most_bytes=10)  # type: ignore[arg-type]
    with pytest.raises(VerificationError, match=r"the beginning of document .*: token 87380 is"):
        show(check, [long])


def test_a_long_document_does_not_take_the_place_of_many_and_one_is_always_checked() -> None:
    assert checked(["a" * 900, *["b" * 50] * 19], documents=20, most_bytes=200) == ["b" * 50] * 4
    assert checked(["a" * 900, "b" * 800], documents=2, most_bytes=1) == ["b" * 800]
    assert checked(["a" * 900, "b" * 800], documents=2, most_bytes=1800) == ["a" * 900, "b" * 800]


def test_a_differing_id_is_found_in_whatever_batch_it_is() -> None:
    texts = [f"{number:08d}" for number in range(30)]
    check = ShadowCheck(Letters(), engine=Letters(), documents=30, of=30, most_bytes=240)  # type: ignore[arg-type]
    show(check, texts[:10])
    wrong = encoded(texts[10:])
    wrong.ids[8 * 5] ^= 1
    with pytest.raises(VerificationError, match="document 00000015: token 0 is"):
        show(check, texts[10:], ids=wrong)
