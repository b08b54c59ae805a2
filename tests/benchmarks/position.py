"""G4: where training goes on. The batch of any step of an epoch of 10**12 sequences, against a permutation that has to be made and kept.

The peer is what `torch.utils.data.RandomSampler` does (`torch.randperm` of the whole epoch, then skip), measured at two sizes and extrapolated
to 10**9, since 10**12 would take 8 TB. Before that: whatever the world size, ranks together have the same sequences in the same order.
"""

import tracemalloc

import torch
import xxhash

from tasks.train.order import Indices, global_batch, rank_slice
from tests.benchmarks.harness import Figure, Outcome, Sample, interleave, timed, versions_of

GOAL_MS, GOAL_BYTES = 5.0, 1 << 20
NUM_SEQUENCES, BATCH, MICRO_BATCH, SEED = 10**12, 1024, 8, 1234
_PEER_SIZES = (5_000_000, 20_000_000)
_CALLS = 200
_WORLD_SIZES = range(1, 9)


def run(*, repetitions: int = 5) -> Outcome:
    """Returns the outcome."""
    torch.set_num_threads(1)
    hashes = {_order_hash(world_size) for world_size in _WORLD_SIZES}
    assert len(hashes) == 1, "the order depends on the world size"
    peak = _peak_bytes()
    peers = {f"torch.randperm of {size:,}": lambda size=size: _permutation(size) for size in _PEER_SIZES}  # type: ignore[misc]
    figures = interleave({"headrace, any step of 10**12": _resume, **peers}, repetitions=repetitions)
    per_call = [Figure(f.name, *(x / _CALLS for x in (f.median_wall_s, f.min_wall_s, f.max_wall_s, f.median_cpu_s))) for f in figures[:1]]
    ours_ms = 1000 * per_call[0].max_wall_s
    peer_s = figures[-1].median_wall_s * 10**9 / _PEER_SIZES[-1]
    is_met = ours_ms <= GOAL_MS and peak <= GOAL_BYTES
    return Outcome(
        name="position",
        figures=(*per_call, *figures[1:]),
        verdict=f"position: {ours_ms:.2f} ms and {peak / 1024:.0f} KiB for any step of an epoch of 10**12 "
        f"(goal {GOAL_MS:g} ms, {GOAL_BYTES >> 10} KiB); a permutation of 10**9: {peer_s:.0f} s and 8 GB: {'met' if is_met else 'missed'}",
        met=is_met,
        versions=versions_of("headrace", "numpy", "torch"),
        notes=(
            f"hash of the order, the same at world sizes {_WORLD_SIZES.start} to {_WORLD_SIZES.stop - 1}: {hashes.pop()}",
            f"a step's batch has {BATCH:,} sequences; {_CALLS} steps all over the epoch per repetition",
        ),
    )


def _steps() -> list[int]:
    """Returns steps all over three epochs, the first and the last included."""
    last = 3 * NUM_SEQUENCES // BATCH - 1
    return [number * last // (_CALLS - 1) for number in range(_CALLS)]


def _batch(step: int) -> Indices:
    return global_batch(step, num_sequences=NUM_SEQUENCES, global_batch_size=BATCH, seed=SEED)


def _resume() -> Sample:
    def work() -> None:
        for step in _steps():
            rank_slice(_batch(step), rank=0, world_size=8, micro_batch_size=MICRO_BATCH)

    return timed(work)


def _permutation(size: int) -> Sample:
    def work() -> None:
        order = torch.randperm(size, generator=torch.Generator().manual_seed(SEED))
        order[size // 2 : size // 2 + BATCH].tolist()

    return timed(work)


def _peak_bytes() -> int:
    """Returns the most memory that finding a step's batch takes at any moment."""
    tracemalloc.start()
    for step in _steps():
        _batch(step)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


def _order_hash(world_size: int) -> str:
    """Returns the hash of the sequences of some steps, put together from what each rank would read."""
    state = xxhash.xxh3_128()
    for step in _steps():
        batch = _batch(step)
        ranks = [rank_slice(batch, rank=rank, world_size=world_size, micro_batch_size=MICRO_BATCH) for rank in range(world_size)]
        for number in range(-(-BATCH // MICRO_BATCH)):
            state.update(ranks[number % world_size][number // world_size].tobytes())
    return state.hexdigest()
