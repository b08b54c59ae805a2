"""Folders and files of a shared store get its group's rights, whatever the umask; elsewhere the umask stands. And which way to the disk they take."""

import mmap
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.durable import make_folder, stream_durably, write_durably
from cluster.storage import FileStorage, publish_file


@pytest.fixture
def strict() -> Iterator[None]:
    """A user who lets nobody in."""
    before = os.umask(0o077)
    yield
    os.umask(before)


def fill(root: Path) -> dict[str, str]:
    """Writes in every way there is; returns what each file and folder may be done with."""
    make_folder(root / "a" / "b")
    write_durably(root / "a" / "b" / "small", b"x")
    buffer = memoryview(bytearray(4096))
    stream_durably(root / "a" / "streamed", buffer, size=100)
    (root / "a" / ".tmp-library").write_bytes(b"x")
    publish_file(root / "a" / ".tmp-library", root / "a" / "published")
    FileStorage(root).create_exclusive("a/c/object", b"x")
    return {str(path.relative_to(root)): stat.filemode(path.stat().st_mode) for path in sorted(root.rglob("*"))}


@pytest.mark.usefixtures("strict")
def test_in_a_shared_folder_everything_is_for_the_group(tmp_path: Path) -> None:
    root = tmp_path / "shared"
    root.mkdir()
    root.chmod(0o2770)
    file, folder = "-rw-rw----", "drwxrws---"
    files = ("a/b/small", "a/c/object", "a/published", "a/streamed")
    assert fill(root) == dict.fromkeys(("a", "a/b", "a/c"), folder) | dict.fromkeys(files, file)


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize("mode", [0o770, 0o2750])
def test_elsewhere_the_umask_stands(tmp_path: Path, mode: int) -> None:
    root = tmp_path / "own"
    root.mkdir()
    root.chmod(mode)
    assert {found[1:10].replace("s", "-").replace("S", "-") for found in fill(root).values()} == {"rw-------", "rwx------"}


def test_streams_go_past_the_page_cache_and_other_files_stay_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, real = dict[str, int](), os.open

    def noting(path: Path, flags: int, mode: int = 0o777) -> int:
        opened.setdefault(Path(path).name, flags)
        return real(path, flags, mode)

    monkeypatch.setattr(os, "open", noting)
    content = mmap.mmap(-1, mmap.PAGESIZE)
    content[:5] = b"state"
    stream_durably(tmp_path / "streamed", memoryview(content), size=5)
    write_durably(tmp_path / "written", b"sh", memoryview(b"a"), b"", b"rd")
    assert (tmp_path / "streamed").read_bytes() == b"state"
    assert (tmp_path / "written").read_bytes() == b"shard"
    assert opened["streamed"] & os.O_DIRECT
    assert not opened["written"] & os.O_DIRECT


def test_what_the_system_takes_in_part_is_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, bytes(data)[:3]))
    write_durably(tmp_path / "file", b"0123456", b"789")
    monkeypatch.undo()
    assert (tmp_path / "file").read_bytes() == b"0123456789"


def test_a_piece_that_takes_several_writes_is_written_whole(tmp_path: Path) -> None:
    piece = os.urandom((3 << 20) + 7)
    write_durably(tmp_path / "large", b"head", memoryview(piece), b"tail")
    assert (tmp_path / "large").read_bytes() == b"head" + piece + b"tail"
