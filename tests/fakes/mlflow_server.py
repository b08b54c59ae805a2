"""A real MLflow server over HTTP with a SQLite database, in a process of its own."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

_STARTUP_S = 90.0
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # saves eight processes that serve nothing here
}


class MlflowServer:
    """Starts and stops one server; its database and artifacts outlive a stop, its port stays."""

    def __init__(self, folder: Path) -> None:
        """Args: folder: for its database, artifacts and log."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts the server and waits until it answers."""
        argv = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        argv += ["--backend-store-uri", f"sqlite:///{self._folder / 'server.db'}", "--artifacts-destination", str(self._folder / "server-artifacts")]
        log = (self._folder / "server.log").open("ab")
        self._process = subprocess.Popen(argv, stdout=log, stderr=log, start_new_session=True, env=os.environ | _ENVIRONMENT)
        log.close()
        deadline = time.monotonic() + _STARTUP_S
        while not self._answers():
            up = self._process.poll() is None
            assert up, (self._folder / "server.log").read_text()[-3000:]
            assert time.monotonic() < deadline, (self._folder / "server.log").read_text()[-3000:]
            time.sleep(0.1)

    def stop(self) -> None:
        """Kills the server and everything it started."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False
