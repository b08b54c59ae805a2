"""The pipeline as a Prefect deployment: deployed, picked up by a real worker in a folder of its own, and completed."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.prefect_lab import PrefectLab, prefect_serving, wait_until
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
    assert json.loads(deployed.stdout)["pools"] == ["headrace-kubernetes", POOL, "headrace-slurm"]
    lab.prefect("--no-prompt", "deploy", "--all")  # the pools exist now: Prefect's own command does the same
    deployments = {made["name"]: made for made in lab.post("deployments/filter", {})}
    crons = {name: [schedule["schedule"]["cron"] for schedule in made["schedules"]] for name, made in deployments.items()}
    assert crons == {"demo": ["0 3 * * *"], "demo-slurm": ["0 4 * * *"], "demo-kubernetes": ["0 5 * * *"]}
    assert [made["concurrency_limit"] or made["global_concurrency_limit"] for made in deployments.values()] == [None] * 3, (
        "it ends what cannot renew it"
    )

    parameters = {"recipe": str(project.recipe), "on_change": "retrain"}
    run = lab.post(f"deployments/{deployments['demo']['id']}/create_flow_run", {"parameters": parameters})
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


def test_a_scheduled_run_completes_when_nothing_changed_and_else_asks(lab: PrefectLab, finished: Project, tmp_path: Path) -> None:
    """As the shipped deployments call the flow. What Prefect's automations wait for is an event of its own making."""
    call = (
        "import sys; from flows.pretrain import pretrain\n"
        "pretrain(recipe=sys.argv[1], on_change='propose')\n"
        "pretrain(recipe=sys.argv[1], on_change='propose', overrides=('training.seed=99',))\n"
        "pretrain(recipe=sys.argv[1], on_change='retrain', overrides=('training.seed=99', 'budget.gpu_hours=1e-9'))"
    )
    runs = finished.run_ids()
    argv = (sys.executable, "-c", call, str(finished.recipe))
    done = subprocess.run(argv, env=finished.environment(lab.env), cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    unchanged, asked, exceeded = (run for run in lab.flow_runs() if run["deployment_id"] is None)  # schedules of deployments have theirs
    assert {run["state_type"] for run in (unchanged, asked, exceeded)} == {"COMPLETED"}
    assert unchanged["state"]["message"].startswith("nothing to do: models:/tiny@champion, version 1")
    accept = f"headrace run {finished.recipe} --set training.seed=99"
    assert (asked["state_name"], asked["state"]["message"]) == ("Proposed", f"proposed: something has changed; accept: {accept}")
    assert exceeded["state_name"] == "Proposed"
    assert " device-hours, and budget.gpu_hours allows 1e-09; accept: " in exceeded["state"]["message"]
    assert finished.run_ids() == runs, "nothing was run"

    plans = lab.post("artifacts/filter", {"artifacts": {"key": {"any_": ["plan"]}, "flow_run_id": {"any_": [asked["id"]]}}})
    assert "training.seed: 1234 -> 99" in plans[0]["data"]
    assert accept in plans[0]["data"]

    def events() -> list[str]:
        wanted = {"filter": {"event": {"name": ["prefect.flow-run.Proposed"]}}}
        return [event["resource"]["prefect.resource.id"] for event in lab.post("events/filter", wanted)["events"]]

    wait_until(lambda: {f"prefect.flow-run.{run['id']}" for run in (asked, exceeded)} <= set(events()), what=events, timeout_s=60.0)
