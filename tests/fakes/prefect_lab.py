"""A Prefect server of a test's own, with its scheduler, and the environment and calls of its clients."""

import base64
import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from flows.prefect_server_process import template_path
from tests.fakes.server_process import serving
from tests.fakes.tiny_pipeline import ROOT

ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


@dataclass(frozen=True)
class PrefectLab:
    """The server."""

    url: str
    env: dict[str, str]
    """What its clients need."""

    def prefect(self, *arguments: str) -> str:
        """Runs Prefect's own command line."""
        done = subprocess.run((sys.executable, "-m", "prefect", *arguments), env=self.env, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def post(self, path: str, body: Any) -> Any:
        """Calls the REST API."""
        return self._call(path, json.dumps(body).encode())

    def get(self, path: str) -> Any:
        """Reads from the REST API."""
        return self._call(path, None)

    def flow_runs(self, **wanted: Any) -> list[dict[str, Any]]:
        """Returns the flow runs that a filter of the REST API lets pass, oldest first."""
        found: list[dict[str, Any]] = self.post("flow_runs/filter", {"flow_runs": wanted, "sort": "EXPECTED_START_TIME_ASC"})
        return found

    def wait_for(self, flow_run_id: str, *states: str, told: Callable[[], str] = str, timeout_s: float = 180.0) -> dict[str, Any]:
        """Returns the flow run once it is in one of `states`; by default: once it has ended."""
        wanted = states or ENDED

        def found() -> dict[str, Any] | None:
            flow_run: dict[str, Any] = self.get(f"flow_runs/{flow_run_id}")
            return flow_run if flow_run["state_type"] in wanted else None

        def what() -> str:
            return f"{self.get(f'flow_runs/{flow_run_id}')['state']}\n{told()}"

        flow_run: dict[str, Any] = wait_until(found, what=what, timeout_s=timeout_s)
        return flow_run

    def _call(self, path: str, body: bytes | None) -> Any:
        headers = {"Content-Type": "application/json"}
        if secret := self.env.get("PREFECT_API_AUTH_STRING"):
            headers["Authorization"] = f"Basic {base64.b64encode(secret.encode()).decode()}"
        request = urllib.request.Request(f"{self.url}/{path}", body, headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)


@contextlib.contextmanager
def prefect_serving(home: Path, *, env: Mapping[str, str] | None = None, port: int | None = None) -> Iterator[PrefectLab]:
    """Runs the server as long as the body.

    Args:
        home: its folder; one with a database goes on with it.
        env: more of its clients' environment.
        port: the one it has to have; by default one that is free.
    """
    template = template_path()
    ready = template is not None and template.exists()  # a server of the project's has made it, where it may
    if template is not None and ready and not (home / "prefect.db").exists():
        shutil.copy(template, home / "prefect.db")
    clients = {**os.environ, "PREFECT_HOME": str(home), "PYTHONPATH": str(ROOT), "PWD": str(ROOT), **(env or {})}
    settings = {"PREFECT_API_DATABASE_MIGRATE_ON_START": str(not ready).lower(), "PREFECT_API_BLOCKS_REGISTER_ON_START": "false"}

    def argv(port: int) -> list[str]:
        return [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port), "--no-ui"]

    with serving(argv, health="/api/health", log=home / "server.log", env=clients | settings, port=port) as own:
        url = f"http://127.0.0.1:{own}/api"
        yield PrefectLab(url=url, env=clients | {"PREFECT_API_URL": url})


def processes_of(flow_run_id: str) -> list[psutil.Process]:
    """The processes of the flow itself, in whichever node's process table."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("PREFECT__FLOW_RUN_ID") == flow_run_id:
                found.append(process)
    return found


def wait_until(condition: Callable[[], Any], *, what: Callable[[], Any], timeout_s: float = 180.0) -> Any:
    """Returns what `condition` returns once that is true; fails with `what` when it takes too long."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError(what())
