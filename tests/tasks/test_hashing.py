"""Many files hashed at once: the same hashes, told on the way, stopped at once, and what was learnt is kept."""

import errno
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.storage import hash_file
from schemas.errors import InterruptedRunError
from schemas.stage import Stage
from tasks import file_hashes
from tasks.file_hashes import FileHashes
from tasks.hashing import Hashing, telling

SIZE = 100


@pytest.fixture
def files(tmp_path: Path) -> Iterator[list[Path]]:
    """Twenty files that nobody has changed for a while."""
    paths = [tmp_path / "text" / f"{number:02d}.txt" for number in range(20)]
    paths[0].parent.mkdir()
    past = time.time() - 100
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]) * SIZE)
        os.utime(path, (past, past))
    later = file_hashes.time.time_ns() + 10_000_000_000  # their folder entries are as young as this test
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(file_hashes.time, "time_ns", lambda: later)
        yield paths


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "cache.sqlite"


@pytest.fixture
def looking_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_hashes, "_LOOK_EVERY_S", 0.005)


def remembered(database: Path) -> int:
    with sqlite3.connect(database) as connection:
        return int(connection.execute("SELECT count(*) FROM file_hashes").fetchone()[0])


def instead(act: Callable[[Path], object]) -> Callable[..., str]:
    """Returns a `hash_file` that does something first."""

    def read(path: Path, *, on_block: Callable[[int], None]) -> str:
        act(path)
        return hash_file(path, on_block=on_block)

    return read


def test_they_come_in_order_and_are_read_once(files: list[Path], database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [hash_file(path) for path in files]
    with FileHashes(database) as hashes:
        assert hashes.hash(files[7]) == wanted[7]
        assert hashes.hash_all(files) == wanted
        assert hashes.hash_all([]) == []
    read: list[Path] = []
    monkeypatch.setattr(file_hashes, "hash_file", instead(read.append))
    files[3].write_bytes(b"changed")
    with FileHashes(database) as hashes:
        assert hashes.hash_all(files) == [*wanted[:3], hash_file(files[3]), *wanted[4:]]
    assert read == [files[3]]


def test_several_are_read_at_a_time(files: list[Path], database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    together = threading.Barrier(2, timeout=60)
    monkeypatch.setattr(file_hashes, "hash_file", instead(lambda _: together.wait()))
    with FileHashes(database) as hashes:
        assert len(set(hashes.hash_all(files))) == len(files)


@pytest.mark.usefixtures("looking_often")
def test_it_is_told_how_far_it_is_and_what_is_learnt_is_kept_on_the_way(files: list[Path], database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Hashing] = []
    kept: list[int] = []
    enough = threading.Event()
    monkeypatch.setattr(file_hashes, "_SAVE_EVERY_S", 0.0)
    monkeypatch.setattr(file_hashes, "hash_file", instead(lambda path: enough.wait(60) if path == files[-1] else None))

    def watch(hashing: Hashing) -> None:
        seen.append(hashing)
        kept.append(remembered(database))
        if kept[-1] == len(files) - 1:
            enough.set()

    with FileHashes(database, watch=watch) as hashes:
        hashes.hash_all(files)
    assert enough.is_set(), "all but the one that is still read are remembered"
    assert {hashing.total_bytes for hashing in seen} == {SIZE * len(files)}
    assert seen[kept.index(len(files) - 1)].done_bytes == SIZE * (len(files) - 1)
    assert seen[-1].done_bytes == SIZE * len(files), "it is told when it is over"


@pytest.mark.usefixtures("looking_often")
def test_who_watches_can_end_it_in_the_middle_of_a_file(files: list[Path], database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = threading.Event()

    def endless(_path: Path, *, on_block: Callable[[int], None]) -> str:
        deadline = time.monotonic() + 60.0
        while time.monotonic() < deadline:
            begun.set()
            on_block(1)
        raise AssertionError("it was not ended")

    monkeypatch.setattr(file_hashes, "hash_file", endless)
    watch = telling(Stage.VALIDATE, note=lambda _: None, stop_requested=begun.is_set)
    with FileHashes(database, watch=watch) as hashes, pytest.raises(InterruptedRunError, match="stopped before validate"):
        hashes.hash_all(files)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("hash")]


def test_a_disk_that_fails_is_told_with_the_file_and_the_others_are_left(files: list[Path], database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = threading.Event()

    def read(path: Path, *, on_block: Callable[[int], None]) -> str:
        if path == files[2]:
            failed.set()
            raise OSError(errno.EIO, "Input/output error")
        deadline = time.monotonic() + 60.0
        while failed.is_set() and time.monotonic() < deadline:
            on_block(1)
        return hash_file(path, on_block=on_block)

    monkeypatch.setattr(file_hashes, "hash_file", read)
    with FileHashes(database) as hashes, pytest.raises(OSError, match="Input/output error") as caught:
        hashes.hash_all(files)
    assert caught.value.filename == str(files[2])


def test_notes_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    watch = telling(Stage.VALIDATE, note=notes.append, stop_requested=lambda: False)
    for second in range(100):
        watch(Hashing(done_bytes=second * 10**8, total_bytes=2 * 10**10, seconds=float(second)))
    assert notes == [
        "hashing raw files: 3.0 of 20.0 GB, 100 MB/s, 3 min to go",
        "hashing raw files: 6.0 of 20.0 GB, 100 MB/s, 2 min to go",
        "hashing raw files: 9.0 of 20.0 GB, 100 MB/s, 2 min to go",
    ]
    assert Hashing(0, 40_000_000, seconds=0.0).line == "hashing raw files: 0.0 of 40.0 MB, 0 MB/s"


@pytest.mark.usefixtures("looking_often")
def test_a_file_that_is_read_again_does_not_count_beyond_all(files: list[Path], database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[int] = []

    def twice(path: Path, *, on_block: Callable[[int], None]) -> str:
        hash_file(path, on_block=on_block)
        time.sleep(0.01)
        return hash_file(path, on_block=on_block)

    monkeypatch.setattr(file_hashes, "hash_file", twice)
    with FileHashes(database, watch=lambda hashing: shown.append(hashing.done_bytes)) as hashes:
        hashes.hash_all(files)
    assert shown == sorted(shown)
    assert max(shown) == SIZE * len(files)


def test_a_file_that_is_named_twice_is_read_once(files: list[Path], database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    monkeypatch.setattr(file_hashes, "hash_file", instead(read.append))
    with FileHashes(database) as hashes:
        one, other, again = hashes.hash_all([files[0], files[1], files[0]])
    assert one == again != other
    assert sorted(read) == files[:2]


def test_what_cannot_be_kept_now_is_kept_later(files: list[Path], database: Path, caplog: pytest.LogCaptureFixture) -> None:
    with FileHashes(database) as hashes:
        wanted = hashes.hash(files[0])
        connection, hashes._connection = hashes._connection, sqlite3.connect(":memory:")  # which has no such table
        hashes._save()
        assert "is not remembered" in caplog.text
        hashes._connection = connection
    assert remembered(database) == 1
    with FileHashes(database) as hashes:
        assert hashes.hash(files[0]) == wanted
