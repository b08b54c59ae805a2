"""The cluster's processes: each has a file with its number and a log. They outlive whoever started them; any process may go on with them."""

import contextlib
import os
import select
import signal
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path

MARK = "HEADRACE_TEST_CLUSTER"
"""The variable by which a process is known as the cluster's: a recycled number has not got it."""


class Processes:
    """The processes of a cluster's folder."""

    def __init__(self, folder: Path) -> None:
        """Args: folder: of the cluster; absolute."""
        self.folder = folder

    def log(self, name: str) -> Path:
        """Returns the file of what a process prints."""
        return self.folder / "log" / f"{name}.log"

    def spawn(self, name: str, *argv: str, env: Mapping[str, str] | None = None) -> None:
        """Starts a process in a session of its own; what it prints is appended to its log."""
        for folder in (self.folder / "log", self.folder / "run"):
            folder.mkdir(exist_ok=True)
        base = {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8", "HOME": str(self.folder), MARK: str(self.folder)}
        with self.log(name).open("ab") as log:
            process = subprocess.Popen(
                argv, env={**base, **(env or {})}, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        process.returncode = 0  # it outlives this process, which need not wait for it
        (self.folder / "run" / f"{name}.pid").write_text(str(process.pid))

    def pid(self, name: str) -> int | None:
        """Returns a process's number while it lives."""
        try:
            pid = int((self.folder / "run" / f"{name}.pid").read_text())
        except (FileNotFoundError, ValueError):
            return None
        place = Path(f"/proc/{pid}")
        until(lambda: _has_begun(place), seconds=1)
        return pid if self._is_ours(place / "environ") else None

    def stop(self, name: str, number: int, *, seconds: float) -> bool:
        """Signals a process (0: does not) and waits for its end. Returns whether it has ended, or was not there."""
        pid = self.pid(name)
        if pid is None:
            return True
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            return True
        try:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, number)
            return _ends(handle, seconds=seconds)
        finally:
            os.close(handle)
            with contextlib.suppress(ChildProcessError):  # of another parent
                os.waitpid(pid, os.WNOHANG)

    def power_off(self, name: str, *, seconds: float) -> bool:
        """Kills what a process started in namespaces of its own; it ends once nothing is left in them. Returns whether it has ended."""
        pid = self.pid(name)
        first = children_of(pid) if pid is not None else []
        for child in first:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        return self.stop(name, 0 if first else signal.SIGKILL, seconds=seconds)

    def kill_rest(self) -> bool:
        """Kills all that bear the cluster's mark, whoever started them, except this process. Returns whether there were any."""
        found = [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/environ") if self._is_ours(path)]
        others = [pid for pid in found if pid != os.getpid()]
        for pid in others:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return bool(others)

    def _is_ours(self, environment: Path) -> bool:
        try:
            return f"{MARK}={self.folder}".encode() in environment.read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            return False

    def last_words(self, name: str) -> str:
        """Returns the end of a process's log."""
        path = self.log(name)
        return path.read_text(errors="replace")[-1500:].strip() if path.exists() else ""


def _has_begun(place: Path) -> bool:
    """Whether a process has its environment, or will never have one: for a moment within `exec` it has none, and would pass for another's."""
    try:
        return bool((place / "environ").read_bytes()) or (place / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return True


def _ends(handle: int, *, seconds: float) -> bool:
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def until(condition: Callable[[], bool], *, seconds: float, every: float = 0.05) -> bool:
    """Waits for a condition. Returns whether it has come true."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(every)
    return True


def children_of(pid: int) -> list[int]:
    """Returns the processes that one is the parent of."""
    return families().get(pid, [])


def families() -> Mapping[int, list[int]]:
    """Returns process → those that it is the parent of, as far as this one can see."""
    found: dict[int, list[int]] = defaultdict(list)
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found[int(path.read_text().rpartition(")")[2].split()[1])].append(int(path.parent.name))
    return found


def wait_for_end(pid: int) -> None:
    """Returns once another process has ended."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    poll.poll()
    os.close(handle)
