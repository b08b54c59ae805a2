import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.train import order
from tasks.train.order import BatchOrder, GlobalOrder, global_batch, permute, rank_slice, stream_seed


@given(size=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
def test_permute_is_a_bijection(size: int, key: int) -> None:
    image = permute(np.arange(size, dtype=np.int64), size=size, key=key)
    assert np.array_equal(np.sort(image), np.arange(size))


@given(size=st.integers(10**9, 2**62), key=st.integers(0, 2**64 - 1), data=st.data())
def test_permute_stays_in_range_and_apart_at_any_size(size: int, key: int, data: st.DataObject) -> None:
    positions = np.array(sorted(data.draw(st.sets(st.integers(0, size - 1), min_size=1, max_size=50))), dtype=np.int64)
    image = permute(positions, size=size, key=key)
    assert image.min() >= 0
    assert image.max() < size
    assert np.unique(image).size == positions.size


@given(size=st.integers(1, 500), seed=st.integers(0, 2**64 - 1), positions=st.lists(st.integers(0, 10**6), min_size=1, max_size=40))
def test_positions_of_many_passes_at_once_are_each_passs_own(size: int, seed: int, positions: list[int]) -> None:
    order = GlobalOrder(size, seed)
    assert order.at(np.array(positions)).tolist() == [int(order.at(np.array([position]))[0]) for position in positions]


def test_keys_give_unrelated_orders() -> None:
    positions = np.arange(10_000, dtype=np.int64)
    one, other = (permute(positions, size=10_000, key=key) for key in (1, 2))
    assert (one == other).sum() < 10
    assert abs(np.corrcoef(one, positions)[0, 1]) < 0.05
    assert abs(np.corrcoef(one[:-1], one[1:])[0, 1]) < 0.05


@pytest.mark.parametrize(("step", "expected"), [(0, [3, 4, 2, 6]), (2, [5, 8, 8, 4]), (10**9, [1, 2, 9, 7])])
def test_the_order_of_samples_is_frozen(step: int, expected: list[int]) -> None:
    """A change here changes every run's data: it needs a new version of the train stage."""
    assert global_batch(step, num_sequences=10, global_batch_size=4, seed=1234).tolist() == expected


@given(num_sequences=st.integers(1, 200), batch_size=st.integers(1, 64), seed=st.integers(0, 2**31 - 1), num_passes=st.integers(1, 3))
@settings(max_examples=50)
def test_every_pass_visits_every_sequence_once(num_sequences: int, batch_size: int, seed: int, num_passes: int) -> None:
    num_steps = -(-num_passes * num_sequences // batch_size)
    batches = [global_batch(step, num_sequences=num_sequences, global_batch_size=batch_size, seed=seed) for step in range(num_steps)]
    visited = np.concatenate(batches)[: num_passes * num_sequences]
    assert np.array_equal(np.sort(visited.reshape(num_passes, num_sequences), axis=1), np.tile(np.arange(num_sequences), (num_passes, 1)))


@given(steps=st.lists(st.integers(0, 400), min_size=1, max_size=30), num_sequences=st.integers(1, 300), batch_size=st.integers(1, 50))
@settings(max_examples=50)
def test_steps_computed_together_are_steps_computed_alone(steps: list[int], num_sequences: int, batch_size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order, "_AHEAD", 60)
        together = BatchOrder(GlobalOrder(num_sequences, 5), global_batch_size=batch_size)
        for step in (*steps, *sorted(steps)):
            alone = global_batch(step, num_sequences=num_sequences, global_batch_size=batch_size, seed=5)
            assert np.array_equal(together.batch(step), alone)


def test_passes_have_orders_of_their_own() -> None:
    first, second = (global_batch(step, num_sequences=100, global_batch_size=100, seed=0) for step in (0, 1))
    assert not np.array_equal(first, second)


@given(batch_size=st.integers(1, 200), world_size=st.integers(1, 17), micro_batch_size=st.integers(1, 13))
def test_slices_partition_the_batch_at_any_world_size(batch_size: int, world_size: int, micro_batch_size: int) -> None:
    batch = np.arange(batch_size, dtype=np.int64)
    slices = [rank_slice(batch, rank=rank, world_size=world_size, micro_batch_size=micro_batch_size) for rank in range(world_size)]
    assert sorted(int(index) for micro_batches in slices for micro_batch in micro_batches for index in micro_batch) == list(range(batch_size))
    alone = [micro.tolist() for micro in rank_slice(batch, rank=0, world_size=1, micro_batch_size=micro_batch_size)]
    assert sorted(micro.tolist() for micro_batches in slices for micro in micro_batches) == sorted(alone)


def test_ranks_get_equally_many_micro_batches_at_feasible_sizes() -> None:
    batch = np.arange(24, dtype=np.int64)
    for world_size in (1, 2, 3, 4, 6, 12):
        counts = {len(rank_slice(batch, rank=rank, world_size=world_size, micro_batch_size=2)) for rank in range(world_size)}
        assert counts == {12 // world_size}


def test_stream_seeds_differ_by_step_and_rank() -> None:
    seeds = {stream_seed(seed, step=step, rank=rank) for seed in range(3) for step in range(100) for rank in range(8)}
    assert len(seeds) == 3 * 100 * 8
    assert all(0 <= seed < 2**63 for seed in seeds)
