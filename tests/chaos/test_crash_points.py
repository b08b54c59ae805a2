"""A crash at every file event of a save: of any rank's share, of the commit, of the removal of what is old; of the process and of the power.

The state is that of real ranks under ZeRO 1, 2 and 3, captured once. The code that writes it is that of the writer processes.
"""

import json
import mmap
import os
import random
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from schemas.checkpoint import CommitRecord, RankIndex, TrainingState
from schemas.execution_config import CheckpointConfig
from tasks.train.checkpoint.channel import Commit, Describe, Write, Written
from tasks.train.checkpoint.commit import CheckpointStore, verify
from tasks.train.checkpoint.committer import Lead
from tasks.train.checkpoint.stream import Writer
from tests.fakes.file_events import CRASHED, Crash
from tests.fakes.tiny_training import small_config
from tests.tasks.train.conftest import Gang, Inputs, RankServer, inputs, rank_server

__all__ = ["inputs", "rank_server"]  # fixtures

pytestmark = pytest.mark.slow

WORLD_SIZE = 2
STEPS = (2, 4, 6)


@dataclass(frozen=True)
class Captured:
    """Three checkpoints of a real training, as its ranks wrote them."""

    artifact_dir: Path

    def commit(self, step: int) -> CommitRecord:
        commit = CheckpointStore(self.artifact_dir).read(step)
        assert commit is not None
        return commit

    def bytes_of(self, step: int, name: str) -> bytes:
        return (self.artifact_dir / self.commit(step).folder / name).read_bytes()

    def writers(self, artifact_dir: Path, *, epoch: int, verified_step: int) -> "Writers":
        return Writers(self, artifact_dir, epoch, verified_step)


@dataclass
class Writers:
    """The writer processes of one start, in this process."""

    captured: Captured
    artifact_dir: Path
    epoch: int
    verified_step: int

    def save(self, step: int) -> None:
        """Does what the writer processes do for one checkpoint, rank after rank."""
        folder = f"checkpoints/step-{step:08d}.e{self.epoch:06d}"
        files: list[dict[str, Any]] = []
        writers = [self._writer(rank, step=step) for rank in range(WORLD_SIZE)]
        for rank, writer in enumerate(writers):
            index = json.loads(self.captured.bytes_of(step, f"rank-{rank:04d}.json"))
            written = writer.serve(Write(step, folder=folder, rng=index["rng"]))
            assert isinstance(written, Written)
            files += written.files
        state = json.loads(self.captured.bytes_of(step, "state.json"))
        del state["parameters"]
        request = Commit(step, folder=folder, state=state, files=files)
        writers[0].serve(request)
        writers[0].tidy(request)

    def _writer(self, rank: int, *, step: int) -> Writer:
        data = self.captured.bytes_of(step, f"rank-{rank:04d}.bin")
        buffer = memoryview(mmap.mmap(-1, -(-len(data) // 4096) * 4096))
        buffer[: len(data)] = data
        index = RankIndex.model_validate_json(self.captured.bytes_of(step, f"rank-{rank:04d}.json")).model_dump(mode="json")
        lead = Lead(
            world_size=WORLD_SIZE,
            model_config_json=json.loads(self.captured.bytes_of(step, "model_config.json")),
            base_state=TrainingState.model_validate_json(self.captured.bytes_of(step, "state.json")),
            rules=CheckpointConfig(keep_last=1),
            verified_step=self.verified_step,
            shared_steps=0,
        )
        return Writer(Describe(str(self.artifact_dir), epoch=self.epoch, rank=rank, index=index, lead=lead.model_dump(mode="json")), buffer)


@pytest.fixture(scope="module", params=[1, 2, 3], ids=lambda stage: f"zero{stage}")
def captured(request: pytest.FixtureRequest, rank_server: RankServer, inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Captured:
    """Real state, once per ZeRO stage."""
    folder = tmp_path_factory.mktemp("captured")
    gang = Gang(rank_server, inputs, folder / "artifact")
    gang.run(small_config(folder, training__zero_stage=request.param, checkpoint={"every_steps": 2, "background": False}), world_size=WORLD_SIZE)
    return Captured(folder / "artifact")


@pytest.fixture
def begun(captured: Captured, tmp_path: Path) -> Callable[[str], Path]:
    """Returns a function that makes an artifact in which step 2 is committed, by epoch 0."""
    (tmp_path / "begun").mkdir()
    captured.writers(tmp_path / "begun", epoch=0, verified_step=-1).save(2)

    def copy(name: str) -> Path:
        return shutil.copytree(tmp_path / "begun", tmp_path / name)

    return copy


@dataclass(frozen=True)
class Events:
    """What a save does to the file system."""

    count: int
    writes: tuple[int, ...]
    """Which of them can be torn."""


def crash(captured: Captured, artifact_dir: Path, **how: Any) -> None:
    """Saves step 4 in epoch 0 in a child that crashes; one that does not (`at=-1`) leaves its events beside the artifact."""
    attic = artifact_dir.with_name(f"{artifact_dir.name}-attic")
    attic.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of threads that the child does without
        child = os.fork()
    if child == 0:
        status = 1
        try:
            how_it_ends = Crash(artifact_dir, attic=attic, **how)
            how_it_ends.install()
            captured.writers(artifact_dir, epoch=0, verified_step=2).save(4)
            artifact_dir.with_suffix(".json").write_text(json.dumps([how_it_ends.count, how_it_ends.torn_events]))
            status = 0
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == (0 if how["at"] < 0 else CRASHED), (status, how)


def assert_goes_on(captured: Captured, artifact_dir: Path) -> int:
    """Asserts that the next start finds what is committed, whole, and comes to the bytes of the calm run. Returns where it went on."""
    from tasks.train.checkpoint.reader import newest_verified
    from tasks.train.gang import Gang as Ranks

    store = CheckpointStore(artifact_dir)
    found = newest_verified(store, gang=Ranks(), epoch=1)
    assert found is not None
    assert found.step in (2, 4)
    assert found.files == captured.commit(found.step).files, "what was committed is what the ranks held"
    assert not (artifact_dir / "quarantine").exists(), "a crash damages nothing that is committed"
    captured.writers(artifact_dir, epoch=1, verified_step=found.step).save(found.step + 2)
    commit = store.read(found.step + 2)
    assert commit is not None
    assert commit.files == captured.commit(commit.step).files
    assert verify(commit, folder=store.folder(commit)) == ()
    assert [path.name for path in (artifact_dir / "checkpoints").iterdir()] == [Path(commit.folder).name], "nothing is left over"
    return found.step


def events_of(captured: Captured, begun: Callable[[str], Path]) -> Events:
    counted = begun("counted")
    crash(captured, counted, at=-1)
    count, writes = json.loads(counted.with_suffix(".json").read_bytes())
    return Events(count, tuple(writes))


@pytest.mark.parametrize("torn", [False, True])
def test_a_process_may_crash_at_every_file_event(captured: Captured, begun: Callable[[str], Path], torn: bool) -> None:
    events, went_on_at = events_of(captured, begun), set()
    assert events.count > 30
    for at in events.writes if torn else range(events.count):
        artifact_dir = begun(f"crashed-{at}")
        crash(captured, artifact_dir, at=at, torn=torn)
        went_on_at.add(assert_goes_on(captured, artifact_dir))
    assert went_on_at == ({2} if torn else {2, 4})


def power_cuts(count: int, *, seeds: int) -> Iterator[tuple[int, int]]:
    return ((at, seed) for at in range(count) for seed in range(seeds))


def test_the_power_may_fail_at_any_file_event(captured: Captured, begun: Callable[[str], Path]) -> None:
    """What was not synced is lost by chance, and folders' entries apart from files' content."""
    count = events_of(captured, begun).count
    for at, seed in random.Random(0).sample(list(power_cuts(count, seeds=4)), 60):
        artifact_dir = begun(f"cut-{at}-{seed}")
        crash(captured, artifact_dir, at=at, torn=bool(seed % 2), power_seed=seed)
        assert_goes_on(captured, artifact_dir)


@pytest.mark.exhaustive
def test_the_power_may_fail_at_every_file_event_in_many_ways(captured: Captured, begun: Callable[[str], Path]) -> None:
    count = events_of(captured, begun).count
    for at, seed in power_cuts(count, seeds=10):
        artifact_dir = begun(f"cut-{at}-{seed}")
        crash(captured, artifact_dir, at=at, torn=bool(seed % 2), power_seed=seed)
        assert_goes_on(captured, artifact_dir)
        shutil.rmtree(artifact_dir)
