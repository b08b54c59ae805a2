"""The windowed order: whole passes, few shards at a time, and any position without those before it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from schemas.manifest import ShardManifest
from schemas.mixture import SLOTS, MixtureConfig
from schemas.recipe_config import TrainingConfig
from tasks.train.order import BatchOrder, GlobalOrder, Indices, batch_of
from tasks.train.prescribed_order import order_of
from tasks.train.windowed_order import WindowedOrder
from tests.fakes.made_up_shards import manifest_of

ROWS = st.lists(st.integers(1, 30), min_size=1, max_size=12)


def first(order: WindowedOrder, count: int) -> Indices:
    return order.at(np.arange(count, dtype=np.int64))


@given(rows=ROWS, window=st.integers(1, 200), seed=st.integers(0, 2**64 - 1))
@settings(max_examples=60)
def test_every_pass_visits_every_sequence_once(rows: list[int], window: int, seed: int) -> None:
    size = sum(rows)
    passes = first(WindowedOrder(rows, window_sequences=window, seed=seed), 3 * size).reshape(3, size)
    assert np.array_equal(np.sort(passes, axis=1), np.tile(np.arange(size), (3, 1)))


@given(rows=ROWS, window=st.integers(1, 200), positions=st.lists(st.integers(0, 1000), min_size=1, max_size=30))
@settings(max_examples=20)
def test_positions_alone_are_positions_together(rows: list[int], window: int, positions: list[int]) -> None:
    order = WindowedOrder(rows, window_sequences=window, seed=3)
    whole = first(order, 1001)
    assert order.at(np.array(positions)).tolist() == whole[positions].tolist()
    assert [int(order.at(np.array([position]))[0]) for position in positions] == whole[positions].tolist()


def test_a_shard_is_used_up_within_a_window() -> None:
    """What it is for: 100 shards of 50, windows of 500: no stretch of a window's length needs more than two windows' shards."""
    order = WindowedOrder([50] * 100, window_sequences=500, seed=1)
    shards = first(order, 5000) // 50
    for begin in range(0, 5000, 500):
        assert np.unique(shards[begin : begin + 500]).size == 10
    assert max(np.unique(shards[begin : begin + 64]).size for begin in range(0, 5000, 7)) <= 20
    distances = [int(np.ptp(np.flatnonzero(shards == shard))) for shard in range(100)]
    assert max(distances) < 500
    assert np.median(distances) > 300, "a window must be shuffled as a whole, not shard by shard"


def test_shards_keep_other_company_in_every_pass() -> None:
    order = WindowedOrder([50] * 100, window_sequences=500, seed=1)
    shards = first(order, 10_000).reshape(2, 10, 500) // 50
    companies = [{frozenset(np.unique(window).tolist()) for window in one} for one in shards]
    assert not companies[0] & companies[1]


def test_batches_do_not_depend_on_the_way_to_them() -> None:
    order = WindowedOrder([30, 7, 50, 1, 12] * 20, window_sequences=200, seed=9)
    batches = BatchOrder(order, global_batch_size=48)
    for step in (0, 41, 42, 3, 10**8):
        again = WindowedOrder([30, 7, 50, 1, 12] * 20, window_sequences=200, seed=9)
        assert np.array_equal(batches.batch(step), batch_of(again, step, global_batch_size=48))


def by_source() -> ShardManifest:
    return manifest_of(*((source, 20) for source in ["web"] * 30 + ["code"] * 10))


def test_it_is_identity_and_at_least_a_batch() -> None:
    training = {"steps": 1000, "global_batch_size": 32, "micro_batch_size": 4}
    plain, windowed = (TrainingConfig.model_validate(training | more) for more in ({}, {"window_sequences": 32}))
    assert "window_sequences" not in plain.model_dump()
    assert windowed.model_dump()["window_sequences"] == 32
    with pytest.raises(ValidationError, match=r"window_sequences \(31\) is below global_batch_size \(32\).*nearest: 32"):
        TrainingConfig.model_validate(training | {"window_sequences": 31})


def test_it_goes_with_a_mixture_source_by_source() -> None:
    mixture = MixtureConfig(weights={"web": 1, "code": 1})
    order = order_of(by_source(), seed=5, mixture=mixture, window_sequences=100)
    used = order.at(np.arange(SLOTS, dtype=np.int64))
    web = used[used < 600]
    assert web.size == SLOTS // 2
    assert np.array_equal(np.sort(web[:600]), np.arange(600))
    assert np.unique(web[:100] // 20).size == 5


@pytest.mark.parametrize("window", [800, 10**6, None])
def test_a_window_that_holds_all_is_the_plain_order(window: int | None) -> None:
    assert order_of(by_source(), seed=5, window_sequences=window) == GlobalOrder(800, 5)


@pytest.mark.parametrize(("start", "expected"), [(0, [91, 1, 7, 25, 34, 19]), (10**12, [79, 71, 44, 84, 59, 45])])
def test_the_windowed_order_is_frozen(start: int, expected: list[int]) -> None:
    """A change here changes every windowed run's data: it needs a new version of the train stage."""
    order = WindowedOrder([30, 7, 50, 1, 12], window_sequences=40, seed=1234)
    assert order.at(np.arange(start, start + 6)).tolist() == expected
