"""The hash of what training has used: the same at every world size, and for nothing else."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.checkpoint import BatchWindow
from tasks.train.consumed import NUM_WORDS, START, ConsumedIds, prescribed
from tasks.train.order import GlobalOrder, global_batch, rank_slice

GLOBAL_BATCH, SEQUENCES, SEED = 12, 41, 7


def trained(world_sizes: list[int], *, chain: str = START, first: int = 0, swap: tuple[int, int] | None = None) -> str:
    """Returns the hash after one step at each of `world_sizes`, as ranks would take it; `swap`: two steps that change places."""
    consumed = [ConsumedIds(chain) for _ in range(max(world_sizes))]
    for step, world_size in enumerate(world_sizes, start=first):
        if swap is not None and step in swap:
            step = sum(swap) - step
        batch = global_batch(step, num_sequences=SEQUENCES, global_batch_size=GLOBAL_BATCH, seed=SEED)
        ranks = consumed[:world_size]
        for rank, own in enumerate(ranks):
            for micro_batch in rank_slice(batch, rank=rank, world_size=world_size, micro_batch_size=2):
                own.note(micro_batch)
        total = [sum(words) for words in zip(*(own.words for own in ranks), strict=True)]
        for own in consumed:
            own.end_step(total)
    (chain,) = {own.chain for own in consumed}
    return chain


def expected(steps: int, *, skipped: tuple[BatchWindow, ...] = ()) -> str:
    return prescribed(steps, order=GlobalOrder(SEQUENCES, SEED), global_batch_size=GLOBAL_BATCH, skipped=skipped)


@given(st.lists(st.sampled_from([1, 2, 3, 6]), min_size=1, max_size=8))
def test_world_sizes_do_not_matter_and_the_recipe_prescribes_it(world_sizes: list[int]) -> None:
    assert trained(world_sizes) == expected(len(world_sizes))


def test_it_goes_on_from_a_checkpoint_and_forgets_what_was_done_beyond_it() -> None:
    committed = trained([2, 2, 2])
    assert trained([2, 2, 2, 2, 2]) == trained([1, 1], chain=committed, first=3)


def test_order_of_steps_counts() -> None:
    assert trained([2] * 5, swap=(1, 3)) != trained([2] * 5)


@pytest.mark.parametrize("change", ["another id", "one twice", "one missing"])
def test_any_other_multiset_is_another_hash(change: str) -> None:
    batch = global_batch(0, num_sequences=SEQUENCES, global_batch_size=GLOBAL_BATCH, seed=SEED)
    other = {"another id": np.append(batch[:-1], batch[-1] ^ 1), "one twice": np.append(batch, batch[:1]), "one missing": batch[1:]}[change]
    hashes = []
    for ids in (batch, other):
        consumed = ConsumedIds()
        consumed.note(ids)
        consumed.end_step(consumed.words)
        hashes.append(consumed.chain)
    assert hashes[0] != hashes[1]


def test_batches_that_a_rewind_left_out_are_not_prescribed() -> None:
    left_out = expected(3, skipped=(BatchWindow(first=1, stop=3),))
    consumed = ConsumedIds()
    for batch in (0, 3, 4):
        consumed.note(global_batch(batch, num_sequences=SEQUENCES, global_batch_size=GLOBAL_BATCH, seed=SEED))
        consumed.end_step(consumed.words)
    assert left_out == consumed.chain != expected(3)


def test_what_was_not_counted_from_the_beginning_stays_unknown() -> None:
    consumed = ConsumedIds("")
    consumed.note(np.arange(4))
    consumed.end_step(consumed.words)
    assert consumed.chain == ""


def test_words_are_exact_in_fp64() -> None:
    consumed = ConsumedIds()
    for start in range(0, 200_000, 50_000):
        consumed.note(np.arange(start, start + 50_000))
    assert len(consumed.words) == NUM_WORDS
    assert all(word == int(word) and 0 <= word < 2**32 for word in consumed.words)
