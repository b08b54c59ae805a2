"""Servers of tests, in processes of their own: on a port that is free, waited for, and gone with everything they started."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

_STARTUP_S = 120.0
_POLL_S = 0.05
_PORTS = 5


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


def free_port() -> int:
    """Returns a port of the loopback that nobody uses just now, nor the kernel gives to a client while a server that had it is down."""
    while True:
        port = random.randrange(32_000, 32_768)  # Linux gives clients those from there on; test clusters and the S3 server take lower ones
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port


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
