"""The services as their units start them: command lines and settings of `infra/services`, with ports, folders and databases of a test's own."""

import configparser
import contextlib
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.fakes.mlflow_server import MlflowServer
from tests.fakes.postgres_server import DATABASES, SERVICES, PostgresServer
from tests.fakes.prefect_lab import PrefectLab
from tests.fakes.server_process import serving
from tests.fakes.tiny_pipeline import ROOT

PREFECT, MLFLOW = DATABASES
CHECKOUT = "/opt/headrace"
"""Where units in the repository say that the checkout is."""


class _LikeSystemd(configparser.RawConfigParser):
    """Keys keep their case; one that is there twice has both values, one a line."""

    def optionxform(self, optionstr: str) -> str:
        return optionstr

    def read_unit(self, path: Path) -> "_LikeSystemd":
        sections: dict[str, dict[str, str]] = {}
        section = ""
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("["):
                section = line.strip("[]")
                sections.setdefault(section, {})
            elif line and not line.startswith("#"):
                key, _, value = line.partition("=")
                before = sections[section].get(key)
                sections[section][key] = value if before is None else f"{before}\n{value}"
        self.read_dict(sections)
        return self


@dataclass(frozen=True)
class Unit:
    """A unit file."""

    path: Path
    sections: Mapping[str, Mapping[str, str]]

    @property
    def command(self) -> list[str]:
        """What it starts."""
        return shlex.split(self.sections["Service"]["ExecStart"])

    @property
    def settings(self) -> list[str]:
        """The names of its files of settings."""
        return [Path(line).name for line in self.sections["Service"].get("EnvironmentFile", "").splitlines()]

    def environment(self, folder: Path) -> dict[str, str]:
        """What it sets, and what stands in its files of settings, which lie in `folder`."""
        lines = self.sections["Service"].get("Environment", "").splitlines()
        found = dict(shlex.split(line)[0].split("=", 1) for line in lines)
        for name in self.settings:
            found |= read_settings(folder / name)
        return found

    def argv(self) -> list[str]:
        """What it starts, with this environment's programs in place of the checkout's."""
        program, *arguments = self.command
        return [program.replace(f"{CHECKOUT}/.venv/bin", str(Path(sys.executable).parent)), *arguments]


def unit(name: str) -> Unit:
    """Reads a unit of the repository."""
    path = SERVICES / "systemd" / name
    parser = _LikeSystemd(strict=False, delimiters=("=",)).read_unit(path)
    return Unit(path, {section: dict(parser[section]) for section in parser.sections()})


def read_settings(path: Path) -> dict[str, str]:
    """A file of settings as systemd reads it: a line each, and comments."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def install(folder: Path) -> Path:
    """Runs `install.sh` into `folder`; returns its folder of settings, secrets in it."""
    env = {**os.environ, "DESTDIR": str(folder)}
    done = subprocess.run((str(SERVICES / "install.sh"),), env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "etc" / "headrace"


@contextlib.contextmanager
def prefect_on(database: PostgresServer, folder: Path, *, settings: Path, env: Mapping[str, str] | None = None) -> Iterator[PrefectLab]:
    """Runs `headrace-prefect.service` as long as the body, on `database` by loopback with a password.

    Args:
        folder: its state.
        settings: the installed settings.
        env: more of its clients' environment.
    """
    service = unit("headrace-prefect.service")
    own = {
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_API_DATABASE_CONNECTION_URL": database.loopback_url("asyncpg", PREFECT),
        "PGPASSFILE": str(database.passfile),
    }
    given = _bare(folder) | service.environment(settings) | own
    with serving(
        lambda _: service.argv(), health="/api/health", log=folder / "prefect.log", env=given, port_setting="PREFECT_SERVER_API_PORT"
    ) as port:
        clients = {**os.environ, "PREFECT_HOME": str(folder / "client"), "PYTHONPATH": str(ROOT), "PWD": str(ROOT)}
        clients |= unit("headrace-worker@.service").environment(settings) | {"PREFECT_API_URL": f"http://127.0.0.1:{port}/api"}
        clients["PREFECT_HOME"] = str(folder / "client")
        yield PrefectLab(url=clients["PREFECT_API_URL"], env=clients | dict(env or {}))


@contextlib.contextmanager
def mlflow_on(database: PostgresServer, folder: Path, *, settings: Path, port: int | None = None) -> Iterator[MlflowServer]:
    """Runs `headrace-mlflow.service` as long as the body, on `database` by its socket.

    Args:
        folder: its state.
        settings: the installed settings.
        port: the one that it had before; by default one that is free.
    """
    service = unit("headrace-mlflow.service")
    own = {
        "MLFLOW_BACKEND_STORE_URI": database.socket_url("psycopg", MLFLOW),
        "MLFLOW_ARTIFACTS_DESTINATION": str(folder / "artifacts"),
        "MLFLOW_WORKERS": "1",
    }
    given = _bare(folder) | service.environment(settings) | own
    with serving(lambda _: service.argv(), health="/health", log=folder / "mlflow.log", env=given, port_setting="MLFLOW_PORT", port=port) as at:
        yield MlflowServer(folder, f"http://127.0.0.1:{at}")


def _bare(folder: Path) -> dict[str, str]:
    """The little that systemd gives to every service."""
    return {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "HOME": str(folder)}
