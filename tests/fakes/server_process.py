"""Servers of tests, in processes of their own: on a port that is free, waited for, and gone with everything they started."""

import contextlib
import fcntl
import os
import random
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

_STARTUP_S = 120.0
_POLL_S = 0.05
_PORTS = 5
_MAY_BE = range(32_000, 32_768)
"""Linux gives clients those from there on; test clusters and the S3 server take lower ones."""
_CHOSEN: dict[int, int] = {}
"""Port → descriptor of the lock file that keeps it from other processes' tests."""


@contextlib.contextmanager
def serving(
    argv: Callable[[int], Sequence[str]],
    *,
    health: str,
    log: Path,
    env: Mapping[str, str],
    port_setting: str | None = None,
    port: int | None = None,
) -> Iterator[int]:
    """Runs a server as long as the body, which gets its port.

    Args:
        argv: port → command line.
        health: path that answers 200 once the server is up.
        log: what it prints is appended here.
        env: its environment.
        port_setting: the variable that tells it its port, when the command line does not.
        port: the one it has to have; by default one that is free.
    """
    for _ in range(_PORTS):  # between the choice of a port and its use another process may take it
        at = free_port() if port is None else port
        with log.open("ab") as output:
            own = env if port_setting is None else {**env, port_setting: str(at)}
            process = subprocess.Popen(argv(at), env=own, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True)
        try:
            if _comes_up(process, f"http://127.0.0.1:{at}{health}", log=log):
                yield at
                return
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    raise AssertionError(f"{_PORTS} ports were taken\n{_end_of(log)}")


def free_port(may_be: range = _MAY_BE, *, above: int = 0) -> int:
    """Returns a port of the loopback that nobody uses just now, nor the kernel gives to a client while a server that had it is down.

    Args:
        may_be: which one it may be.
        above: how far above it a second one is to be free; 0: there is none.
    """
    for port in random.sample(may_be, len(may_be)):
        with contextlib.suppress(OSError):
            for each in {port, port + above}:
                with socket.socket() as free:
                    free.bind(("127.0.0.1", each))
            _keep(port)
            return port
    raise AssertionError("no port is free")


def _keep(port: int) -> None:
    """Keeps other processes' tests from choosing the port as long as this process lives: some use theirs much later. OSError: one has it."""
    if port in _CHOSEN:
        raise FileExistsError(port)
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(Path(tempfile.gettempdir(), f"headrace-port-{port}"), flags, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    _CHOSEN[port] = descriptor


def _comes_up(process: "subprocess.Popen[bytes]", url: str, *, log: Path) -> bool:
    """Waits until the server answers; False when its port was taken."""
    deadline = time.monotonic() + _STARTUP_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            assert "address already in use" in _end_of(log).lower(), _end_of(log)
            return False
        if _answers(url):
            return process.poll() is None
        time.sleep(_POLL_S)
    raise AssertionError(f"{url} does not answer\n{_end_of(log)}")


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _end_of(log: Path) -> str:
    return log.read_text(errors="replace")[-3000:]
