"""Hashes that are remembered many at a time are told from new ones as one by one."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.validate.seen import SeenHashes

HASHES = st.tuples(st.sampled_from([b"\0" * 8, b"\0" * 7 + b"\1", b"\1" * 8]), st.integers(0, 30)).map(lambda each: each[0] + each[1].to_bytes(8))
"""Few first halves, so that most of them want one and the same slot."""


def one_by_one(hashes: list[bytes], *, limit: int) -> tuple[list[bool], bool]:
    """Returns which came before, and whether any was forgotten: the definition."""
    seen: set[bytes] = set()
    has_forgotten, found = False, []
    for each in hashes:
        found.append(each in seen)
        if each not in seen and len(seen) == limit:
            seen.clear()
            has_forgotten = True
        seen.add(each)
    return found, has_forgotten


@given(batches=st.lists(st.lists(HASHES, max_size=40), max_size=8), limit=st.integers(1, 70))
@settings(max_examples=150)
def test_repeats_of_many_are_those_of_one_by_one(batches: list[list[bytes]], limit: int) -> None:
    seen, found = SeenHashes(limit), []
    for batch in batches:
        found += seen.repeats(np.frombuffer(b"".join(batch), dtype=np.uint8).reshape(-1, 16)).tolist()
    assert (found, seen.has_forgotten) == one_by_one([each for batch in batches for each in batch], limit=limit)


def test_a_full_table_still_tells_new_hashes_from_old_ones() -> None:
    generator = np.random.default_rng(7)
    hashes = generator.integers(0, 256, (5000, 16), dtype=np.uint8)
    seen = SeenHashes(5000)
    assert not any(seen.repeats(part).any() for part in np.array_split(hashes, 9))
    assert seen.repeats(hashes).all()
    assert not seen.has_forgotten
    assert not seen.repeats(generator.integers(0, 256, (1, 16), dtype=np.uint8)).any()
    assert seen.has_forgotten
    assert not seen.repeats(hashes[:100]).any()
