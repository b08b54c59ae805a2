"""The order of samples: a pure function of (step, number of sequences, global batch size, seed). numpy only.

Every pass over the data visits the sequences in the order of a keyed permutation: a Feistel network on the smallest
power-of-two domain that holds them, with cycle walking back into range (Black and Rogaway, "Ciphers with arbitrary
finite domains", 2002). It takes no memory, any position costs microseconds, and it knows nothing of ranks: a global
batch is the same at every world size.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]
_Words = npt.NDArray[np.uint64]

_AHEAD = 8192
"""Sequences whose places are computed at once."""
_NUM_ROUNDS = 6
_MASK_64 = (1 << 64) - 1
_MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_SHIFTS = (np.uint64(29), np.uint64(32))


def permute(positions: Indices, *, size: int, key: int) -> Indices:
    """Returns where a keyed permutation of range(size) sends `positions`.

    Args:
        positions: int64 [B], each in [0, size).
        size: number of elements, at most 2**62.
        key: which permutation, 64 bits.

    Returns:
        int64 [B], each in [0, size). The domain is below 2 × size, so a position walks twice on average at most.
    """
    num_bits = max(2, (size - 1).bit_length())
    low_bits = num_bits // 2
    round_keys = [np.uint64(_mix((key + number * 0x9E3779B97F4A7C15) & _MASK_64)) for number in range(1, _NUM_ROUNDS + 1)]
    result = _encrypt(positions.astype(np.uint64), high_bits=num_bits - low_bits, low_bits=low_bits, round_keys=round_keys)
    outside = np.flatnonzero(result >= size)
    while outside.size:  # ends: the walk follows a cycle that contains a position in range
        walked = _encrypt(result[outside], high_bits=num_bits - low_bits, low_bits=low_bits, round_keys=round_keys)
        result[outside] = walked
        outside = outside[walked >= size]
    return result.astype(np.int64)


def global_batch(step: int, *, num_sequences: int, global_batch_size: int, seed: int) -> Indices:
    """Returns the sequences of batch `step`, 0-based: int64 [global_batch_size]. Where batches are left out, `schemas.act.batch_number` says which.

    Position step × global_batch_size + i lies in pass p = position // num_sequences, which has a key of its own; a batch may span passes.
    """
    return sequences_at(step * global_batch_size, global_batch_size, num_sequences=num_sequences, seed=seed)


def sequences_at(first: int, count: int, *, num_sequences: int, seed: int) -> Indices:
    """Returns the sequences at the positions `first` … `first + count - 1` of the endless order: int64 [count]."""
    positions = np.arange(first, first + count, dtype=np.int64)
    passes, within = np.divmod(positions, num_sequences)
    sequences = np.empty(count, dtype=np.int64)
    for number in range(int(passes[0]), int(passes[-1]) + 1):
        chosen = passes == number
        sequences[chosen] = permute(within[chosen], size=num_sequences, key=_pass_key(seed, number))
    return sequences


class BatchOrder:
    """`global_batch` for one training, several steps at once: a call costs 0.2 ms however few sequences it is for. Holds 64 KB, or a batch."""

    def __init__(self, *, num_sequences: int, global_batch_size: int, seed: int) -> None:
        """Args: as for `global_batch`."""
        self._num_sequences, self._global_batch_size, self._seed = num_sequences, global_batch_size, seed
        self._steps = range(0)
        self._sequences: Indices = np.empty(0, dtype=np.int64)

    def batch(self, step: int) -> Indices:
        """Returns `global_batch(step, …)`: int64 [global_batch_size]."""
        size = self._global_batch_size
        if step not in self._steps:
            self._steps = range(step, step + max(1, _AHEAD // size))
            self._sequences = sequences_at(step * size, len(self._steps) * size, num_sequences=self._num_sequences, seed=self._seed)
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


def _round(words: _Words, key: np.uint64) -> _Words:
    """Returns mixed words, the good bits low; numpy's multiplication wraps around."""
    mixed: _Words = (words ^ key) * _MULTIPLIERS[0]
    mixed ^= mixed >> _SHIFTS[0]
    mixed *= _MULTIPLIERS[1]
    mixed >>= _SHIFTS[1]
    return mixed


def _encrypt(words: _Words, *, high_bits: int, low_bits: int, round_keys: Sequence[np.uint64]) -> _Words:
    """Returns one pass of the Feistel network over [0, 2**(high_bits + low_bits)); halves need not be equal."""
    high_mask, low_mask = np.uint64((1 << high_bits) - 1), np.uint64((1 << low_bits) - 1)
    shift = np.uint64(low_bits)
    high, low = words >> shift, words & low_mask
    for first, second in zip(round_keys[::2], round_keys[1::2], strict=True):
        high ^= _round(low, first) & high_mask
        low ^= _round(high, second) & low_mask
    return (high << shift) | low
