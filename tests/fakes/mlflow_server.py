"""A real MLflow server over HTTP with a SQLite database, in a process of its own."""

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.fakes.server_process import serving

_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # saves eight processes that serve nothing here
}


@dataclass(frozen=True)
class MlflowServer:
    """A server that answers."""

    folder: Path
    """With its database, artifacts and log."""
    uri: str


@contextlib.contextmanager
def mlflow_serving(folder: Path, *, port: int | None = None) -> Iterator[MlflowServer]:
    """Runs a server as long as the body. `port`: the one it has to have; by default one that is free."""

    def argv(port: int) -> list[str]:
        listening = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
        return [*listening, "--backend-store-uri", f"sqlite:///{folder / 'server.db'}", "--artifacts-destination", str(folder / "server-artifacts")]

    with serving(argv, health="/health", log=folder / "server.log", env=os.environ | _ENVIRONMENT, port=port) as own:
        yield MlflowServer(folder, f"http://127.0.0.1:{own}")
