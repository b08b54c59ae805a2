"""One Prefect server per state folder: started by its first user, joined by the others, gone after its last.

    {state}/prefect/            PREFECT_HOME
        join.lock               held for moments, by whoever joins, starts or ends the server
        server.lock             held by the server process as long as it lives
        server.json             where it listens; removed when it ends
        users/{pid}-{token}     held by each user as long as it lives
        server.log

All three are `flock`s, which the kernel drops when their holder dies, however it dies: a killed user is not counted, a
killed server is replaced by the next user, and nothing is left behind. The starter binds the port and hands the
listening socket over, so the address is known at once, no other process can take the port, and a client that is early
waits in the socket's queue while the server is still importing.

Imports neither Prefect nor anything else that is slow: the server runs in its own process (`python -m flows.prefect_server`).
"""

import contextlib
import fcntl
import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from urllib.parse import urlsplit

from schemas.errors import UnreachableError

_HOST = "127.0.0.1"
_START_TIMEOUT_S = 180.0
_LEAVE_TIMEOUT_S = 30.0
_POLL_S = 0.1
_LOG_LINES = 15


def prefect_home(state_dir: Path) -> Path:
    """Returns PREFECT_HOME of a state folder."""
    return state_dir / "prefect"


def ensure_server(state_dir: Path, *, wait: bool = True) -> str:
    """Returns the API URL of the state folder's server, which lives at least as long as this process.

    Args:
        state_dir: the state folder, absolute.
        wait: until the server answers. Without, the URL comes at once: requests wait while the server starts, and
            `wait_until_ready` tells when and whether it is up.

    Raises:
        UnreachableError: the server did not come up; the message holds the end of its log.
    """
    home = prefect_home(state_dir)
    (home / "users").mkdir(parents=True, exist_ok=True)
    with _locked(home / "join.lock"):
        _enter(home)
        url = _running_url(home) or _start(home)
    if wait:
        wait_until_ready(state_dir, url)
    return url


def wait_until_ready(state_dir: Path, url: str, *, timeout_s: float = _START_TIMEOUT_S) -> None:
    """Returns when the server at `url` answers. Raises UnreachableError when it ends or stays silent for `timeout_s`."""
    home = prefect_home(state_dir)
    deadline = time.monotonic() + timeout_s
    while not is_healthy(url, timeout_s=max(0.1, min(10.0, deadline - time.monotonic()))):
        if not _is_held(home / "server.lock"):
            raise _failed(home, "the Prefect server ended while it started")
        if time.monotonic() > deadline:
            raise _failed(home, f"the Prefect server at {url} did not answer within {timeout_s:.0f} s")
        time.sleep(_POLL_S)


def is_healthy(url: str, *, timeout_s: float = 2.0) -> bool:
    """Whether a Prefect API answers at `url`. One that wants a key, as Prefect Cloud does, answers too."""
    is_local = urlsplit(url).hostname in (_HOST, "localhost", "::1")
    proxies = urllib.request.ProxyHandler({} if is_local else None)  # a site's HTTP proxy does not know our loopback
    try:
        with urllib.request.build_opener(proxies).open(f"{url}/health", timeout=timeout_s):
            return True
    except urllib.error.HTTPError as error:
        error.close()
        return error.code < 500
    except (OSError, ValueError):  # no answer, or no URL
        return False


def client_environment(environment: MutableMapping[str, str], *, state_dir: Path, ambient: bool) -> str | None:
    """Prepares `environment` for a process that is about to import Prefect as a client of the state folder's server.

    Args:
        environment: usually `os.environ`; changed.
        state_dir: the state folder, absolute.
        ambient: whether an explicit `PREFECT_API_URL` of the user counts. Profiles in the user's home never do.

    Returns:
        The user's own API URL when it counts: then nothing but noise is changed. Otherwise None: every ambient `PREFECT_*` is
        gone, and the caller sets `PREFECT_API_URL` to what `ensure_server` returns.
    """
    given = environment.get("PREFECT_API_URL") if ambient else None
    if not given:
        for name in [name for name in environment if name.startswith("PREFECT_")]:
            del environment[name]
        environment["PREFECT_HOME"] = str(prefect_home(state_dir))
        no_proxy = [host for host in (environment.get("NO_PROXY") or environment.get("no_proxy") or "").split(",") if host]
        environment["NO_PROXY"] = environment["no_proxy"] = ",".join(dict.fromkeys([*no_proxy, _HOST, "localhost"]))
    environment.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    environment.setdefault("DO_NOT_TRACK", "1")
    environment.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")  # the terminal is ours; logs go to the API
    environment.setdefault("PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW", "ignore")
    return given or None


# ---- joining and starting, under join.lock ----------------------------------------------------------------------------


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _enter(home: Path) -> None:
    """Counts this process as a user until it ends: the descriptor is left open on purpose."""
    path = home / "users" / f"{os.getpid()}-{secrets.token_hex(4)}"
    fcntl.flock(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), fcntl.LOCK_EX)


def _is_held(path: Path) -> bool:
    """Whether a living process holds the lock file `path`."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: who else looks just now holds nothing
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _running_url(home: Path) -> str:
    """Returns the URL of the living server, or an empty string; waits while one is on its way out."""
    deadline = time.monotonic() + _LEAVE_TIMEOUT_S
    while _is_held(home / "server.lock"):
        with contextlib.suppress(FileNotFoundError):
            url: str = json.loads((home / "server.json").read_text(encoding="utf-8"))["url"]
            return url
        if time.monotonic() > deadline:
            raise _failed(home, f"the last Prefect server of {home} does not end")
        time.sleep(_POLL_S)
    return ""


def _start(home: Path) -> str:
    """Starts the server process and returns its URL; it listens already."""
    lock = os.open(home / "server.lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with socket.create_server((_HOST, 0), backlog=256) as listener, (home / "server.log").open("ab") as log:
        url = f"http://{_HOST}:{listener.getsockname()[1]}/api"
        command = [sys.executable, "-m", "flows.prefect_server", "--home", str(home), "--listener", str(listener.fileno()), "--lock", str(lock)]
        started = subprocess.run(
            command,
            cwd=Path(__file__).parent.parent,
            env=_server_environment(home, url),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            pass_fds=(listener.fileno(), lock),
            start_new_session=True,  # Ctrl-C at the terminal is for the flow, which still has to report its end
            check=False,
        )
    os.close(lock)  # the server holds it now
    if started.returncode:
        raise _failed(home, "the Prefect server could not be started")
    _write_json(home / "server.json", {"url": url, "pid": int(started.stdout)})
    return url


def _server_environment(home: Path, url: str) -> dict[str, str]:
    ours = {
        "PREFECT_HOME": str(home),
        "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{home / 'prefect.db'}",
        "PREFECT_UI_API_URL": url,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
        "PREFECT_API_BLOCKS_REGISTER_ON_START": "false",  # 1.3 cpu-s for a catalogue that the pipeline does not use
        "PREFECT_MEMOIZE_BLOCK_AUTO_REGISTRATION": "false",
        "DO_NOT_TRACK": "1",
    }
    for service in ("SCHEDULER", "LATE_RUNS", "FOREMAN", "PAUSE_EXPIRATIONS", "TRIGGERS"):
        ours[f"PREFECT_SERVER_SERVICES_{service}_ENABLED"] = "false"  # deployments and automations need a server that stays
    return {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")} | ours


def _write_json(path: Path, value: dict[str, str | int]) -> None:
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(value), encoding="utf-8")
    temporary.replace(path)


def _failed(home: Path, what: str) -> UnreachableError:
    log = home / "server.log"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:] if log.exists() else []
    return UnreachableError(
        what, why="\n        ".join(["the end of its log:", *lines]) if lines else "", mend=f"read {log}; `headrace doctor` checks this machine"
    )


def _detach() -> None:
    """Goes on in a child that is nobody's child, and tells the starter its pid: so it is never a zombie of a user that goes on."""
    child = os.fork()
    if child:
        print(child, flush=True)
        os._exit(0)
    os.dup2(2, 1)  # the log; the starter waits for the end of its pipe


if __name__ == "__main__":
    _detach()
    from flows.prefect_server_process import main

    main()
