"""A running container: a process tree in namespaces of its own. Its first process is the program itself, as everywhere."""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.logs import LogPump, now, read
from lab.processes import children_of, families, until

_ENTER = Path(__file__).with_name("enter.py")
_COULD_NOT_START = 128
_MESSAGE_BYTES = 4096
_MESSAGE_LINES, _LOG_MESSAGE_BYTES = 80, 2048
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Exit:
    """How a container ended."""

    code: int
    """Of the program; 128 + N after signal N."""
    reason: str
    """`Completed`, `Error`, `OOMKilled` or `StartError`."""
    message: str
    started: str
    finished: str


class Container:
    """One life of a container. A restart is another one."""

    def __init__(self, specification: Mapping[str, Any], folder: Path, *, log: Path, on_end: Callable[[], None]) -> None:
        """Starts it.

        Args:
            specification: of its first process; see `specification.py`.
            folder: of this container.
            log: its output is appended there.
            on_end: called once it has ended, in a thread of its own.
        """
        self._folder, self._out_of_memory, self._on_end = folder, False, on_end
        self._message_log = log if specification["log_is_message"] else None
        self._first_pid: int | None = None
        self.exit: Exit | None = None
        self.started = now()
        for name in ("root", "root.layer"):
            shutil.rmtree(folder / name, ignore_errors=True)
        (folder / "specification.json").write_text(json.dumps(specification))
        self._process = subprocess.Popen(
            (sys.executable, "-I", str(_ENTER), str(folder / "specification.json")),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        output = self._process.stdout
        assert isinstance(output, io.BufferedReader)
        LogPump(output, log, on_end=self._ended).start()

    @property
    def first_pid(self) -> int | None:
        """Number of its first process; None: it has not begun, or has ended."""
        if self.exit is not None:
            return None
        if self._first_pid is None:
            self._first_pid = next(iter(children_of(self._process.pid)), None)
        return self._first_pid

    def terminate(self) -> None:
        """Asks it to end. As the first process of its namespace it hears only what it has a handler for."""
        pid = self.first_pid
        if pid is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM if _is_program(pid) else signal.SIGKILL)

    def kill(self) -> None:
        """Ends all its processes."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.first_pid or self._process.pid, signal.SIGKILL)

    def kill_for_memory(self) -> None:
        """Does what the kernel does to a control group that holds more memory than it may."""
        self._out_of_memory = True
        self.kill()

    def holds_more_than(self, limit: float, *, besides: int) -> bool:
        """Whether its processes hold more memory than this.

        Args:
            limit: in bytes.
            besides: bytes of volumes of memory, which count as well.
        """
        pids = list(_below(self._process.pid, families()))
        # What processes share is counted several times here, and once, slowly, only when it may matter.
        return sum(map(_resident_bytes, pids)) + besides > limit and sum(map(_proportional_bytes, pids)) + besides > limit

    def run(self, argv: list[str], *, seconds: float) -> int | None:
        """Runs a program in it, once it has begun. Returns its exit code; None: it took too long, or the container is gone."""
        until(lambda: self.exit is not None or ((pid := self.first_pid) is not None and _is_program(pid)), seconds=seconds)
        pid = self.first_pid
        if pid is None:
            return None
        inside = ("nsenter", "--target", str(pid), "--mount", "--uts", "--ipc", "--pid", "--root", "--wd", "--")
        try:
            return subprocess.run((*inside, *argv), stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds).returncode
        except subprocess.TimeoutExpired:
            return None

    def _ended(self) -> None:
        code = self._process.wait()
        code = 128 - code if code < 0 else code  # before there was a process inside
        error, told = (self._text(name) for name in ("error", "message"))
        if self._out_of_memory:
            reason = "OOMKilled"
        elif code == _COULD_NOT_START and error:
            reason = "StartError"
        else:
            reason = "Completed" if code == 0 else "Error"
        message = error or told or (self._end_of_log() if code else "")
        self.exit = Exit(code=code, reason=reason, message=message, started=self.started, finished=now())
        self._on_end()

    def _end_of_log(self) -> str:
        """Returns what a pod that wishes it tells of a failure when its program left no message."""
        if self._message_log is None:
            return ""
        lines = read(self._message_log, follow=lambda: False, tail=_MESSAGE_LINES)
        return b"".join(lines)[-_LOG_MESSAGE_BYTES:].decode(errors="replace")

    def _text(self, name: str) -> str:
        path = self._folder / name
        return path.read_text(errors="replace")[-_MESSAGE_BYTES:] if path.exists() else ""


def _is_program(pid: int) -> bool:
    """Whether a container's first process has become its program."""
    try:
        return os.fsencode(_ENTER) not in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False


def _below(pid: int, children: Mapping[int, list[int]]) -> Iterator[int]:
    for child in children.get(pid, ()):
        yield child
        yield from _below(child, children)


def _resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
    except (FileNotFoundError, ProcessLookupError):
        return 0


def _proportional_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
