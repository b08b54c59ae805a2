"""What people see while raw files are hashed."""

import io

import pytest

from flows.hashing import hashing_shown
from tasks.hashing import Hashing


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def at(seconds: float) -> Hashing:
    return Hashing(done_bytes=int(seconds * 1e8), total_bytes=10**10, seconds=seconds)


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_what_is_quick_is_not_shown(stream: type[io.StringIO]) -> None:
    shown = stream()
    with hashing_shown(shown) as watch:
        watch(at(1.0))
    assert shown.getvalue() == ""


def test_a_log_gets_a_line_every_ten_seconds() -> None:
    shown = io.StringIO()
    with hashing_shown(shown) as watch:
        for second in range(1, 26):
            watch(at(second))
    assert shown.getvalue().splitlines() == [
        "hashing raw files: 0.2 of 10.0 GB, 100 MB/s, 98 s to go",
        "hashing raw files: 1.2 of 10.0 GB, 100 MB/s, 88 s to go",
        "hashing raw files: 2.2 of 10.0 GB, 100 MB/s, 78 s to go",
    ]


def test_a_terminal_gets_a_bar_that_goes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    shown = Terminal()
    with hashing_shown(shown) as watch:
        for second in range(2, 5):
            watch(at(second))
    assert "hashing raw files: 0.4 of 10.0 GB, 100 MB/s, 96 s to go" in shown.getvalue()
    assert shown.getvalue().endswith("\x1b[2K"), "the line is cleared"
