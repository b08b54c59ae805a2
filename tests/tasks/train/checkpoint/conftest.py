"""Made-up state of a gang of any size, written by the code of writer processes in this process, without torch."""

import dataclasses
import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from schemas.checkpoint import SLOTS, CommitRecord, ParameterShape, TrainingState
from schemas.execution_config import CheckpointConfig
from tasks.train.checkpoint.channel import Commit, Describe, Discard, Write, Written
from tasks.train.checkpoint.commit import CheckpointStore
from tasks.train.checkpoint.committer import Lead
from tasks.train.checkpoint.stream import Writer

SHAPES = (ParameterShape(name="weight", shape=(40, 30)), ParameterShape(name="bias", shape=(40,)))


def state_of(step: int, parameters: tuple[ParameterShape, ...] = SHAPES) -> TrainingState:
    """Returns the state after `step` updates."""
    return TrainingState(
        step=step, optimizer_step=step, skipped_steps=(), loss_scale={}, parameters=parameters, seed=1, zero_stage=2, precision="bf16"
    )


@dataclasses.dataclass
class Writers:
    """The writers of one start of a gang: every rank owns an equal share of one flat vector of parameters."""

    store: CheckpointStore
    epoch: int
    world_size: int
    rules: CheckpointConfig
    verified_step: int | None = None

    def __post_init__(self) -> None:
        self.writers = [Writer(self._describe(rank), self._memory(rank)) for rank in range(self.world_size)]

    def save(self, step: int) -> None:
        """Writes and commits the state of `step`, rank after rank, and tidies up."""
        files = [entry for rank in range(self.world_size) for entry in self.write(step, rank=rank).files]
        self.commit(step, files)

    def write(self, step: int, *, rank: int) -> Written:
        """Makes a rank's share durable."""
        self._fill(rank, step=step)
        written = self.writers[rank].serve(Write(step, folder=self.folder(step), rng={"next_step_seed": step}))
        assert isinstance(written, Written)
        return written

    def commit(self, step: int, files: list[dict[str, Any]]) -> None:
        """Commits what all ranks wrote, and tidies up."""
        state = state_of(step).model_dump(mode="json", exclude={"parameters"})
        request = Commit(step, folder=self.folder(step), state=state, files=files)
        self.writers[0].serve(request)
        self.writers[0].tidy(request)

    def discard(self, step: int) -> None:
        """Removes what was given up."""
        self.writers[0].serve(Discard(step, folder=self.folder(step)))

    @property
    def shapes(self) -> tuple[ParameterShape, ...]:
        """The parameters."""
        return SHAPES

    def state(self, step: int) -> TrainingState:
        """Returns the state after `step` updates."""
        return state_of(step)

    def folder(self, step: int) -> str:
        """Returns where a checkpoint lies, relative to the artifact."""
        return f"checkpoints/step-{step:08d}.e{self.epoch:06d}"

    def expected(self, step: int, *, rank: int) -> npt.NDArray[np.float32]:
        """Returns what a rank holds after `step` updates: the same in every epoch."""
        return np.random.default_rng([step, rank]).random(self._count(rank) * len(SLOTS), dtype=np.float32)

    def _fill(self, rank: int, *, step: int) -> None:
        values = self.expected(step, rank=rank).tobytes()
        self.writers[rank]._buffer[: len(values)] = values

    def _bounds(self, rank: int) -> tuple[int, int]:
        total = sum(int(np.prod(shape.shape)) for shape in SHAPES)
        return total * rank // self.world_size, total * (rank + 1) // self.world_size

    def _count(self, rank: int) -> int:
        first, last = self._bounds(rank)
        return last - first

    def _memory(self, rank: int) -> memoryview:
        return memoryview(mmap.mmap(-1, max(1, -(-self._count(rank) * 12 // 4096)) * 4096))

    def _describe(self, rank: int) -> Describe:
        first, last = self._bounds(rank)
        fragments, offset, position = [], 0, 0
        for shape in SHAPES:
            size = int(np.prod(shape.shape))
            low, high = max(first - position, 0), min(last - position, size)
            for slot in SLOTS if low < high else ():
                fragments.append({"name": shape.name, "slot": slot, "start": low, "count": high - low, "byte_offset": offset})
                offset += 4 * (high - low)
            position += size
        index = {"rank": rank, "world_size": self.world_size, "fragments": fragments, "rng": {}}
        lead = Lead(
            world_size=self.world_size,
            model_config_json={"model_type": "none"},
            base_state=state_of(0),
            rules=self.rules,
            verified_step=self.verified_step,
            shared_steps=0,
        )
        leading = lead.model_dump(mode="json") if rank == 0 else None
        return Describe(str(self.store.artifact_dir), epoch=self.epoch, rank=rank, index=index, lead=leading)


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    """An empty artifact."""
    (tmp_path / "artifact").mkdir()
    return CheckpointStore(tmp_path / "artifact")


@pytest.fixture
def make_writers(store: CheckpointStore) -> Callable[..., Writers]:
    """Returns a function that starts the writers of an epoch."""

    def make(*, epoch: int = 0, world_size: int = 2, into: CheckpointStore = store, verified_step: int | None = None, **rules: Any) -> Writers:
        return Writers(into, epoch, world_size, CheckpointConfig(**rules), verified_step)

    return make


def commit_of(store: CheckpointStore, step: int) -> CommitRecord:
    """Returns a commit that is intact."""
    commit = store.read(step)
    assert commit is not None
    return commit
