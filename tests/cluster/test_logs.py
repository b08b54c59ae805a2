"""Lines out of log segments."""

from pathlib import Path

import pytest

from cluster.layout import AttemptLayout
from cluster.logs import LogLine, LogReader, last_lines, read_logs
from cluster.storage import FileStorage

ATTEMPT = AttemptLayout("train/x-0123456789ab/attempts/job-0000")


def publish(storage: FileStorage, data: bytes, *, rank: int, sequence: int, epoch: int = 0) -> None:
    storage.create_exclusive(ATTEMPT.log_segment(epoch=epoch, rank=rank, sequence=sequence), data)


def test_lines_across_segments_by_epoch_and_rank(tmp_path: Path) -> None:
    storage = FileStorage(tmp_path)
    publish(storage, b"one\ntw", rank=0, sequence=0)
    publish(storage, b"o\n", rank=0, sequence=1)
    publish(storage, b"three\n", rank=1, sequence=0)
    publish(storage, b"four", rank=0, sequence=0, epoch=1)
    assert list(read_logs(storage, ATTEMPT)) == [LogLine(0, 0, "one"), LogLine(0, 0, "two"), LogLine(0, 1, "three"), LogLine(1, 0, "four")]
    assert list(read_logs(storage, ATTEMPT, rank=1)) == [LogLine(0, 1, "three")]


def test_bytes_that_are_no_text_and_progress_bars(tmp_path: Path) -> None:
    storage = FileStorage(tmp_path)
    publish(storage, b"\xff\n 10%\r 20%\r100%\ncrlf\r\n", rank=0, sequence=0)
    assert [line.text for line in read_logs(storage, ATTEMPT)] == ["\ufffd", "100%", "crlf"]


def test_a_character_cut_by_a_segment_is_whole_again(tmp_path: Path) -> None:
    storage, text = FileStorage(tmp_path), "größer\n".encode()
    publish(storage, text[:3], rank=0, sequence=0)
    publish(storage, text[3:], rank=0, sequence=1)
    assert [line.text for line in read_logs(storage, ATTEMPT)] == ["größer"]


def test_a_reader_holds_an_unfinished_line_back(tmp_path: Path) -> None:
    storage = FileStorage(tmp_path)
    reader = LogReader(storage, ATTEMPT)
    publish(storage, b"whole\nhal", rank=0, sequence=0)
    assert [line.text for line in reader.read()] == ["whole"]
    assert list(reader.read()) == []
    assert [line.text for line in reader.rest()] == ["hal"]


def test_a_line_that_a_killed_rank_left_unfinished_comes_before_the_next_start(tmp_path: Path) -> None:
    storage = FileStorage(tmp_path)
    reader = LogReader(storage, ATTEMPT)
    publish(storage, b"whole\nhal", rank=0, sequence=0)
    assert [line.text for line in reader.read()] == ["whole"]
    publish(storage, b"again\n", rank=0, sequence=0, epoch=1)
    assert list(reader.read()) == [LogLine(0, 0, "hal"), LogLine(1, 0, "again")]
    assert list(reader.rest()) == []


def test_the_last_lines_of_a_rank_take_no_more_reading_than_they_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = FileStorage(tmp_path)
    assert last_lines(storage, ATTEMPT, rank=0, count=3) == ()
    publish(storage, b"an earlier start\n", rank=0, sequence=0)
    for sequence, data in enumerate((b"line 0\nlin", b"e 1\nline 2\n\n\n", b"line 3\nlast")):
        publish(storage, data, rank=0, sequence=sequence, epoch=1)
    publish(storage, b"another rank\n", rank=1, sequence=0, epoch=1)
    assert last_lines(storage, ATTEMPT, rank=0, count=3) == ("line 2", "line 3", "last")
    assert last_lines(storage, ATTEMPT, rank=0, count=9) == ("line 0", "line 1", "line 2", "line 3", "last")
    assert last_lines(storage, ATTEMPT, rank=2, count=9) == ()
    read: list[str] = []
    monkeypatch.setattr(storage, "read", lambda key, read_all=storage.read: (read.append(key), read_all(key))[1])
    assert last_lines(storage, ATTEMPT, rank=0, count=4) == ("line 2", "line 3", "last"), "blank lines count, and half a line is none"
    assert len(read) == 2
