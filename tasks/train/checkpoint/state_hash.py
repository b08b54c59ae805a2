"""A hash of the fp32 training state that does not depend on how it is cut: equal for equal state at any world size and ZeRO stage.

Every element is hashed with its parameter's name, its slot and its position; the hashes are added up. So pieces may be hashed by whoever
has them, in any order. One wrong bit changes the sum, as do two elements that changed places. numpy only: the control half uses it too.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from schemas.checkpoint import CommitRecord, RankIndex, Slot
from tasks.train.checkpoint.files import data_name, index_name

_MASK = (1 << 64) - 1
_CHUNK = 1 << 16
"""Elements hashed at a time: what is in work stays in a processor's cache."""
_STRIDE = np.uint64(0x9E3779B97F4A7C15)
_SPREAD = np.uint64(0xD6E8FEB86659FD93)
_MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def hash_piece(bits: npt.NDArray[np.uint32], *, name: str, slot: Slot, start: int) -> int:
    """Returns the sum, 64 bits, of the hashes of consecutive elements of a flattened parameter.

    Args:
        bits: fp32 values, as they lie in memory: uint32 [N].
        name: the parameter's.
        slot: which of its tensors.
        start: position of the first element.
    """
    key = np.uint64(xxhash.xxh3_64_intdigest(f"{slot}/{name}".encode()))
    total = 0
    for first in range(0, bits.size, _CHUNK):
        chunk = bits[first : first + _CHUNK].astype(np.uint64)
        chunk *= _SPREAD
        chunk ^= np.arange(start + first, start + first + chunk.size, dtype=np.uint64) * _STRIDE + key
        for multiplier in _MULTIPLIERS:
            chunk ^= chunk >> np.uint64(32)
            chunk *= multiplier
        chunk ^= chunk >> np.uint64(29)
        total += int(chunk.sum(dtype=np.uint64))
    return total & _MASK


def hash_checkpoint(commit: CommitRecord, *, folder: Path, part: int = 0, num_parts: int = 1) -> int:
    """Returns the sum over a committed checkpoint, or over one part's share of its ranks' files.

    Args:
        commit: its files are expected to verify.
        folder: where they lie.
        part: 0-based.
        num_parts: among how many the files are divided.
    """
    total = 0
    for rank in range(part, commit.world_size, num_parts):
        total += sum(_hash_rank(folder, rank))
    return total & _MASK


def as_hex(total: int) -> str:
    """Returns a sum as 16 hex digits."""
    return f"{total & _MASK:016x}"


def _hash_rank(folder: Path, rank: int) -> Iterator[int]:
    index = RankIndex.model_validate_json((folder / index_name(rank)).read_bytes())
    if not index.fragments:
        return
    data = np.memmap(folder / data_name(rank), dtype="<u4", mode="r")
    for fragment in index.fragments:
        first = fragment.byte_offset // 4
        yield hash_piece(data[first : first + fragment.count], name=fragment.name, slot=fragment.slot, start=fragment.start)
