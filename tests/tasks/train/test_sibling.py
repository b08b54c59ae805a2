"""Importing checkpoints of a shorter run: files and commits only, no ranks."""

from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.acts import add_act, read_acts
from cluster.layout import ArtifactLayout
from cluster.storage import FileStorage, file_entry, make_folder
from schemas.act import Act, ActKind, standing_of
from schemas.canonical import canonical_json
from schemas.checkpoint import CommitRecord
from schemas.config import RunConfig
from schemas.errors import UnsafeFileError
from schemas.stage import Stage
from tasks.train import sibling
from tasks.train.checkpoint.commit import parse_commit, verify
from tasks.train.sibling import IMPORTED_EPOCH, Imported, Trajectory, import_from_sibling

MakeConfig = Callable[..., RunConfig]
INPUTS = {"tokenize": "content"}
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


def take_over(storage: FileStorage, trajectory: Trajectory, *, layout: ArtifactLayout = OURS) -> Imported | None:
    return import_from_sibling(storage, layout=layout, name="tiny", trajectory=trajectory)


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
    assert take_over(storage, Trajectory.of(make_config(), inputs={"tokenize": "other"}, total_steps=6)) is None
    cosine = make_config(training__schedule={"kind": "cosine", "warmup_steps": 1})
    trajectory = Trajectory.of(cosine, inputs=INPUTS, total_steps=6)
    add_sibling(storage, trajectory, steps=(2,), layout=ArtifactLayout("train/tiny-000000000003"))
    assert take_over(storage, trajectory) is None


def test_what_a_training_is_made_by_and_from_is_part_of_its_trajectory(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def trajectory(**inputs: str) -> str:
        return Trajectory.of(make_config(), inputs=INPUTS | inputs, total_steps=6).hash

    assert trajectory() == trajectory()
    assert trajectory(pretrained="some weights") != trajectory(pretrained="other weights"), "the recipe does not tell them apart"
    before = trajectory()
    monkeypatch.setattr(Stage, "version", property(lambda _: 99))
    assert trajectory() != before


def test_a_rebuild_is_made_anew(storage: FileStorage, make_config: MakeConfig) -> None:
    trajectory = Trajectory.of(make_config(training__steps=6), inputs=INPUTS, total_steps=6)
    add_sibling(storage, trajectory, steps=(2, 4, 6), layout=OURS)
    rebuild = ArtifactLayout(f"{OURS.key}.r1")
    assert take_over(storage, trajectory, layout=rebuild) is None, "its base is the same artifact"
    longer = Trajectory.of(make_config(training__steps=10), inputs=INPUTS, total_steps=10)
    add_sibling(storage, longer, steps=(6, 10))
    assert take_over(storage, trajectory, layout=rebuild) is None, "the longer one may have begun with the base"


def test_a_rebuild_gives_its_own_base_nothing(storage: FileStorage, make_config: MakeConfig) -> None:
    trajectory = Trajectory.of(make_config(training__steps=6), inputs=INPUTS, total_steps=6)
    add_sibling(storage, trajectory, steps=(2, 4, 6), layout=ArtifactLayout(f"{OURS.key}.r1"))
    assert take_over(storage, trajectory) is None


def test_what_changed_numbers_before_the_checkpoint_is_taken_over_with_it(storage: FileStorage, make_config: MakeConfig) -> None:
    """So that the model made from it is tagged; and an imported rewind leaves the imported commit alone."""
    add_sibling(storage, Trajectory.of(make_config(training__steps=6), inputs=INPUTS, total_steps=6), steps=(2, 4, 6))
    for step in (3, 7):
        add_act(storage, SIBLING, Act(kind=ActKind.SKIPPED_UPDATE, epoch=0, step=step, detail="", at=0.0))
    rewind = Act(kind=ActKind.REWIND, epoch=-1, step=3, detail="", at=0.0, back_to_step=2)
    add_act(storage, SIBLING, rewind)
    longer = Trajectory.of(make_config(training__steps=10), inputs=INPUTS, total_steps=10)
    assert take_over(storage, longer) == Imported(6, SIBLING.key)
    storage.delete(OURS.commit(6))  # as if it had been killed before the commit
    assert take_over(storage, longer) == Imported(6, SIBLING.key)
    acts = read_acts(storage, OURS)
    assert [(act.kind, act.step) for act in acts] == [(ActKind.SKIPPED_UPDATE, 3), (ActKind.REWIND, 3)]
    assert not standing_of(acts).voids(step=6, epoch=IMPORTED_EPOCH)


def test_a_checkpoint_that_retention_removes_meanwhile_is_passed_over(
    storage: FileStorage, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    trajectory = Trajectory.of(make_config(), inputs=INPUTS, total_steps=6)
    add_sibling(storage, trajectory, steps=(2, 4))

    def verify_then_lose(commit: CommitRecord, *, folder: Path) -> tuple[str, ...]:
        findings = verify(commit, folder=folder)
        if commit.step == 4:
            storage.delete(SIBLING.commit(4))
            storage.delete(SIBLING.checkpoint(4, 0))
        return findings

    monkeypatch.setattr(sibling, "verify", verify_then_lose)
    assert take_over(storage, trajectory) == Imported(2, SIBLING.key)
    assert list(storage.names(OURS.checkpoints)) == ["step-00000002.imported"], "nothing half is left"


def test_a_commit_that_retention_removes_meanwhile_is_passed_over(tmp_path: Path, make_config: MakeConfig) -> None:
    class Racing(FileStorage):
        def read(self, key: str) -> bytes:
            if key == SIBLING.commit(4):
                self.delete(key)
            return super().read(key)

    storage = Racing(tmp_path)
    trajectory = Trajectory.of(make_config(), inputs=INPUTS, total_steps=6)
    add_sibling(storage, trajectory, steps=(2, 4))
    assert take_over(storage, trajectory) == Imported(2, SIBLING.key)


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


@pytest.mark.parametrize("place", ["checkpoints", "checkpoints/step-00000004.e000000", "checkpoints/step-00000004.e000000/rank-0000.bin"])
def test_a_sibling_s_checkpoint_behind_a_link_is_passed_over(
    storage: FileStorage, make_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory, place: str
) -> None:
    trajectory = Trajectory.of(make_config(), inputs=INPUTS, total_steps=6)
    add_sibling(storage, trajectory, steps=(2, 4))
    outside = tmp_path_factory.mktemp("outside") / "moved"
    (storage.root / SIBLING.key / place).rename(outside)
    (storage.root / SIBLING.key / place).symlink_to(outside)
    assert take_over(storage, trajectory) == (None if place == "checkpoints" else Imported(2, SIBLING.key))


def test_nothing_is_imported_through_a_link(storage: FileStorage, make_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> None:
    trajectory = Trajectory.of(make_config(), inputs=INPUTS, total_steps=6)
    add_sibling(storage, trajectory, steps=(2,))
    outside = tmp_path_factory.mktemp("outside")
    (storage.root / OURS.key).mkdir()
    (storage.root / OURS.checkpoints).symlink_to(outside)
    with pytest.raises(UnsafeFileError, match="is a symbolic link"):
        take_over(storage, trajectory)
    assert list(outside.iterdir()) == []
    assert not storage.exists(OURS.commit(2))
