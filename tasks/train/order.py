"""The order of samples: a pure function of (step, number of sequences, global batch size, seed). numpy only.

Every pass over the data visits the sequences in the order of a keyed permutation: a Feistel network on the smallest
power-of-two domain that holds them, with cycle walking back into range (Black and Rogaway, "Ciphers with arbitrary
finite domains", 2002). It takes no memory, any position costs microseconds, and it knows nothing of ranks: a global
batch is the same at every world size. `tasks.train.prescribed_order` says which order a recipe has.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]

_AHEAD = 8192
"""Sequences whose places are computed at once."""
_NUM_ROUNDS = 6
_MASK_64 = (1 << 64) - 1
_MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_SHIFTS = (np.uint64(29), np.uint64(32))


def permute(positions: Indices, *, size: int, key: int | Words) -> Indices:
    """Returns where a keyed permutation of range(size) sends `positions`.

    Args:
        positions: int64 [B], each in [0, size).
        size: number of elements, at most 2**62.
        key: which permutation, 64 bits; or one for each position, uint64 [B].

    Returns:
        int64 [B], each in [0, size). The domain is below 2 × size, so a position walks twice on average at most.
    """
    num_bits = max(2, (size - 1).bit_length())
    low_bits = num_bits // 2
    round_keys = _round_keys(key)
    result = _encrypt(positions.astype(np.uint64), high_bits=num_bits - low_bits, low_bits=low_bits, round_keys=round_keys)
    outside = np.flatnonzero(result >= size)
    while outside.size:  # ends: the walk follows a cycle that contains a position in range
        own_keys = [keys[outside] if isinstance(keys, np.ndarray) else keys for keys in round_keys]
        walked = _encrypt(result[outside], high_bits=num_bits - low_bits, low_bits=low_bits, round_keys=own_keys)
        result[outside] = walked
        outside = outside[walked >= size]
    return result.astype(np.int64)


class Order(Protocol):
    """An endless order of sequences: whole passes, one after the other."""

    def at(self, positions: Indices) -> Indices:
        """Returns the sequences at `positions`, each from 0 on: int64 [B]. Any position costs the same; nothing is remembered between calls."""


@dataclass(frozen=True)
class GlobalOrder:
    """Every pass visits all sequences by a permutation of its own."""

    num_sequences: int
    """Sequences of a pass."""
    seed: int
    """Which order, 64 bits."""

    def at(self, positions: Indices) -> Indices:
        """See `Order.at`."""
        passes, within = np.divmod(positions, self.num_sequences)
        return permute(within, size=self.num_sequences, key=pass_keys(self.seed, passes))


def pass_keys(seed: int, passes: Indices) -> int | Words:
    """Returns the key of each of `passes` [B], or the one key where they are all the same: most calls lie within a pass, and are cheaper so."""
    first, last = int(passes.min()), int(passes.max())
    return _pass_key(seed, first) if first == last else mix_words(np.uint64(_mix(seed + 1)) ^ passes.astype(np.uint64))


def key_of(seed: int, *numbers: int) -> int:
    """Returns a key, 64 bits, that belongs to `numbers` under `seed`."""
    for number in numbers:
        seed = _mix(_mix(seed) ^ number)
    return seed


def global_batch(step: int, *, num_sequences: int, global_batch_size: int, seed: int) -> Indices:
    """Returns the sequences of batch `step` of a `GlobalOrder`, 0-based: int64 [global_batch_size].

    Position step × global_batch_size + i lies in pass p = position // num_sequences, which has a key of its own; a batch may span passes.
    """
    return batch_of(GlobalOrder(num_sequences, seed), step, global_batch_size=global_batch_size)


def batch_of(order: Order, step: int, *, global_batch_size: int) -> Indices:
    """Returns batch `step`, 0-based: int64 [global_batch_size]. Where batches are left out, `schemas.act.batch_number` says which."""
    return order.at(np.arange(step * global_batch_size, (step + 1) * global_batch_size, dtype=np.int64))


class BatchOrder:
    """`batch_of` for one training, several steps at once: a call costs 0.2 ms however few sequences it is for. Holds 64 KB, or a batch."""

    def __init__(self, order: Order, *, global_batch_size: int) -> None:
        """Args: as for `batch_of`."""
        self._order, self._global_batch_size = order, global_batch_size
        self._steps = range(0)
        self._sequences: Indices = np.empty(0, dtype=np.int64)

    def batch(self, step: int) -> Indices:
        """Returns `batch_of(order, step, …)`: int64 [global_batch_size]."""
        size = self._global_batch_size
        if step not in self._steps:
            self._steps = range(step, step + max(1, _AHEAD // size))
            self._sequences = self._order.at(np.arange(step * size, self._steps.stop * size, dtype=np.int64))
        first = (step - self._steps.start) * size
        return self._sequences[first : first + size]


def rank_slice(batch: Indices, *, rank: int, world_size: int, micro_batch_size: int) -> Sequence[Indices]:
    """Returns a rank's micro-batches of a global batch, in order.

    The batch is cut into consecutive micro-batches, dealt to the ranks in turn. So the micro-batches are the same sets of
    sequences at every world size, and the ranks' slices partition the batch whether or not the world size divides it.
    """
    num_micro_batches = -(-batch.size // micro_batch_size)
    return [batch[number * micro_batch_size : (number + 1) * micro_batch_size] for number in range(rank, num_micro_batches, world_size)]


def stream_seed(seed: int, *, step: int, rank: int) -> int:
    """Returns the seed, 63 bits, of a rank's random numbers (dropout) in one step: nothing of a generator needs saving."""
    return _mix(_mix(_mix(seed) ^ step) ^ rank) >> 1


def _pass_key(seed: int, number: int) -> int:
    return _mix(_mix(seed + 1) ^ number)


def _mix(word: int) -> int:
    """Returns the SplitMix64 finaliser of a 64-bit word (Steele, Lea and Flood, 2014)."""
    word = (word + 0x9E3779B97F4A7C15) & _MASK_64
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _MASK_64
    return word ^ (word >> 31)


def mix_words(words: Words) -> Words:
    """Returns the SplitMix64 finaliser of each of `words`."""
    mixed = words + np.uint64(0x9E3779B97F4A7C15)
    for shift, multiplier in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(multiplier)
    return mixed ^ (mixed >> np.uint64(31))


def _round_keys(key: int | Words) -> Sequence[np.uint64 | Words]:
    """Returns the keys of the rounds: numbers, or arrays where every position has a key of its own."""
    steps = [number * 0x9E3779B97F4A7C15 & _MASK_64 for number in range(1, _NUM_ROUNDS + 1)]
    if isinstance(key, int):
        return [np.uint64(_mix((key + step) & _MASK_64)) for step in steps]
    return [mix_words(key + np.uint64(step)) for step in steps]


def _round(words: Words, key: np.uint64 | Words) -> Words:
    """Returns mixed words, the good bits low; numpy's multiplication wraps around."""
    mixed: Words = (words ^ key) * _MULTIPLIERS[0]
    mixed ^= mixed >> _SHIFTS[0]
    mixed *= _MULTIPLIERS[1]
    mixed >>= _SHIFTS[1]
    return mixed


def _encrypt(words: Words, *, high_bits: int, low_bits: int, round_keys: Sequence[np.uint64 | Words]) -> Words:
    """Returns one pass of the Feistel network over [0, 2**(high_bits + low_bits)); halves need not be equal."""
    high_mask, low_mask = np.uint64((1 << high_bits) - 1), np.uint64((1 << low_bits) - 1)
    shift = np.uint64(low_bits)
    high, low = words >> shift, words & low_mask
    for first, second in zip(round_keys[::2], round_keys[1::2], strict=True):
        high ^= _round(low, first) & high_mask
        low ^= _round(high, second) & low_mask
    return (high << shift) | low
