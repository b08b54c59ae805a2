"""What is read ahead is in memory afterwards; what cannot be read costs nothing but that."""

import mmap
import threading
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
    names = [*(f"rank-{rank:04d}.bin" for rank in range(4)), "state.json"]
    for name in names:
        (path.parent / name).write_bytes(data)
    entries = tuple(FileEntry(path=name, size=len(data), xxh3="0" * 32) for name in names)
    record = CommitRecord(step=step, epoch=0, folder=folder, files=entries, world_size=4, committed_at=0.0).sealed()
    storage.create_exclusive(LAYOUT.commit(step), record.to_bytes())
    return path


def begin(storage: FileStorage, *, ranks: range = range(1), world_size: int = 4) -> threading.Thread:
    return read_ahead(storage, LAYOUT, ranks=ranks, world_size=world_size)


@pytest.mark.parametrize(("ranks", "world_size", "expected"), [(range(2, 4), 4, [2, 3]), (range(1), 2, [0, 2]), (range(6, 8), 8, [])])
def test_each_node_reads_what_its_own_ranks_will(
    storage: FileStorage, monkeypatch: pytest.MonkeyPatch, ranks: range, world_size: int, expected: list[int]
) -> None:
    """A shared file system would have to send the whole checkpoint to every node."""
    asked: list[str] = []
    monkeypatch.setattr("os.posix_fadvise", lambda number, *_: asked.append(Path(f"/proc/self/fd/{number}").resolve().name))
    commit(storage, 10, data=b"y")
    begin(storage, ranks=ranks, world_size=world_size).join(timeout=10)
    assert asked == [f"rank-{rank:04d}.bin" for rank in expected]


def test_the_newest_checkpoint_is_asked_for(storage: FileStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("os.posix_fadvise", lambda number, *_: asked.append(str(Path(f"/proc/self/fd/{number}").resolve())))
    older, newest = commit(storage, 5, data=b"x" * mmap.PAGESIZE), commit(storage, 10, data=b"y" * mmap.PAGESIZE)
    begin(storage).join(timeout=10)
    assert asked == [str(newest)]
    assert older.exists()


def test_nothing_committed_and_a_damaged_commit_are_no_trouble(storage: FileStorage) -> None:
    begin(storage).join(timeout=10)
    storage.create_exclusive(LAYOUT.commit(3), b"{}")
    thread = begin(storage)
    thread.join(timeout=10)
    assert not thread.is_alive()


def test_what_would_fill_the_memory_is_left_alone(storage: FileStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.agent.readahead._MOST_SHARE", 0.0)
    monkeypatch.setattr("os.posix_fadvise", lambda *_: pytest.fail("asked for"))
    commit(storage, 5, data=b"x")
    begin(storage).join(timeout=10)
