"""What holds for a folder on a POSIX file system beyond the contract of all storages, and for local files."""

import contextlib
import os
from pathlib import Path

import pytest

from cluster import storage as storage_module
from cluster.storage import (
    AlreadyExistsError,
    FileStorage,
    file_entry,
    hash_file,
    open_storage,
    publish_file,
    replace_local,
    walk_files,
    write_durably,
)
from schemas.errors import ConfigError, UnreachableError, UnsafeFileError


@pytest.fixture
def storage(tmp_path: Path) -> FileStorage:
    return FileStorage(tmp_path / "data")


def test_a_relative_root_is_refused() -> None:
    with pytest.raises(ConfigError, match="must be absolute"):
        open_storage("data")


def test_an_unknown_scheme_is_an_error_without_a_stack() -> None:
    with pytest.raises(UnreachableError, match="nosuch"):
        open_storage("nosuch://bucket")


@pytest.mark.parametrize("key", ["link", "link/inside", "f/link"])
def test_links_out_of_the_root_are_refused(storage: FileStorage, tmp_path: Path, key: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "inside").write_text("secret")
    storage.create_exclusive("f/a", b"1")
    for place in (storage.root / "link", storage.root / "f" / "link"):
        place.symlink_to(outside)
    for act in (storage.read, storage.exists, storage.size, storage.names, storage.delete):
        with pytest.raises(UnsafeFileError, match="symbolic link"):
            act(key)
    with pytest.raises(UnsafeFileError):
        storage.create_exclusive(f"{key}/new", b"1")
    assert sorted(path.name for path in outside.iterdir()) == ["inside"]


def test_deleting_a_folder_does_not_follow_links(storage: FileStorage, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    storage.create_exclusive("f/a", b"1")
    (storage.root / "f" / "link").symlink_to(outside)
    storage.delete("f")
    assert not (storage.root / "f").exists()
    assert (outside / "kept").exists()


def test_a_folder_that_another_deletes_too_is_deleted(storage: FileStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    rmdir = os.rmdir

    def second(folder: Path) -> None:
        rmdir(folder)
        rmdir(folder)

    storage.create_exclusive("f/sub/a", b"1")
    monkeypatch.setattr(storage_module.os, "rmdir", second)
    storage.delete("f")
    assert not (storage.root / "f").exists()


@pytest.mark.parametrize("writes", [3, 100])
def test_what_is_written_into_a_folder_while_it_is_deleted_is_deleted_too(storage: FileStorage, monkeypatch: pytest.MonkeyPatch, writes: int) -> None:
    rmdir, left = os.rmdir, list(range(writes))

    def after_a_write(folder: Path) -> None:
        if left:
            (folder / f"late-{left.pop()}").touch()
        rmdir(folder)

    storage.create_exclusive("f/a", b"1")
    monkeypatch.setattr(storage_module.os, "rmdir", after_a_write)
    with contextlib.nullcontext() if writes == 3 else pytest.raises(OSError, match="not empty"):
        storage.delete("f")
    assert (storage.root / "f").exists() == bool(left)


def test_unfinished_writes_are_not_listed_and_leave_no_object(storage: FileStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    storage.create_exclusive("f/a", b"1")
    monkeypatch.setattr(storage_module.os, "fsync", fails)
    with pytest.raises(OSError, match="Input/output error"):
        storage.create_exclusive("f/b", b"2")
    assert storage.names("f") == ("a",)
    assert sorted(os.listdir(storage.root / "f")) == ["a"]


def test_a_link_that_was_made_although_it_was_reported_as_failed_is_success(storage: FileStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS: the answer to link(2) is lost, the client repeats it and is told that the name exists."""
    link = os.link

    def repeats(source: Path, target: Path) -> None:
        link(source, target)
        link(source, target)

    monkeypatch.setattr(storage_module.os, "link", repeats)
    storage.create_exclusive("k", b"1")
    assert storage.read("k") == b"1"


def test_a_published_file_keeps_its_bytes_and_equal_ones_are_success(tmp_path: Path) -> None:
    final = tmp_path / "part.parquet"
    for content in (b"same", b"same"):
        temporary = tmp_path / ".tmp-part"
        temporary.write_bytes(content)
        entry = publish_file(temporary, final)
        assert (entry.path, entry.size, entry.xxh3) == ("part.parquet", 4, hash_file(final))
        assert not temporary.exists()
    temporary.write_bytes(b"other")
    with pytest.raises(AlreadyExistsError, match=r"other bytes(?s:.*)cut short(?s:.*)delete this file and run again"):
        publish_file(temporary, final)
    assert final.read_bytes() == b"same"


def test_a_file_that_was_hashed_while_it_was_written_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    final, temporary = tmp_path / "part.parquet", tmp_path / ".tmp-part"
    write_durably(temporary, b"same")
    known = hash_file(temporary)
    with monkeypatch.context() as patch:
        patch.setattr(storage_module, "hash_file", None)
        entry = publish_file(temporary, final, xxh3=known)
    assert (entry.path, entry.size, entry.xxh3) == ("part.parquet", 4, known)
    write_durably(temporary, b"same")
    assert publish_file(temporary, final, xxh3=known) == entry
    write_durably(temporary, b"othr")
    with pytest.raises(AlreadyExistsError):
        publish_file(temporary, final, xxh3=hash_file(temporary))
    assert final.read_bytes() == b"same"


def test_replacing_a_local_file_leaves_no_temporary(tmp_path: Path) -> None:
    for content in (b"1", b"22"):
        replace_local(tmp_path / "progress.json", content)
        assert (tmp_path / "progress.json").read_bytes() == content
    assert os.listdir(tmp_path) == ["progress.json"]


def test_writing_durably_never_replaces(tmp_path: Path) -> None:
    write_durably(tmp_path / "a", b"1")
    with pytest.raises(FileExistsError):
        write_durably(tmp_path / "a", b"2")


def test_walking_refuses_pickles_and_links_and_skips_what_it_is_told(tmp_path: Path) -> None:
    for name in ("a.json", "sub/b.json", "items/c.json", ".tmp-d"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert [path.relative_to(tmp_path).as_posix() for path in walk_files(tmp_path, skip=("items",))] == ["a.json", "sub/b.json"]
    (tmp_path / "sub" / "weights.pt").touch()
    with pytest.raises(UnsafeFileError, match="pickle"):
        list(walk_files(tmp_path))
    (tmp_path / "sub" / "weights.pt").unlink()
    (tmp_path / "sub" / "link").symlink_to("/etc/passwd")
    with pytest.raises(UnsafeFileError, match="symbolic link"):
        list(walk_files(tmp_path))


def test_only_regular_files_are_hashed(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    (tmp_path / "a").write_bytes(b"abc")
    assert hash_file(tmp_path / "a") == "06b05ab6733a618578af5f94892f3950"
    assert file_entry(tmp_path / "a", relative_to=tmp_path).path == "a"
    for name in ("pipe", "link"):
        with pytest.raises(UnsafeFileError):
            hash_file(tmp_path / name)
