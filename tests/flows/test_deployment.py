"""The pipeline as a Prefect deployment: deployed, picked up by a real worker in a folder of its own, and completed."""

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flows.prefect_server_process import template_path
from tests.fakes.server_process import serving
from tests.fakes.tiny_pipeline import ROOT, TEXT_STAGES, Project, make_project

pytestmark = pytest.mark.slow

POOL = "headrace-process"


@dataclass(frozen=True)
class PrefectLab:
    """A Prefect server of the test's own, and the environment of its clients."""

    url: str
    env: dict[str, str]

    def prefect(self, *arguments: str) -> str:
        """Runs Prefect's own command line."""
        done = subprocess.run((sys.executable, "-m", "prefect", *arguments), env=self.env, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def post(self, path: str, body: Any) -> Any:
        """Calls the REST API."""
        request = urllib.request.Request(f"{self.url}/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.load(answer)


@pytest.fixture(scope="module")
def lab(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectLab]:
    home = tmp_path_factory.mktemp("prefect")
    template = template_path()
    ready = template is not None and template.exists()  # the finished project's server has made it, where it may
    if template is not None and ready:
        shutil.copy(template, home / "prefect.db")
    env = {**os.environ, "PREFECT_HOME": str(home), "PYTHONPATH": str(ROOT), "PWD": str(ROOT)}
    settings = {"PREFECT_API_DATABASE_MIGRATE_ON_START": str(not ready).lower(), "PREFECT_API_BLOCKS_REGISTER_ON_START": "false"}

    def argv(port: int) -> list[str]:
        return [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port), "--no-ui"]

    with serving(argv, health="/api/health", log=home / "server.log", env=env | settings) as port:
        url = f"http://127.0.0.1:{port}/api"
        yield PrefectLab(url=url, env=env | {"PREFECT_API_URL": url})


def wait_until(condition: Any, *, what: Any, timeout_s: float = 180.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError(what())


def test_a_deployed_flow_completes_in_a_worker_elsewhere(lab: PrefectLab, finished: Project, tmp_path: Path) -> None:
    """The worker finds the text's stages finished, and makes the rest: it trains, too."""
    project = make_project(tmp_path / "project", changes={"training.steps": 20})
    project.take(finished, *TEXT_STAGES)
    deployed = subprocess.run(Project.argv("deploy", "--json"), env={**lab.env, "COLUMNS": "200"}, cwd=tmp_path, capture_output=True, text=True)
    assert deployed.returncode == 0, deployed.stdout + deployed.stderr
    assert json.loads(deployed.stdout)["pools"] == [POOL]
    lab.prefect("--no-prompt", "deploy", "--all")  # the pools exist now: Prefect's own command does the same
    (deployment,) = lab.post("deployments/filter", {})
    assert [schedule["schedule"]["cron"] for schedule in deployment["schedules"]] == ["0 3 * * *"]

    run = lab.post(f"deployments/{deployment['id']}/create_flow_run", {"parameters": {"recipe": str(project.recipe)}})
    elsewhere = tmp_path / "worker"
    elsewhere.mkdir()
    argv = (sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process", "--run-once")
    worker = subprocess.run(argv, env=lab.env, cwd=elsewhere, capture_output=True, text=True, timeout=300)

    def state() -> Any:
        (found,) = lab.post("flow_runs/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}})
        return found if found["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None

    ended = wait_until(state, what=lambda: worker.stdout[-3000:] + worker.stderr[-3000:])
    assert ended["state_type"] == "COMPLETED", ended["state"]["message"] + worker.stderr[-3000:]
    assert list(elsewhere.iterdir()) == [], "nothing is written in the worker's folder"
    (made,) = project.run_ids()
    assert project.answer("status", made)["state"] == "finished"
    tables = lab.post("artifacts/filter", {"artifacts": {"key": {"any_": ["stages"]}}})
    assert [row["stage"] for row in json.loads(tables[0]["data"])][-1] == "register"
