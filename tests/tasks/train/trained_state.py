"""What tests look at when ranks have trained: commits, and every bit of the state that they hold."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.checkpoint import SLOTS, CommitRecord, RankIndex, TrainingState
from schemas.config import RunConfig

MakeConfig = Callable[..., RunConfig]
MakeGang = Callable[[str], Any]
PROGRAMS = Path(__file__).parent / "rank_programs.py"


def newest_commit(artifact_dir: Path) -> CommitRecord:
    name = sorted(path.name for path in (artifact_dir / "commits").iterdir())[-1]
    return CommitRecord.model_validate_json((artifact_dir / "commits" / name).read_bytes())


def files_of(artifact_dir: Path, commit: CommitRecord) -> dict[str, bytes]:
    return {entry.path: (artifact_dir / commit.folder / entry.path).read_bytes() for entry in commit.files}


def whole_state(artifact_dir: Path) -> dict[str, npt.NDArray[np.uint32]]:
    """Returns every parameter and moment of the newest commit, whole, as bits."""
    commit = newest_commit(artifact_dir)
    folder = artifact_dir / commit.folder
    state = TrainingState.model_validate_json((folder / "state.json").read_bytes())
    whole = {f"{item.name}/{slot}": np.full(int(np.prod(item.shape)), 0xFFFFFFFF, dtype=np.uint32) for item in state.parameters for slot in SLOTS}
    written = dict.fromkeys(whole, 0)
    for rank in range(commit.world_size):
        index = RankIndex.model_validate_json((folder / f"rank-{rank:04d}.json").read_bytes())
        data = np.fromfile(folder / f"rank-{rank:04d}.bin", dtype=np.uint32)
        for fragment in index.fragments:
            key = f"{fragment.name}/{fragment.slot}"
            first = fragment.byte_offset // 4
            whole[key][fragment.start : fragment.start + fragment.count] = data[first : first + fragment.count]
            written[key] += fragment.count
    assert written == {key: bits.size for key, bits in whole.items()}, "every element is written exactly once"
    return whole


def assert_equal_state(one: Path, other: Path) -> None:
    left, right = whole_state(one), whole_state(other)
    assert left.keys() == right.keys()
    assert [key for key in left if not np.array_equal(left[key], right[key])] == []
