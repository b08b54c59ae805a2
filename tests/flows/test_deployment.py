"""The pipeline as a Prefect deployment: deployed, picked up by a real worker in a folder of its own, and completed."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.prefect_lab import PrefectLab, prefect_serving
from tests.fakes.tiny_pipeline import TEXT_STAGES, Project, make_project

pytestmark = pytest.mark.slow

POOL = "headrace-process"


@pytest.fixture(scope="module")
def lab(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectLab]:
    with prefect_serving(tmp_path_factory.mktemp("prefect")) as server:
        yield server


def test_a_deployed_flow_completes_in_a_worker_elsewhere(lab: PrefectLab, finished: Project, tmp_path: Path) -> None:
    """The worker finds the text's stages finished, and makes the rest: it trains, too."""
    project = make_project(tmp_path / "project", changes={"training.steps": 20})
    project.take(finished, *TEXT_STAGES)
    deployed = subprocess.run(Project.argv("deploy", "--json"), env={**lab.env, "COLUMNS": "200"}, cwd=tmp_path, capture_output=True, text=True)
    assert deployed.returncode == 0, deployed.stdout + deployed.stderr
    assert json.loads(deployed.stdout)["pools"] == [POOL, "headrace-slurm"]
    lab.prefect("--no-prompt", "deploy", "--all")  # the pools exist now: Prefect's own command does the same
    deployments = {made["name"]: made for made in lab.post("deployments/filter", {})}
    crons = {name: [schedule["schedule"]["cron"] for schedule in made["schedules"]] for name, made in deployments.items()}
    assert crons == {"demo": ["0 3 * * *"], "demo-slurm": ["0 4 * * *"]}
    assert {name: made["concurrency_options"]["collision_strategy"] for name, made in deployments.items()} == dict.fromkeys(crons, "CANCEL_NEW")

    run = lab.post(f"deployments/{deployments['demo']['id']}/create_flow_run", {"parameters": {"recipe": str(project.recipe)}})
    elsewhere = tmp_path / "worker"
    elsewhere.mkdir()
    argv = (sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process", "--run-once")
    worker = subprocess.run(argv, env=lab.env, cwd=elsewhere, capture_output=True, text=True, timeout=300)
    ended = lab.wait_for(run["id"], told=lambda: worker.stdout[-3000:] + worker.stderr[-3000:])
    assert ended["state_type"] == "COMPLETED", ended["state"]["message"] + worker.stderr[-3000:]
    assert list(elsewhere.iterdir()) == [], "nothing is written in the worker's folder"
    (made,) = project.run_ids()
    assert project.answer("status", made)["state"] == "finished"
    tables = lab.post("artifacts/filter", {"artifacts": {"key": {"any_": ["stages"]}}})
    assert [row["stage"] for row in json.loads(tables[0]["data"])][-1] == "register"
