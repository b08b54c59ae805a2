"""The hash of the training state: independent of how it is cut, and of nothing else."""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.canonical import canonical_json
from schemas.checkpoint import SLOTS, CommitRecord, Fragment, RankIndex, Slot
from tasks.train.checkpoint.state_hash import as_hex, hash_checkpoint, hash_piece

STATE = {
    (name, slot): np.random.default_rng(len(name + slot)).integers(0, 2**32, size, dtype=np.uint32)
    for name, size in (("w", 70_001), ("bias", 5))
    for slot in SLOTS
}
MASK = (1 << 64) - 1


def whole(state: Mapping[tuple[str, Slot], npt.NDArray[np.uint32]]) -> int:
    return sum(hash_piece(bits, name=name, slot=slot, start=0) for (name, slot), bits in state.items()) & MASK


@given(st.lists(st.integers(0, 70_001), max_size=5))
def test_pieces_add_up_wherever_they_are_cut(cuts: list[int]) -> None:
    bits = STATE["w", "weight"]
    borders = [0, *sorted(cuts), bits.size]
    pieces = [hash_piece(bits[first:last], name="w", slot="weight", start=first) for first, last in pairwise(borders)]
    assert sum(pieces) & MASK == hash_piece(bits, name="w", slot="weight", start=0)


@given(st.integers(0, 70_000), st.integers(0, 31))
def test_every_bit_counts(position: int, bit: int) -> None:
    changed = STATE["w", "weight"].copy()
    changed[position] ^= np.uint32(1 << bit)
    assert hash_piece(changed, name="w", slot="weight", start=0) != hash_piece(STATE["w", "weight"], name="w", slot="weight", start=0)


def test_places_names_and_slots_count() -> None:
    bits = np.arange(8, dtype=np.uint32)
    swapped = bits[[1, 0, 2, 3, 4, 5, 6, 7]]
    hashes = [
        hash_piece(bits, name="w", slot="weight", start=0),
        hash_piece(swapped, name="w", slot="weight", start=0),
        hash_piece(bits, name="v", slot="weight", start=0),
        hash_piece(bits, name="w", slot="exp_avg", start=0),
        hash_piece(bits, name="w", slot="weight", start=1),
    ]
    assert len(set(hashes)) == len(hashes)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_checkpoint_has_the_hash_of_its_state_whoever_reads_it(tmp_path: Path, world_size: int) -> None:
    commit = write_checkpoint(tmp_path, world_size)
    assert hash_checkpoint(commit, folder=tmp_path) == whole(STATE)
    shares = [hash_checkpoint(commit, folder=tmp_path, part=part, num_parts=2) for part in range(2)]
    assert sum(shares) & MASK == whole(STATE)


def test_it_is_written_in_sixteen_digits() -> None:
    assert as_hex(10) == "000000000000000a"


def write_checkpoint(folder: Path, world_size: int) -> CommitRecord:
    """Writes the state in pieces of equal size, dealt to the ranks in turn."""
    for rank in range(world_size):
        fragments, data, offset = [], [], 0
        for (name, slot), bits in STATE.items():
            piece = np.array_split(bits, world_size)[rank]
            start = sum(part.size for part in np.array_split(bits, world_size)[:rank])
            fragments.append(Fragment(name=name, slot=slot, start=start, count=piece.size, byte_offset=offset))
            data.append(piece)
            offset += piece.nbytes
        (folder / f"rank-{rank:04d}.bin").write_bytes(np.concatenate(data).tobytes())
        index = RankIndex(rank=rank, world_size=world_size, fragments=tuple(fragments), rng={})
        (folder / f"rank-{rank:04d}.json").write_bytes(canonical_json(index))
    return CommitRecord(step=1, epoch=0, folder="checkpoints/step-00000001.e000000", files=(), world_size=world_size, committed_at=0.0)
