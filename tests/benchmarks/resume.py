"""G4: the position in an epoch of 10¹² samples, at any step; and that the order of samples is the same for every number of ranks.

The peer is what a `DistributedSampler` does to find its place: permute the whole epoch, then skip. Its time and memory grow with the epoch, so
it is measured at 10⁷ samples and extrapolated. Ours takes no memory and knows no epoch.
"""

import random
import statistics
import time
import tracemalloc

import numpy as np
import xxhash

from tasks.train.order import global_batch, rank_slice
from tests.benchmarks.harness import Figure, Outcome, Sample, interleave, versions_of

GOAL_S = 0.005
SAMPLES = 10**12
PEER_SAMPLES = 10**7
BATCH, MICRO_BATCH, SEED = 64, 5, 7
"""13 micro-batches, the last one short: no number of ranks from 2 to 8 divides them."""
WORLDS = range(1, 9)
ORDER_STEPS = 500
POSITIONS = 200


def run() -> Outcome:
    """Returns the outcome."""
    hashes = {order_hash(world_size) for world_size in WORLDS}
    draw = random.Random(SEED)
    steps = [draw.randrange(SAMPLES // BATCH) for _ in range(POSITIONS)]
    taken = sorted(_seconds(step) for step in steps)
    grown = _memory(steps[0])
    figures = (
        Figure("position in 1e12", statistics.median(taken), taken[0], taken[-1], statistics.median(taken)),
        *interleave({"randperm of 1e7": _permute_all}, repetitions=5),
    )
    peer_s = figures[1].median_wall_s * SAMPLES / PEER_SAMPLES
    met = len(hashes) == 1 and taken[-1] <= GOAL_S
    order = "one order" if len(hashes) == 1 else f"{len(hashes)} orders"
    return Outcome(
        name="resume",
        figures=figures,
        verdict=(
            f"resume: any of {POSITIONS} positions in 1e12 samples within {taken[-1] * 1e3:.2f} ms (median {figures[0].median_wall_s * 1e3:.2f}) and "
            f"{grown / 1024:.0f} KiB, {order} for 1 to {WORLDS[-1]} ranks; a permutation of all would take {peer_s / 3600:.0f} h and 8 TB "
            f"(extrapolated); goal {GOAL_S * 1e3:g} ms: {'met' if met else 'missed'}"
        ),
        met=met,
        versions=versions_of("headrace", "numpy", "torch"),
    )


def order_hash(world_size: int) -> str:
    """Returns the hash of the samples that so many ranks train on, step by step, put together from the ranks' own slices."""
    state = xxhash.xxh3_128()
    for step in range(SAMPLES // BATCH // 2, SAMPLES // BATCH // 2 + ORDER_STEPS):
        batch = global_batch(step, num_sequences=SAMPLES, global_batch_size=BATCH, seed=SEED)
        shares = [rank_slice(batch, rank=rank, world_size=world_size, micro_batch_size=MICRO_BATCH) for rank in range(world_size)]
        for number in range(sum(len(share) for share in shares)):
            state.update(np.ascontiguousarray(shares[number % world_size][number // world_size]))
    return state.hexdigest()


def _seconds(step: int) -> float:
    began = time.perf_counter()
    global_batch(step, num_sequences=SAMPLES, global_batch_size=BATCH, seed=SEED)
    return time.perf_counter() - began


def _memory(step: int) -> int:
    """Returns the most bytes that finding a position holds at any moment."""
    tracemalloc.start()
    global_batch(step, num_sequences=SAMPLES, global_batch_size=BATCH, seed=SEED)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def _permute_all() -> Sample:
    import torch

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(SEED)
    wall, cpu = time.perf_counter(), time.process_time()
    order = torch.randperm(PEER_SAMPLES, generator=generator)
    order[PEER_SAMPLES // 2 : PEER_SAMPLES // 2 + BATCH].tolist()
    return Sample(wall_s=time.perf_counter() - wall, cpu_s=time.process_time() - cpu)
