"""Writer and reader on made-up tensors, in this process, as a gang of one."""

import errno
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from schemas.checkpoint import SLOTS, CommitRecord, ParameterShape, TrainingState
from schemas.errors import VerificationError
from tasks.train.checkpoint.commit import CheckpointStore

pytestmark = pytest.mark.slow  # imports torch

SHAPES = (ParameterShape(name="weight", shape=(5, 3)), ParameterShape(name="bias", shape=(4,)))


def state_of(step: int, parameters: tuple[ParameterShape, ...] = SHAPES) -> TrainingState:
    return TrainingState(
        step=step, optimizer_step=step, skipped_steps=(), loss_scale={}, parameters=parameters, seed=1, zero_stage=2, precision="bf16"
    )


def make_fragments(seed: int, *, cuts: tuple[tuple[str, int, int], ...] = (("weight", 0, 15), ("bias", 0, 4))) -> list[Any]:
    """Returns fragments (name, start, stop) of random values."""
    import torch

    from tasks.train.checkpoint.fragments import LocalFragment

    generator = torch.Generator().manual_seed(seed)
    whole = {(shape.name, slot): torch.rand(int(np.prod(shape.shape)), generator=generator) for shape in SHAPES for slot in SLOTS}
    return [
        LocalFragment(
            name, start=start, slots={slot: whole[name, slot][start:stop] for slot in SLOTS}, low_precision=whole[name, "weight"][start:stop]
        )
        for name, start, stop in cuts
    ]


def make_writer(store: CheckpointStore, fragments: list[Any], *, epoch: int) -> Any:
    from tasks.train.checkpoint.writer import CheckpointWriter, Snapshot
    from tasks.train.gang import Gang

    return CheckpointWriter(store, gang=Gang(), epoch=epoch, snapshot=Snapshot(fragments), model_config={"model_type": "none"})


def commit_of(store: CheckpointStore, step: int) -> CommitRecord:
    commit = store.read(step)
    assert commit is not None
    return commit


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    (tmp_path / "artifact").mkdir()
    return CheckpointStore(tmp_path / "artifact")


def test_equal_state_gives_equal_bytes_in_every_epoch(store: CheckpointStore, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = CheckpointStore(tmp_path / "other")
    assert make_writer(store, make_fragments(1), epoch=0).save(state_of(2))
    assert make_writer(other, make_fragments(1), epoch=7).save(state_of(2))
    assert commit_of(store, 2).files == commit_of(other, 2).files
    assert commit_of(store, 2).folder != commit_of(other, 2).folder


def test_fragments_load_into_any_other_cut(store: CheckpointStore) -> None:
    import torch

    from tasks.train.checkpoint.reader import CheckpointReader

    make_writer(store, make_fragments(1, cuts=(("weight", 0, 7), ("weight", 7, 15), ("bias", 0, 4))), epoch=0).save(state_of(2))
    target = make_fragments(2, cuts=(("weight", 3, 11), ("bias", 1, 2)))
    reader = CheckpointReader(store, commit_of(store, 2))
    reader.load(SimpleNamespace(held=tuple(target), parameters=SHAPES))  # type: ignore[arg-type]  # all that load looks at
    expected = make_fragments(1, cuts=(("weight", 3, 11), ("bias", 1, 2)))
    for fragment, wanted in zip(target, expected, strict=True):
        assert all(torch.equal(fragment.slots[slot], wanted.slots[slot]) for slot in SLOTS)


def test_what_is_missing_or_different_is_named(store: CheckpointStore) -> None:
    from tasks.train.checkpoint.reader import CheckpointReader

    make_writer(store, make_fragments(1, cuts=(("weight", 0, 10), ("bias", 0, 4))), epoch=0).save(state_of(2))
    reader = CheckpointReader(store, commit_of(store, 2))
    with pytest.raises(VerificationError, match=r"weight \(exp_avg\): 10 of elements 0 to 15"):
        reader.load(SimpleNamespace(held=tuple(make_fragments(2)), parameters=SHAPES))  # type: ignore[arg-type]
    wider = (ParameterShape(name="weight", shape=(5, 4)), ParameterShape(name="scale", shape=(1,)))
    with pytest.raises(VerificationError) as caught:
        reader.load(SimpleNamespace(held=(), parameters=wider))  # type: ignore[arg-type]
    assert caught.value.findings == (
        "scale: not in the checkpoint",
        "bias: not in the model",
        "weight: (5, 3) in the checkpoint, (5, 4) in the model",
    )


def test_a_step_that_another_start_committed_first_stays_as_it_is(store: CheckpointStore) -> None:
    assert make_writer(store, make_fragments(1), epoch=0).save(state_of(2))
    theirs = commit_of(store, 2)
    assert make_writer(store, make_fragments(2), epoch=1).save(state_of(2))
    assert commit_of(store, 2) == theirs
    assert [path.name for path in (store.artifact_dir / "checkpoints").iterdir()] == ["step-00000002.e000000"]


@pytest.mark.parametrize("failing", ["rank-0000.bin", "rank-0000.json", "state.json", "commit"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_failed_write_commits_nothing_and_leaves_nothing(store: CheckpointStore, monkeypatch: pytest.MonkeyPatch, failing: str, code: int) -> None:
    import tasks.train.checkpoint.writer as writer_module
    from cluster.storage import FileStorage

    genuine_write, genuine_create = writer_module.write_durably, FileStorage.create_exclusive

    def write(path: Path, data: bytes) -> None:
        genuine_write(path, data)
        if path.name == failing:
            raise OSError(code, "injected", str(path))

    def create(self: FileStorage, key: str, data: bytes) -> None:
        if failing == "commit":
            raise OSError(code, "injected", key)
        genuine_create(self, key, data)

    writer = make_writer(store, make_fragments(1), epoch=0)
    assert writer.save(state_of(2))
    with monkeypatch.context() as patch:
        patch.setattr(writer_module, "write_durably", write)
        patch.setattr(FileStorage, "create_exclusive", create)
        assert not writer.save(state_of(4))
    assert writer.num_failures == 1
    assert store.steps() == (2,)
    assert [path.name for path in (store.artifact_dir / "checkpoints").iterdir()] == ["step-00000002.e000000"]
    assert writer.save(state_of(6)), "the next one succeeds"


@pytest.mark.parametrize("digest", ["0" * 32, "f" * 32, "8" + "0" * 15 + "7" + "f" * 15, "0123456789abcdef" * 2])
def test_hashes_survive_the_way_between_ranks(digest: str) -> None:
    from schemas.artifact import FileEntry
    from tasks.train.checkpoint.writer import RankWrite

    write = RankWrite(FileEntry(path="rank-0003.bin", size=2**40, xxh3=digest), FileEntry(path="rank-0003.json", size=0, xxh3=digest[::-1]))
    numbers = write.to_numbers()
    assert all(-(2**63) <= number < 2**63 for number in numbers)
    assert RankWrite.from_numbers(numbers, rank=3) == write
