"""Duplicates over a corpus: planted ones are found, others are not, and components are what a slow and plain way finds."""

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.prepare import clusters
from tasks.prepare.joining import Components
from tests.tasks.prepare.conftest import Documents, Prepare
from tests.tasks.prepare.test_build import WORDS
from tests.tasks.prepare.test_shingles import jaccard

THRESHOLD = 0.8


def family(seed: int, *, words: int, members: int, changes: int) -> list[str]:
    """A text and copies of it in which some words in a row were replaced."""
    chosen = random.Random(seed)
    first = chosen.choices(WORDS, k=words)
    copies = [first]
    for number in range(1, members):
        at = chosen.randrange(words - changes)
        copies.append([*first[:at], *(f"n{seed}x{number}x{index}" for index in range(changes)), *first[at + changes :]])
    return [" ".join(copy) for copy in copies]


@settings(max_examples=12)
@given(seed=st.integers(0, 10**6))
def test_planted_near_duplicates_are_found_and_strangers_are_not(seed: int) -> None:
    # well above the threshold, so that the error of the estimate does not decide; and well below
    near = [family(seed * 100 + number, words=300, members=3, changes=6) for number in range(15)]
    far = [family(seed * 100 + 50 + number, words=300, members=2, changes=60) for number in range(15)]
    assert all(jaccard(copies[0], copies[1], shingle=5) > THRESHOLD + 0.1 for copies in near)
    assert all(jaccard(copies[0], copies[1], shingle=5) < THRESHOLD - 0.1 for copies in far)
    texts = [text for copies in (*near, *far) for text in copies]
    random.Random(seed).shuffle(texts)
    found = components_of(texts)
    expected = [frozenset(copies) for copies in near] + [frozenset([text]) for copies in far for text in copies]
    assert Counter(found) == Counter(expected)


def components_of(texts: list[str]) -> list[frozenset[str]]:
    """The sets that the stage's own comparison makes of texts."""
    import tempfile
    from pathlib import Path

    from schemas.preparation_config import DuplicatesConfig
    from tasks.prepare.clusters import GroupDocuments
    from tasks.prepare.signature_file import SignatureFile
    from tests.fakes.in_process_work import doc_id

    config = DuplicatesConfig(near=True, threshold=THRESHOLD)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = SignatureFile("signatures", config=config, output_dir=folder, temporary=lambda name: folder / f".tmp-{name}")
        file.add([doc_id(text).encode() for text in texts], texts)
        entry = file.publish()
        assert entry is not None
        group = GroupDocuments(group=0, documents={"train": len(texts)}, signatures=entry)
        (folder / "laid-out").mkdir()
        table = clusters._Table.load([group], config=config, output_dir=folder, folder=folder / "laid-out")
        components = Components(len(texts))
        for left, right in table.pairs():
            components.join(left, right)
    sets: dict[int, set[str]] = {}
    for text, label in zip(texts, components.labels.tolist(), strict=True):
        sets.setdefault(label, set()).add(text)
    return [frozenset(members) for members in sets.values()]


@given(count=st.integers(1, 40), seed=st.integers(0, 10**6), pairs=st.integers(0, 60))
def test_components_are_those_of_a_plain_search_in_any_order_of_the_pairs(count: int, seed: int, pairs: int) -> None:
    drawn = np.random.default_rng(seed)
    left, right = drawn.integers(0, count, size=(2, pairs))
    components = Components(count)
    for at in range(0, pairs, 7):
        components.join(left[at : at + 7], right[at : at + 7])
    other = Components(count)
    other.join(right[::-1], left[::-1])
    plain = list(range(count))
    for _ in range(count):
        for one, two in zip(left.tolist(), right.tolist(), strict=True):
            plain[one] = plain[two] = min(plain[one], plain[two])
    assert components.labels.tolist() == other.labels.tolist() == plain
    sizes = Counter(plain)
    assert components.shared().tolist() == [index for index in range(count) if sizes[plain[index]] > 1]


def test_sorting_in_parts_finds_the_same_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = np.random.default_rng(3).integers(0, 40, size=300).astype(np.uint64)

    def pairs() -> set[tuple[int, int]]:
        return {pair for left, right in clusters._sharing(keys) for pair in zip(left.tolist(), right.tolist(), strict=True)}

    whole = pairs()
    firsts = {int(key): int(np.flatnonzero(keys == key)[0]) for key in np.unique(keys)}
    assert whole == {(firsts[int(key)], index) for index, key in enumerate(keys.tolist()) if key and firsts[int(key)] != index}
    monkeypatch.setattr(clusters, "_PART_KEYS", 50)
    monkeypatch.setattr(clusters, "_PAIRS_AT_ONCE", 7)
    assert pairs() == whole


def test_texts_without_words_are_like_no_others(prepare: Prepare) -> None:
    documents: Documents = {(0, "train"): ["...", "!!!", "the words of a document", "— –"]}
    assert len(prepare(documents, duplicates={"near": True}).texts()) == 4
