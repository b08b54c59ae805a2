"""Recorded files: whatever byte changed, and whatever link is on the way, nothing of them is used."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.storage import file_entry
from schemas.artifact import FileEntry
from schemas.errors import UnsafeFileError, VerificationError
from schemas.exit_code import ExitCode
from tasks.recorded_file import entry_of, verified_bytes, verified_path
from tests.fakes.in_process_work import write_corpus

Read = Callable[..., Any]
CONTENT = bytes(range(256)) * 3
READERS = pytest.mark.parametrize("read", [verified_bytes, verified_path])


@pytest.fixture
def entry(tmp_path: Path) -> FileEntry:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_bytes(CONTENT)
    return file_entry(tmp_path / "model" / "config.json", relative_to=tmp_path)


def test_what_is_as_it_was_recorded_is_read(tmp_path: Path, entry: FileEntry) -> None:
    assert verified_bytes(tmp_path, entry, subject="it") == CONTENT
    assert verified_path(tmp_path, entry, subject="it") == tmp_path / "model" / "config.json"


@READERS
@pytest.mark.parametrize("damage", ["truncate", "lengthen", "empty", "remove", "remove folder", "file for folder"])
def test_damage_is_named_and_exits_with_7(tmp_path: Path, entry: FileEntry, read: Read, damage: str) -> None:
    path = tmp_path / "model" / "config.json"
    match damage:
        case "truncate":
            path.write_bytes(CONTENT[:-1])
        case "lengthen":
            path.write_bytes(CONTENT + b" ")
        case "empty":
            path.write_bytes(b"")
        case _:
            path.unlink()
            if damage != "remove":
                path.parent.rmdir()
            if damage == "file for folder":
                path.parent.write_bytes(b"")
    with pytest.raises(VerificationError, match=r"it: verification failed\n.*config\.json") as caught:
        read(tmp_path, entry, subject="it")
    assert caught.value.exit_code is ExitCode.VERIFICATION


@given(position=st.integers(0, len(CONTENT) - 1), bit=st.integers(0, 7))
@settings(max_examples=40)
def test_every_flipped_bit_is_found(tmp_path_factory: pytest.TempPathFactory, position: int, bit: int) -> None:
    folder = tmp_path_factory.mktemp("flipped")
    path = folder / "manifest.json"
    path.write_bytes(CONTENT)
    recorded = file_entry(path, relative_to=folder)
    flipped = bytearray(CONTENT)
    flipped[position] ^= 1 << bit
    path.write_bytes(flipped)
    for read in (verified_bytes, verified_path):
        with pytest.raises(VerificationError, match=r"manifest\.json: xxh3"):
            read(folder, recorded, subject="it")


@READERS
@pytest.mark.parametrize("place", ["model", "model/config.json"])
def test_links_are_refused_though_what_they_lead_to_is_right(tmp_path: Path, entry: FileEntry, read: Read, place: str) -> None:
    (tmp_path / place).rename(tmp_path / "moved")
    (tmp_path / place).symlink_to(tmp_path / "moved")
    with pytest.raises(UnsafeFileError, match="is a symbolic link") as caught:
        read(tmp_path, entry, subject="it")
    assert caught.value.exit_code is ExitCode.VERIFICATION


@READERS
def test_a_storage_that_does_not_answer_is_no_damage(tmp_path: Path, entry: FileEntry, read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    def stale(*_: Any, **__: Any) -> Any:
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(Path, "stat", stale)
    monkeypatch.setattr(Path, "is_symlink", lambda _: False)
    with pytest.raises(OSError, match="Stale file handle"):
        read(tmp_path, entry, subject="it")


def test_the_entry_comes_from_the_record(tmp_path: Path) -> None:
    record = write_corpus(tmp_path, {(0, "train"): ["text"]})
    entry = entry_of(record, "manifest.json")
    assert verified_bytes(tmp_path / record.key, entry, subject="it") == (tmp_path / record.key / "manifest.json").read_bytes()
    with pytest.raises(VerificationError, match=r"tokenizer\.json: not in the record"):
        entry_of(record, "tokenizer.json")
