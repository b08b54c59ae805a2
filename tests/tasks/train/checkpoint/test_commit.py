"""Commits and the files they name: whatever byte changes, it is found."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.storage import file_entry
from schemas.checkpoint import CommitRecord
from schemas.errors import UnsafeFileError
from schemas.exit_code import ExitCode
from tasks.train.checkpoint.commit import CheckpointStore, checkpoint_folder, committed_steps, file_state, parse_commit, verify

CONTENT = {"rank-0000.bin": bytes(range(256)) * 4, "rank-0000.json": b'{"rank":0}', "state.json": b'{"step":4}'}


def make_commit(artifact_dir: Path) -> CommitRecord:
    folder = artifact_dir / "checkpoints" / "step-00000004.e000000"
    folder.mkdir(parents=True)
    for name, content in CONTENT.items():
        (folder / name).write_bytes(content)
    files = tuple(file_entry(folder / name, relative_to=folder) for name in sorted(CONTENT))
    return CommitRecord(step=4, epoch=0, folder=f"checkpoints/{folder.name}", files=files, world_size=1, committed_at=1.5).sealed()


@pytest.fixture(scope="module")
def commit(tmp_path_factory: pytest.TempPathFactory) -> CommitRecord:
    return make_commit(tmp_path_factory.mktemp("commit"))


def test_a_commit_survives_its_bytes(commit: CommitRecord) -> None:
    assert parse_commit(commit.to_bytes(), step=4) == commit
    assert parse_commit(commit.to_bytes(), step=5) is None, "a commit under another step's name"


@given(data=st.data())
def test_every_flipped_bit_of_a_commit_is_found(commit: CommitRecord, data: st.DataObject) -> None:
    content = bytearray(commit.to_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert parse_commit(bytes(content), step=4) is None


@pytest.mark.parametrize("length", [0, 1, 200])
def test_a_torn_commit_is_found(commit: CommitRecord, length: int) -> None:
    assert parse_commit(commit.to_bytes()[:length], step=4) is None


@pytest.mark.parametrize("name", sorted(CONTENT))
@pytest.mark.parametrize(("damage", "state"), [("flip", "wrong content"), ("truncate", "wrong size"), ("empty", "wrong size"), ("remove", "missing")])
def test_damage_is_named_file_by_file(tmp_path: Path, name: str, damage: str, state: str) -> None:
    commit = make_commit(tmp_path)
    folder = tmp_path / commit.folder
    assert verify(commit, folder=folder) == ()
    path = folder / name
    content = path.read_bytes()
    match damage:
        case "flip":
            path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        case "truncate":
            path.write_bytes(content[:-1])
        case "empty":
            path.write_bytes(b"")
        case "remove":
            path.unlink()
    (finding,) = verify(commit, folder=folder)
    assert finding.startswith(f"{commit.folder}/{name}: {state}")


def test_committed_steps_are_those_with_a_commit(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "tiny-000000000000")
    assert store.steps() == ()
    for step in (10, 2, 100_000_000):
        store.storage.create_exclusive(store.layout.commit(step), b"{}")
    (store.artifact_dir / "commits" / ".tmp-step-00000099.json-1").write_bytes(b"")
    assert store.steps() == committed_steps(store.storage, store.layout) == (2, 10, 100_000_000)


@pytest.mark.parametrize("place", ["checkpoints", "checkpoints/step-00000004.e000000", "checkpoints/step-00000004.e000000/rank-0000.bin"])
def test_a_link_on_the_way_is_refused_though_what_it_leads_to_is_right(tmp_path: Path, place: str) -> None:
    artifact_dir = tmp_path / "tiny-000000000000"
    commit = make_commit(artifact_dir)
    (artifact_dir / place).rename(tmp_path / "outside")
    (artifact_dir / place).symlink_to(tmp_path / "outside")
    for read in (
        lambda: verify(commit, folder=checkpoint_folder(commit, artifact_dir=artifact_dir)),
        lambda: verify(commit, folder=CheckpointStore(artifact_dir).folder(commit)),
    ):
        with pytest.raises(UnsafeFileError, match="is a symbolic link") as caught:
            read()
        assert caught.value.exit_code is ExitCode.VERIFICATION


@pytest.mark.parametrize("size", [0, len(CONTENT["rank-0000.bin"])])
def test_a_linked_file_of_a_checkpoint_is_refused_whatever_its_size(tmp_path: Path, size: int) -> None:
    commit = make_commit(tmp_path)
    folder = tmp_path / commit.folder
    (tmp_path / "outside").write_bytes(bytes(size))
    (folder / "rank-0000.bin").unlink()
    (folder / "rank-0000.bin").symlink_to(tmp_path / "outside")
    with pytest.raises(UnsafeFileError, match=r"rank-0000\.bin is a symbolic link"):
        file_state(folder, commit.files[0])


def test_the_artifact_itself_may_lie_behind_a_link_that_the_user_named(tmp_path: Path) -> None:
    commit = make_commit(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert verify(commit, folder=CheckpointStore(tmp_path / "link").folder(commit)) == ()
