"""What writer processes do, in this process: durable shares, one commit, and nothing left of what failed."""

import errno
import json
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cluster.storage import FileStorage
from schemas.canonical import canonical_json
from schemas.checkpoint import CommitRecord, RankIndex, TrainingState
from tasks.train.checkpoint import stream as stream_module
from tasks.train.checkpoint.channel import Channel, Failed, Write, Written
from tasks.train.checkpoint.commit import CheckpointStore, verify
from tasks.train.checkpoint.committer import FencedError

MakeWriters = Callable[..., Any]


def commit_of(store: CheckpointStore, step: int) -> CommitRecord:
    commit = store.read(step)
    assert commit is not None
    return commit


def folders(store: CheckpointStore) -> list[str]:
    return sorted(path.name for path in (store.artifact_dir / "checkpoints").iterdir())


def test_what_is_committed_is_what_every_rank_held(make_writers: MakeWriters, store: CheckpointStore) -> None:
    writers = make_writers(world_size=3)
    writers.save(4)
    commit = commit_of(store, 4)
    folder = store.folder(commit)
    assert verify(commit, folder=folder) == ()
    assert {entry.path for entry in commit.files} == {path.name for path in folder.iterdir()}
    for rank in range(3):
        assert np.array_equal(np.fromfile(folder / f"rank-{rank:04d}.bin", dtype=np.float32), writers.expected(4, rank=rank))
        raw = (folder / f"rank-{rank:04d}.json").read_bytes()
        index = RankIndex.model_validate_json(raw)
        assert raw == canonical_json(index), "canonical without pydantic"
        assert (index.rank, index.world_size, index.rng) == (rank, 3, {"next_step_seed": 4})
    assert TrainingState.model_validate_json((folder / "state.json").read_bytes()).step == 4
    assert json.loads((folder / "model_config.json").read_bytes()) == {"model_type": "none"}


def test_equal_state_gives_equal_bytes_in_every_epoch(make_writers: MakeWriters, store: CheckpointStore, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = CheckpointStore(tmp_path / "other")
    make_writers(epoch=0).save(2)
    make_writers(epoch=7, into=other).save(2)
    assert commit_of(store, 2).files == commit_of(other, 2).files
    assert commit_of(store, 2).folder != commit_of(other, 2).folder


@pytest.mark.parametrize("failing", ["rank-0000.bin", "rank-0000.json", "rank-0001.bin", "state.json", "model_config.json", "commit", "commits"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_what_failed_is_given_up_and_leaves_nothing(
    make_writers: MakeWriters, store: CheckpointStore, monkeypatch: pytest.MonkeyPatch, failing: str, code: int
) -> None:
    """`commits`: the commit is linked, but the fsync of its folder fails; nobody knows whether it would survive."""
    writers = make_writers()
    writers.save(2)
    genuine_fsync = os.fsync

    def fsync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        name = "commit" if path.name.startswith(".tmp-step") else path.name
        if name == failing:
            raise OSError(code, "injected", str(path))
        genuine_fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(OSError, match="injected"):
            writers.save(4)
    writers.discard(4)
    assert store.steps() == (2,)
    assert folders(store) == ["step-00000002.e000000"]
    assert verify(commit_of(store, 2), folder=store.folder(commit_of(store, 2))) == ()
    writers.save(6)
    assert store.steps() == (2, 6), "the next one succeeds"


def test_a_full_disk_is_told_before_anything_is_written(make_writers: MakeWriters, store: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=10, f_frsize=1000))
    with pytest.raises(OSError, match=r"1,0\d\d,\d{3} bytes are needed and 10,000 are free") as caught:
        make_writers().write(2, rank=0)
    assert caught.value.errno == errno.ENOSPC
    assert not (store.artifact_dir / "checkpoints").exists()


def test_a_step_that_another_start_committed_first_stays_as_it_is(make_writers: MakeWriters, store: CheckpointStore) -> None:
    make_writers(epoch=0).save(2)
    theirs = commit_of(store, 2)
    make_writers(epoch=1, world_size=3).save(2)
    assert commit_of(store, 2) == theirs
    assert folders(store) == ["step-00000002.e000000"]


@pytest.mark.parametrize("damage", ["data", "record"])
def test_a_damaged_commit_of_another_start_gives_way(make_writers: MakeWriters, store: CheckpointStore, damage: str) -> None:
    make_writers(epoch=0).save(2)
    if damage == "data":
        (store.folder(commit_of(store, 2)) / "rank-0001.bin").unlink()
    else:
        (store.artifact_dir / "commits" / "step-00000002.json").write_bytes(b"{}")
    make_writers(epoch=1).save(2)
    assert commit_of(store, 2).epoch == 1
    assert verify(commit_of(store, 2), folder=store.folder(commit_of(store, 2))) == ()
    assert [path.name for path in (store.artifact_dir / "quarantine").iterdir()] == ["step-00000002.e000001.json"]


def test_a_start_that_was_replaced_commits_nothing_more(make_writers: MakeWriters, store: CheckpointStore) -> None:
    writers = make_writers(epoch=3)
    for epoch in (2, 3):
        store.storage.create_exclusive(f"{store.layout.epochs}/{epoch:06d}.json", b"{}")
    writers.save(2)
    store.storage.create_exclusive(f"{store.layout.epochs}/000004.json", b"{}")
    with pytest.raises(FencedError, match="epoch 4 has begun"):
        writers.save(4)
    assert store.steps() == (2,)


def test_old_checkpoints_go_and_the_next_start_sweeps(make_writers: MakeWriters, store: CheckpointStore) -> None:
    first = make_writers(keep_last=2)
    for step in (1, 2, 3):
        first.save(step)
    assert store.steps() == (2, 3)
    first.write(4, rank=0)
    make_writers(epoch=1, keep_last=2, verified_step=3).save(4)
    assert store.steps() == (3, 4)
    assert folders(store) == ["step-00000003.e000000", "step-00000004.e000001"]


def test_trouble_with_old_checkpoints_troubles_no_new_one(
    make_writers: MakeWriters, store: CheckpointStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Over the socket, as a rank sees it."""
    writers = make_writers(keep_last=1, world_size=1)
    writers.save(1)

    def refuse(self: FileStorage, key: str) -> None:
        raise OSError(errno.EACCES, "Permission denied", key)

    monkeypatch.setattr(FileStorage, "delete", refuse)
    ours, theirs = socket.socketpair()
    serving = threading.Thread(target=stream_module.run, args=(Channel(theirs), writers.writers[0]._buffer))
    serving.start()
    rank = Channel(ours)
    rank.send(writers._describe(0))
    rank.send(Write(2, folder=writers.folder(2), rng={}))
    replies = rank.receive()
    written = next(replies)
    assert isinstance(written, Written)
    state = TrainingState.model_validate_json((store.folder(commit_of(store, 1)) / "state.json").read_bytes())
    changed = state.model_copy(update={"step": 2}).model_dump(mode="json", exclude={"parameters"})
    rank.send(stream_module.Commit(2, folder=writers.folder(2), state=changed, files=written.files))
    assert next(replies) == stream_module.Committed(2)
    rank.send(Write(2, folder=writers.folder(2), rng={}))
    failed = next(replies)
    assert isinstance(failed, Failed)
    assert "File exists" in failed.reason
    assert "old checkpoints stay for now" in caplog.text
    assert verify(commit_of(store, 2), folder=store.folder(commit_of(store, 2))) == (), "nothing is overwritten or removed"
    caplog.clear()
    rank.send(stream_module.Commit(3, folder=writers.folder(3), state=changed, files=written.files))
    assert isinstance(next(replies), Failed)
    rank.finish()
    serving.join(timeout=10)
    assert not serving.is_alive()
    assert "old checkpoints stay for now" not in caplog.text, "who could not commit removes nothing"
    assert store.steps() == (1, 2)
    for end in (ours, theirs):
        end.close()
