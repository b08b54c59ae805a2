"""A mixture's order: exact proportions, whole passes, and the same batch however and wherever it is computed."""

from collections.abc import Mapping
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import ConfigError
from schemas.mixture import SLOTS, MixtureConfig
from tasks.train.consumed import prescribed
from tasks.train.mixed_order import MixedOrder, SourcePart
from tasks.train.order import BatchOrder, GlobalOrder, Indices, batch_of, rank_slice
from tasks.train.prescribed_order import order_of
from tests.fakes.made_up_shards import manifest_of

SEED = 7


SHARDS = (("web", 50), ("code", 9), ("web", 31), ("rest", 4), ("code", 1))
WEIGHTS = {"web": 5, "code": 2, "rest": 1}
OWNERS = np.repeat([source for source, _ in SHARDS], [rows for _, rows in SHARDS])
"""The source of each sequence of the split."""


def mixed(weights: Mapping[str, float] = WEIGHTS, *, seed: int = SEED) -> MixedOrder:
    order = order_of(manifest_of(*SHARDS), seed=seed, mixture=MixtureConfig(weights=weights))
    assert isinstance(order, MixedOrder)
    return order


def first(order: MixedOrder, count: int, *, start: int = 0) -> Indices:
    return order.at(np.arange(start, start + count, dtype=np.int64))


@pytest.mark.parametrize("cycle", [0, 1, 10**9])
def test_every_cycle_has_every_source_in_exact_proportion(cycle: int) -> None:
    used = OWNERS[first(mixed(), SLOTS, start=cycle * SLOTS)]
    assert {source: int((used == source).sum()) for source in WEIGHTS} == {"web": SLOTS * 5 // 8, "code": SLOTS // 4, "rest": SLOTS // 8}


@given(start=st.integers(0, 3 * SLOTS), count=st.integers(1, 500))
@settings(max_examples=20)
def test_any_stretch_has_nearly_its_share_of_every_source(start: int, count: int) -> None:
    """Within 1 at the beginning and the end of what a cycle has of it: a plain shuffle would be off by the root of the count."""
    used = OWNERS[first(mixed(), count, start=start)]
    for source, weight in WEIGHTS.items():
        assert abs(int((used == source).sum()) - count * weight / 8) < 4


@given(
    rows=st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 40)), min_size=1, max_size=6),
    weights=st.fixed_dictionaries({name: st.floats(0.01, 100) for name in "abc"}),
    seed=st.integers(0, 2**31 - 1),
    start=st.integers(0, SLOTS),
)
@settings(max_examples=8)
def test_all_sequences_of_a_source_are_used_once_before_any_is_used_twice(
    rows: list[tuple[str, int]], weights: dict[str, float], seed: int, start: int
) -> None:
    manifest = manifest_of(*rows)
    sources = manifest.sequences_by_source("train")
    order = order_of(manifest, seed=seed, mixture=MixtureConfig(weights={name: weights[name] for name in sources}))
    owners = np.repeat([source for source, _ in rows], [count for _, count in rows])
    used = order.at(np.arange(3 * SLOTS // 2 + start, dtype=np.int64))  # over the end of a cycle, from the beginning on
    for source, size in sources.items():
        own = used[owners[used] == source]
        passes, last = own[: own.size // size * size].reshape(-1, size), own[own.size // size * size :]
        assert np.unique(last).size == last.size
        assert np.array_equal(np.sort(passes, axis=1), np.tile(np.flatnonzero(owners == source), (passes.shape[0], 1)))


@cache
def beginning() -> Indices:
    return first(mixed(), 4 * SLOTS + 1)


@given(positions=st.lists(st.integers(0, 4 * SLOTS), min_size=1, max_size=40))
@settings(max_examples=20)
def test_positions_alone_are_positions_together(positions: list[int]) -> None:
    order, whole = mixed(), beginning()
    assert order.at(np.array(positions)).tolist() == whole[positions].tolist()
    assert [int(mixed().at(np.array([position]))[0]) for position in positions[:3]] == whole[positions[:3]].tolist()


def test_steps_in_any_sequence_and_at_any_world_size_are_the_same_batches() -> None:
    batches = BatchOrder(mixed(), global_batch_size=60)
    for step in (0, 1, 1092, 1093, 5, 10**7):
        batch = batch_of(mixed(), step, global_batch_size=60)
        assert np.array_equal(batches.batch(step), batch)
        for world_size in (1, 2, 3, 7):
            parts = [rank_slice(batch, rank=rank, world_size=world_size, micro_batch_size=4) for rank in range(world_size)]
            assert sorted(index for part in parts for micro_batch in part for index in micro_batch.tolist()) == sorted(batch.tolist())


def test_a_source_keeps_its_own_order_whatever_else_is_mixed() -> None:
    one = first(mixed(), 600)
    other = first(mixed({"web": 1, "code": 50, "rest": 0}), 600)
    code, again = one[OWNERS[one] == "code"], other[OWNERS[other] == "code"]
    assert np.array_equal(code, again[: code.size])
    assert not (OWNERS[other] == "rest").any()


def test_seeds_give_other_orders_and_cycles_other_rhythms() -> None:
    assert not np.array_equal(first(mixed(), 1000), first(mixed(seed=8), 1000))
    first_cycle, second = (OWNERS[first(mixed(), 1000, start=start)] for start in (0, SLOTS))
    assert not np.array_equal(first_cycle, second)


@pytest.mark.parametrize(("start", "expected"), [(0, [4, 52, 75, 35, 5, 50, 76, 92]), (10**12, [94, 63, 74, 11, 21, 56, 91, 81])])
def test_the_order_of_a_mixture_is_frozen(start: int, expected: list[int]) -> None:
    """A change here changes every mixed run's data: it needs a new version of the train stage."""
    assert first(mixed(), 8, start=start).tolist() == expected


def test_what_was_used_is_told_by_the_recipe() -> None:
    plain = prescribed(20, order=order_of(manifest_of(*SHARDS), seed=SEED), global_batch_size=12)
    assert prescribed(20, order=mixed(), global_batch_size=12) == prescribed(20, order=mixed(), global_batch_size=12) != plain


def test_without_a_mixture_shards_by_source_have_the_plain_order() -> None:
    order = order_of(manifest_of(*SHARDS), seed=SEED)
    assert order == GlobalOrder(95, SEED)


def test_one_source_alone_is_used_in_its_own_order() -> None:
    order = MixedOrder([SourcePart(SLOTS, GlobalOrder(10, 3))], seed=1)
    assert np.array_equal(first(order, 100, start=SLOTS - 50), GlobalOrder(10, 3).at(np.arange(SLOTS - 50, SLOTS + 50)))


def test_shards_without_sources_cannot_be_mixed() -> None:
    with pytest.raises(ConfigError, match="by_source"):
        order_of(manifest_of(("", 5)), seed=SEED, mixture=MixtureConfig(weights={"web": 1}))
