"""Which sequences the weights were made from: a hash that every checkpoint carries, so that it counts exactly the steps that count.

Each rank adds up hashes of the ids that it has really trained on in a step. The sums travel with the word on which the ranks agree
anyway; their total stands for the step's ids as a multiset, whatever rank had which of them, and is chained to the steps before.
What a start did beyond the checkpoint that a later one goes on from is forgotten with it, as the weights are.

Two trainings with equal hashes have used the same sequences in every step, at whatever world sizes. `prescribed` says what it must be,
from the recipe alone. numpy only: the control half uses it too.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import xxhash

from schemas.act import batch_number
from schemas.checkpoint import BatchWindow
from tasks.train.order import Indices, Order, batch_of

START = "0" * 32
"""The hash before the first step. An empty one is not known: the checkpoint is of a version that did not count."""
NUM_WORDS = 4
"""Numbers of a step's sum: 128 bits, 32 in each, so that the sum over two million ranks is exact in fp64."""

_BITS = 32
_MASK = (1 << _BITS) - 1
_SEEDS = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD1B54A32D192ED03))
_MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


class ConsumedIds:
    """The hash of all steps so far, and this rank's part of the step that is under way."""

    def __init__(self, chain: str = START) -> None:
        """Args: chain: of the checkpoint that training goes on from."""
        self.chain = chain
        """128 bits in hex; empty: not known, and then it stays so."""
        self._own = np.zeros(NUM_WORDS, dtype=np.uint64)

    def note(self, indices: Indices) -> None:
        """Adds sequences that this rank has trained on. `indices`: int64 [B]."""
        self._own += words_of(indices)

    @property
    def words(self) -> tuple[float, ...]:
        """What this rank has to add to the step's sum: `NUM_WORDS` whole numbers below 2**32."""
        return tuple(float(int(word) & _MASK) for word in self._own)

    def end_step(self, total: Sequence[float]) -> None:
        """Chains a step. `total`: the sum of all ranks' `words`."""
        self._own[:] = 0
        if self.chain:
            self.chain = _chained(self.chain, [int(word) & _MASK for word in total])


def words_of(indices: Indices) -> npt.NDArray[np.uint64]:
    """Returns the hash of a multiset of ids as `NUM_WORDS` sums of 32-bit words, uint64, not yet reduced. Two parts add up to the whole."""
    words = np.empty(NUM_WORDS, dtype=np.uint64)
    for half, seed in enumerate(_SEEDS):
        mixed = indices.astype(np.uint64) + seed
        for shift, multiplier in zip((np.uint64(30), np.uint64(27)), _MULTIPLIERS, strict=True):
            mixed = (mixed ^ (mixed >> shift)) * multiplier
        mixed ^= mixed >> np.uint64(31)
        words[2 * half] = (mixed & np.uint64(_MASK)).sum(dtype=np.uint64)
        words[2 * half + 1] = (mixed >> np.uint64(_BITS)).sum(dtype=np.uint64)
    return words


def prescribed(steps: int, *, order: Order, global_batch_size: int, skipped: Sequence[BatchWindow] = ()) -> str:
    """Returns the hash that a training of `steps` updates must end with, from its recipe alone.

    Args:
        steps: updates.
        order: the recipe's for its shards (`tasks.train.prescribed_order`).
        global_batch_size: sequences per step.
        skipped: batches that are never used, ascending and disjoint.
    """
    consumed = ConsumedIds()
    for step in range(steps):
        consumed.note(batch_of(order, batch_number(step, skipped), global_batch_size=global_batch_size))
        consumed.end_step(consumed.words)
    return consumed.chain


def _chained(chain: str, words: Sequence[int]) -> str:
    return xxhash.xxh3_128(bytes.fromhex(chain) + b"".join(word.to_bytes(_BITS // 8, "little") for word in words)).hexdigest()
