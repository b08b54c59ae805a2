"""A real PostgreSQL of a test's own: an unprivileged process on loopback and on a socket, with the databases of the services."""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.fakes.server_process import free_port
from tests.fakes.tiny_pipeline import ROOT

DATABASES = ("headrace_prefect", "headrace_mlflow")
SERVICES = ROOT / "infra" / "services"
_TIMEOUT_S = 60.0
_SETTINGS = {"fsync": "off", "max_connections": "60", "shared_buffers": "32MB", "log_min_messages": "warning"}
"""Without fsync, since tests kill processes and never the machine."""


def postgres_programs() -> Path | None:
    """Returns the folder of PostgreSQL's programs, the newest; Debian keeps them off the path."""
    on_path = shutil.which("initdb")
    places = [Path(on_path).resolve().parent] if on_path else sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((place for place in places if (place / "initdb").exists()), None)


@dataclass
class PostgresServer:
    """A server; between `stop` and `start` its folder alone."""

    folder: Path
    bin: Path
    """PostgreSQL's programs."""
    port: int
    user: str | None
    """The account it runs as; None: the one of this process."""
    passwords: Mapping[str, str] = field(default_factory=dict)
    """Role → password, which loopback asks for; the socket asks for none."""
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def env(self) -> dict[str, str]:
        """What its own programs and our scripts need to reach it by its socket, as the superuser."""
        return {
            **os.environ,
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "PGHOST": str(self.folder),
            "PGPORT": str(self.port),
            "PGUSER": "postgres",
        }

    @property
    def passfile(self) -> Path:
        """The file of passwords, which clients are pointed to by `PGPASSFILE`."""
        return self.folder / "pgpass"

    def socket_url(self, driver: str, database: str) -> str:
        """A URL of SQLAlchemy's, by the socket."""
        return f"postgresql+{driver}://{database}@:{self.port}/{database}?host={self.folder}"

    def loopback_url(self, driver: str, database: str) -> str:
        """The same by loopback, where a password is asked for; the URL has none."""
        return f"postgresql+{driver}://{database}@127.0.0.1:{self.port}/{database}"

    def sql(self, statement: str, *, database: str = "postgres") -> str:
        """Returns what a statement answers, without any decoration."""
        return self.run("psql", "-XqtA", "--set=ON_ERROR_STOP=1", f"--dbname={database}", f"--command={statement}").strip()

    def run(self, program: str, *arguments: str) -> str:
        """Runs one of PostgreSQL's programs, or a script of ours, that must succeed."""
        done = self.call(program, *arguments)
        assert done.returncode == 0, f"{program}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def call(self, program: str, *arguments: str, **env: str) -> "subprocess.CompletedProcess[str]":
        """The same, whatever comes of it."""
        return subprocess.run((program, *arguments), env=self.env | env, capture_output=True, text=True, timeout=_TIMEOUT_S)

    def start(self) -> None:
        """Starts it, and returns when it answers."""
        options = [f"--{name.replace('_', '-')}={value}" for name, value in _SETTINGS.items()]
        argv = (
            str(self.bin / "postgres"),
            "-D",
            str(self.folder / "data"),
            "-k",
            str(self.folder),
            "-h",
            "127.0.0.1",
            "-p",
            str(self.port),
            *options,
        )
        with (self.folder / "postgres.log").open("ab") as log:
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **_as(self.user))  # type: ignore[call-overload]
        deadline = time.monotonic() + _TIMEOUT_S
        while self.call("pg_isready", "--quiet").returncode:
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.05)

    def stop_at_once(self) -> None:
        """Immediate shutdown: as if its machine had lost power, every connection is cut and nothing is written any more."""
        assert self.process is not None
        self.process.send_signal(signal.SIGQUIT)
        self.process.wait(timeout=_TIMEOUT_S)

    def log(self) -> str:
        """The end of what it wrote."""
        return (self.folder / "postgres.log").read_text(errors="replace")[-3000:]


@contextlib.contextmanager
def postgres_serving(passwords: Mapping[str, str]) -> Iterator[PostgresServer]:
    """Runs a server, with the services' roles and databases, as long as the body.

    Args:
        passwords: role → password.
    """
    found = postgres_programs()
    assert found is not None, "tests that are marked `services` alone may ask for one"
    folder = Path(tempfile.mkdtemp(prefix="hr-pg-", dir="/tmp"))  # short: a socket lies in it; and not in a folder that only root may enter
    server = PostgresServer(folder, found, free_port(), user=_account(), passwords=passwords)
    try:
        if server.user is not None:
            shutil.chown(folder, server.user)
        _initialise(server)
        server.start()
        server.run("psql", "-Xq", f"--file={SERVICES / 'postgresql' / 'databases.sql'}", "--dbname=postgres")
        _set_passwords(server)
        yield server
    finally:
        if server.process is not None and server.process.poll() is None:
            server.stop_at_once()
        shutil.rmtree(folder)


def _initialise(server: PostgresServer) -> None:
    """A data folder: whoever comes by the socket is trusted, whoever comes by loopback needs a password."""
    argv = (str(server.bin / "initdb"), "-D", str(server.folder / "data"), "--username=postgres", "--auth-local=trust", "--auth-host=scram-sha-256")
    more = ("--encoding=UTF8", "--no-locale", "--no-sync")
    done = subprocess.run((*argv, *more), capture_output=True, text=True, timeout=_TIMEOUT_S, **_as(server.user))  # type: ignore[call-overload]
    assert done.returncode == 0, done.stdout + done.stderr


def _set_passwords(server: PostgresServer) -> None:
    for role, password in server.passwords.items():
        server.sql(f"ALTER ROLE {role} PASSWORD '{password}'")
    lines = [f"127.0.0.1:{server.port}:{role}:{role}:{password}\n" for role, password in server.passwords.items()]
    descriptor = os.open(server.passfile, os.O_WRONLY | os.O_CREAT, 0o600)
    with open(descriptor, "w") as file:
        file.writelines(lines)


def _account() -> str | None:
    """PostgreSQL refuses to run as root: then its package's own account, or nobody's."""
    if os.geteuid() != 0:
        return None
    return next(name for name in ("postgres", "nobody") if name in {entry.pw_name for entry in pwd.getpwall()})


def _as(user: str | None) -> dict[str, object]:
    """How `subprocess` is told to run something as another account, in a place that it may enter."""
    return {"cwd": "/"} if user is None else {"cwd": "/", "user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}
