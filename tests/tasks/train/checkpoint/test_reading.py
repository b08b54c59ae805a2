"""What is verified is what is loaded: every byte is read once, by the rank that uses it."""

import mmap
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import xxhash

from cluster.agent.buffers import RankBuffers
from schemas.artifact import FileEntry
from tasks.train.checkpoint.commit import CheckpointStore
from tests.fakes.meeting import Meeting, together

pytestmark = pytest.mark.slow  # imports torch


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_each_rank_keeps_what_it_verified(make_writers: Callable[..., Any], store: CheckpointStore, world_size: int) -> None:
    from tasks.train.checkpoint.reader import CheckpointReader, Content, newest_verified

    writers = make_writers(world_size=2)
    writers.save(4)
    commit = store.read(4)
    assert commit is not None
    meeting, contents = Meeting(world_size), [Content() for _ in range(world_size)]
    found = together(world_size, lambda rank: newest_verified(store, gang=meeting.rank(rank), epoch=1, content=contents[rank]))
    assert found == [commit] * world_size
    folder = store.folder(commit)
    held = [{entry.path for entry in commit.files if content.of(folder / entry.path) is not None} for content in contents]
    assert set.union(*held) == {entry.path for entry in commit.files}, "nothing is left out"
    assert sum(map(len, held)) == len(commit.files), "nothing is read twice"
    for writer in range(2):
        assert f"rank-{writer:04d}.bin" in held[writer % world_size]
        (folder / f"rank-{writer:04d}.bin").unlink()
    reader = CheckpointReader(store, commit, content=contents[1 % world_size])
    assert np.array_equal(reader._data(1), writers.expected(4, rank=1)), "from memory"


def test_the_first_file_that_fits_is_read_into_memory_that_is_there(tmp_path: Path) -> None:
    """New memory costs more than what is copied into it. A second file must not overwrite the first."""
    from tasks.train.checkpoint.reader import Content

    memory, entries = mmap.mmap(-1, 4096), []
    for name, size in (("small", 100), ("first", 4000), ("second", 4000)):
        data = name[:1].encode() * size
        (tmp_path / name).write_bytes(data)
        entries.append(FileEntry(path=name, size=size, xxh3=xxhash.xxh3_128(data).hexdigest()))
    content = Content(memory)
    for _ in range(2):
        assert [content.examine(tmp_path, entry) for entry in entries] == ["intact"] * 3
        assert memory[:4000] == b"f" * 4000
        held = [content.of(tmp_path / entry.path) for entry in entries]
        assert [bytes(data)[:1] for data in held if data is not None] == [b"s", b"f", b"s"]
        content.clear()


def test_a_snapshot_takes_over_the_memory_of_the_start_before(monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks.train.checkpoint.snapshot import SharedBuffer

    for name, value in RankBuffers().variables(0).items():
        monkeypatch.setenv(name, value)
    SharedBuffer(10_000).memory[:4] = b"left"
    assert SharedBuffer(10_000).memory[:4] == b"left"
    assert SharedBuffer(20_000).size == 20_480, "another size is no trouble"


def test_reading_a_large_file_gives_signs_of_life_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the watchdog takes a rank that loads from a slow storage for one that hangs."""
    import tasks.train.checkpoint.reader as module

    heard: list[None] = []
    monkeypatch.setattr(module, "own_pulse", lambda: SimpleNamespace(beat=lambda: heard.append(None)))
    data = bytes(9 << 20)
    (tmp_path / "rank-0000.bin").write_bytes(data)
    entry = FileEntry(path="rank-0000.bin", size=len(data), xxh3=xxhash.xxh3_128(data).hexdigest())
    assert module.Content().examine(tmp_path, entry) == "intact"
    assert len(heard) == 3
