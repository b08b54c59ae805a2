"""What is new in a file that others write, cut and rename."""

import shutil
from pathlib import Path

import pytest

from cluster.agent.tail import Tail


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log-000001.txt"


@pytest.fixture
def tail(log: Path) -> Tail:
    return Tail(path=log, key=lambda *, sequence: f"{sequence}.log", whole_lines=False)


def write(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def new(tail: Tail) -> str:
    return b"".join(tail.pieces()).decode()


def test_what_a_file_grows_by(tail: Tail, log: Path) -> None:
    assert new(tail) == ""
    write(log, "one\ntw")
    assert new(tail) == "one\ntw"
    assert new(tail) == ""
    write(log, "o\n")
    assert (new(tail), tail.sequence) == ("o\n", 2)


def test_large_growth_comes_in_pieces(tail: Tail, log: Path) -> None:
    write(log, "x" * (5 << 19))
    assert [len(piece) for piece in tail.pieces()] == [1 << 20, 1 << 20, 1 << 19]


def test_a_piece_that_could_not_be_stored_comes_again(tail: Tail, log: Path) -> None:
    write(log, "one\n")
    assert next(tail.pieces()) == b"one\n"
    assert (new(tail), tail.sequence) == ("one\n", 1)


def test_a_piece_comes_again_as_it_was_though_the_file_has_grown(tail: Tail, log: Path) -> None:
    """The first try may have stored it under its number: then nobody stores what a second one holds beyond it."""
    write(log, "one\n")
    assert next(tail.pieces()) == b"one\n"
    write(log, "two\n")
    assert next(tail.pieces()) == b"one\n"
    assert [piece.decode() for piece in tail.pieces()] == ["one\n", "two\n"]
    assert tail.sequence == 2


@pytest.mark.parametrize("after", ["", "a new beginning that is longer\n"])
def test_a_piece_comes_again_though_the_file_was_cut(tail: Tail, log: Path, after: str) -> None:
    write(log, "one\n")
    assert next(tail.pieces()) == b"one\n"
    log.write_text(after)
    assert new(tail) == "one\n" + after
    write(log, "more\n")
    assert new(tail) == "more\n"


def test_a_line_without_its_end_waits_where_lines_count(log: Path) -> None:
    tail = Tail(path=log, key=lambda *, sequence: "", whole_lines=True)
    write(log, '{"a": 1}\n{"b"')
    assert new(tail) == '{"a": 1}\n'
    write(log, ": 2}\n")
    assert new(tail) == '{"b": 2}\n'


@pytest.mark.parametrize("after", ["", "later\n", "so much later that the file is longer than it was before\n"])
def test_a_file_that_is_cut_is_read_from_its_beginning(tail: Tail, log: Path, after: str) -> None:
    write(log, "some lines before\n")
    new(tail)
    shutil.copy(log, log.with_name(f"{log.name}.1"))  # as copytruncate does
    log.write_text("")
    write(log, after)
    assert new(tail) == after
    write(log, "more\n")
    assert new(tail) == "more\n"


def test_of_a_file_that_is_renamed_the_rest_is_read_first(tail: Tail, log: Path) -> None:
    write(log, "one\n")
    new(tail)
    write(log, "two\n")
    log.rename(f"{log}.1")
    write(log, "three\n")
    assert new(tail) == "two\nthree\n"


def test_a_file_that_is_written_under_its_new_name_is_still_read(tail: Tail, log: Path) -> None:
    """A rank has no other place to write to."""
    write(log, "one\n")
    new(tail)
    moved = log.rename(f"{log}.1")
    for text in ("two\n", "three\n"):
        write(moved, text)
        assert new(tail) == text
    write(log, "four\n")
    assert new(tail) == "four\n"


def test_a_file_that_is_removed_ends(tail: Tail, log: Path) -> None:
    write(log, "one\n")
    new(tail)
    log.unlink()
    assert new(tail) == ""
    write(log, "a new beginning\n")
    assert new(tail) == "a new beginning\n"
