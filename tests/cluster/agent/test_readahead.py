"""What is read ahead is in memory afterwards; what cannot be read costs nothing but that."""

import mmap
from pathlib import Path

import pytest

from cluster.agent.readahead import read_ahead
from cluster.layout import ArtifactLayout
from cluster.storage import FileStorage
from schemas.artifact import FileEntry
from schemas.checkpoint import CommitRecord

LAYOUT = ArtifactLayout("train/x-000000000000")


@pytest.fixture
def storage(tmp_path: Path) -> FileStorage:
    return FileStorage(tmp_path)


def commit(storage: FileStorage, step: int, *, data: bytes) -> Path:
    folder = f"checkpoints/step-{step:08d}.e000000"
    path = storage.root / LAYOUT.key / folder / "rank-0000.bin"
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    entry = FileEntry(path="rank-0000.bin", size=len(data), xxh3="0" * 32)
    record = CommitRecord(step=step, epoch=0, folder=folder, files=(entry,), world_size=1, committed_at=0.0).sealed()
    storage.create_exclusive(LAYOUT.commit(step), record.to_bytes())
    return path


def test_the_newest_checkpoint_is_asked_for(storage: FileStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("os.posix_fadvise", lambda number, *_: asked.append(str(Path(f"/proc/self/fd/{number}").resolve())))
    older, newest = commit(storage, 5, data=b"x" * mmap.PAGESIZE), commit(storage, 10, data=b"y" * mmap.PAGESIZE)
    read_ahead(storage, LAYOUT).join(timeout=10)
    assert asked == [str(newest)]
    assert older.exists()


def test_nothing_committed_and_a_damaged_commit_are_no_trouble(storage: FileStorage) -> None:
    read_ahead(storage, LAYOUT).join(timeout=10)
    storage.create_exclusive(LAYOUT.commit(3), b"{}")
    thread = read_ahead(storage, LAYOUT)
    thread.join(timeout=10)
    assert not thread.is_alive()


def test_what_would_fill_the_memory_is_left_alone(storage: FileStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.agent.readahead._MOST_SHARE", 0.0)
    monkeypatch.setattr("os.posix_fadvise", lambda *_: pytest.fail("asked for"))
    commit(storage, 5, data=b"x")
    read_ahead(storage, LAYOUT).join(timeout=10)
