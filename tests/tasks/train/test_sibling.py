"""Importing checkpoints of a shorter run: files and commits only, no ranks."""

from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.layout import ArtifactLayout
from cluster.storage import FileStorage, file_entry, make_folder
from schemas.canonical import canonical_json
from schemas.checkpoint import CommitRecord
from schemas.config import RunConfig
from schemas.stage import Stage
from tasks.train.checkpoint.commit import parse_commit, verify
from tasks.train.sibling import Imported, Trajectory, import_from_sibling

MakeConfig = Callable[..., RunConfig]
INPUTS = {Stage.TOKENIZE: "content"}
OURS = ArtifactLayout("train/tiny-000000000001")
SIBLING = ArtifactLayout("train/tiny-000000000002")


@pytest.fixture
def storage(tmp_path: Path) -> FileStorage:
    return FileStorage(tmp_path)


def add_sibling(storage: FileStorage, trajectory: Trajectory, *, steps: tuple[int, ...], layout: ArtifactLayout = SIBLING) -> None:
    storage.create_exclusive(f"{layout.key}/trajectory.json", canonical_json(trajectory))
    for step in steps:
        folder = storage.root / layout.checkpoint(step, 0)
        make_folder(folder)
        (folder / "rank-0000.bin").write_bytes(b"data of step %d" % step)
        entry = file_entry(folder / "rank-0000.bin", relative_to=folder)
        relative = folder.relative_to(storage.root / layout.key).as_posix()
        commit = CommitRecord(step=step, epoch=0, folder=relative, files=(entry,), world_size=1, committed_at=0.0).sealed()
        storage.create_exclusive(layout.commit(step), commit.to_bytes())


def take_over(storage: FileStorage, trajectory: Trajectory) -> Imported | None:
    return import_from_sibling(storage, layout=OURS, name="tiny", trajectory=trajectory)


def test_a_longer_run_takes_over_the_newest_checkpoint(storage: FileStorage, make_config: MakeConfig) -> None:
    add_sibling(storage, Trajectory.of(make_config(training__steps=6), inputs=INPUTS, total_steps=6), steps=(2, 4, 6))
    longer = Trajectory.of(make_config(training__steps=10), inputs=INPUTS, total_steps=10)
    assert take_over(storage, longer) == Imported(6, SIBLING.key)
    commit = parse_commit(storage.read(OURS.commit(6)), step=6)
    assert commit is not None
    storage.delete(SIBLING.key)
    assert verify(commit, folder=storage.root / OURS.key / commit.folder) == (), "it stands on its own"
    assert take_over(storage, longer) is None, "only into an artifact without commits"


def test_a_shorter_run_takes_over_no_more_than_it_needs(storage: FileStorage, make_config: MakeConfig) -> None:
    add_sibling(storage, Trajectory.of(make_config(training__steps=6), inputs=INPUTS, total_steps=6), steps=(2, 4, 6))
    assert take_over(storage, Trajectory.of(make_config(training__steps=5), inputs=INPUTS, total_steps=5)) == Imported(4, SIBLING.key)


def test_what_the_decay_touched_is_not_shared(storage: FileStorage, make_config: MakeConfig) -> None:
    wsd = {"training__schedule": {"kind": "wsd", "warmup_steps": 1, "decay_steps": 3}}
    add_sibling(storage, Trajectory.of(make_config(training__steps=6, **wsd), inputs=INPUTS, total_steps=6), steps=(2, 4, 6))
    assert take_over(storage, Trajectory.of(make_config(training__steps=20, **wsd), inputs=INPUTS, total_steps=20)) == Imported(2, SIBLING.key)


@pytest.mark.parametrize("changes", [{"training__seed": 8}, {"training__optimizer": {"learning_rate": 0.02}}, {"training__global_batch_size": 24}])
def test_another_recipe_is_no_sibling(storage: FileStorage, make_config: MakeConfig, changes: dict[str, object]) -> None:
    add_sibling(storage, Trajectory.of(make_config(), inputs=INPUTS, total_steps=6), steps=(2,))
    assert take_over(storage, Trajectory.of(make_config(training__steps=10, **changes), inputs=INPUTS, total_steps=10)) is None


def test_other_inputs_and_cosine_are_no_siblings(storage: FileStorage, make_config: MakeConfig) -> None:
    add_sibling(storage, Trajectory.of(make_config(), inputs=INPUTS, total_steps=6), steps=(2,))
    assert take_over(storage, Trajectory.of(make_config(), inputs={Stage.TOKENIZE: "other"}, total_steps=6)) is None
    cosine = make_config(training__schedule={"kind": "cosine", "warmup_steps": 1})
    trajectory = Trajectory.of(cosine, inputs=INPUTS, total_steps=6)
    add_sibling(storage, trajectory, steps=(2,), layout=ArtifactLayout("train/tiny-000000000003"))
    assert take_over(storage, trajectory) is None


def test_a_damaged_checkpoint_is_passed_over(storage: FileStorage, make_config: MakeConfig) -> None:
    trajectory = Trajectory.of(make_config(), inputs=INPUTS, total_steps=6)
    add_sibling(storage, trajectory, steps=(2, 4))
    (storage.root / SIBLING.checkpoint(4, 0) / "rank-0000.bin").write_bytes(b"data of step 9")
    assert take_over(storage, trajectory) == Imported(2, SIBLING.key)


def test_an_import_that_was_killed_is_finished(storage: FileStorage, make_config: MakeConfig) -> None:
    trajectory = Trajectory.of(make_config(), inputs=INPUTS, total_steps=6)
    add_sibling(storage, trajectory, steps=(2,))
    partial = storage.root / OURS.key / "checkpoints" / "step-00000002.imported"
    make_folder(partial)
    (partial / "rank-0000.bin").write_bytes(b"data of")
    assert take_over(storage, trajectory) == Imported(2, SIBLING.key)
    commit = parse_commit(storage.read(OURS.commit(2)), step=2)
    assert commit is not None
    assert verify(commit, folder=storage.root / OURS.key / commit.folder) == ()
