"""Deployments on a real Slurm cluster: a real Prefect server, a real worker process, and what becomes of flow runs when any of them dies."""

import contextlib
import sqlite3
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.fakes.prefect_lab import PrefectLab, prefect_serving, processes_of, wait_until
from tests.fakes.slurm_deployment import ON_SLURM, POOL, QUICK, deploy_flow, jobs_of, said, start, working
from tests.fakes.tiny_pipeline import ROOT, make_project

pytestmark = [pytest.mark.slow, pytest.mark.slurm]


@pytest.fixture(scope="module")
def lab(slurm_cluster: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectLab]:
    with prefect_serving(tmp_path_factory.mktemp("prefect"), env=QUICK) as server:
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where flows write, and their jobs."""
    made = tmp_path / "flows"
    made.mkdir()
    return made


@pytest.fixture
def deploy(lab: PrefectLab, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Deploys the flow that sleeps, or another; returns the deployment's id."""

    def make(*, sleep_s: float = 0.0, **fields: Any) -> str:
        for name, value in lab.env.items():
            monkeypatch.setenv(name, value)
        parameters = fields.pop("parameters", {"folder": str(folder), "sleep_s": sleep_s})
        return deploy_flow(lab, folder, parameters=parameters, **fields)

    return make


def lives(folder: Path) -> list[list[str]]:
    file = folder / "lives"
    return [line.split() for line in file.read_text().splitlines()] if file.exists() else []


def test_scheduled_runs_complete_and_one_that_overlaps_is_cancelled(lab: PrefectLab, deploy: Callable[..., str], folder: Path) -> None:
    limit = {"limit": 1, "collision_strategy": "CANCEL_NEW", "grace_period_seconds": 3600}
    deployment = deploy(sleep_s=15, schedules=[{"interval": 10}], concurrency_limit=limit, tags=["nightly"])
    pool = lab.get(f"work_pools/{POOL}")
    assert pool["type"] == "slurm"
    assert pool["base_job_template"]["variables"]["properties"]["partition"]["title"] == "Partition"

    def ended() -> list[dict[str, Any]] | None:
        found = [run for run in lab.flow_runs(deployment_id={"any_": [deployment]}) if run["state_type"] in ("COMPLETED", "CANCELLED")]
        return found if {run["state_type"] for run in found} == {"COMPLETED", "CANCELLED"} else None

    with working(lab, folder):
        runs = wait_until(ended, what=said(folder))
    lab.prefect("--no-prompt", "deployment", "delete", f"sleeping/{folder.parent.name}")
    done = next(run for run in runs if run["state_type"] == "COMPLETED")
    assert done["auto_scheduled"]
    assert "nightly" in done["tags"]
    name = f"sleeping-{done['id']}"
    ((number, _, comment),) = jobs_of(done["id"])
    assert (done["infrastructure_pid"], comment) == (f"{name}:{number}", name)
    assert lives(folder)[0][1] == "-", "the flow does not know that it is in a job: what it submits inherits nothing"
    cancelled = next(run for run in runs if run["state_type"] == "CANCELLED")
    assert jobs_of(cancelled["id"]) == [], "it never became a job"


def test_a_flow_run_that_waits_in_the_queue_is_cancelled_with_its_job(lab: PrefectLab, deploy: Callable[..., str], folder: Path) -> None:
    """Nothing of it runs that could hear of the cancellation: the worker takes the job out of the queue."""
    deployment = deploy(held=True)
    with working(lab, folder):
        flow_run = start(lab, deployment)
        wait_until(lambda: [job for job in jobs_of(flow_run) if job[1] == "PENDING"], what=said(folder))
        # Before Prefect knows of the job, its worker cancels the flow run alone, and the job goes a minute later.
        wait_until(lambda: lab.get(f"flow_runs/{flow_run}")["infrastructure_pid"], what=said(folder))
        lab.post(f"flow_runs/{flow_run}/set_state", {"state": {"type": "CANCELLING"}})
        cancelled = lab.wait_for(flow_run, told=said(folder))
    assert cancelled["state_type"] == "CANCELLED"
    assert [state for _, state, _ in jobs_of(flow_run)] == ["CANCELLED"]
    assert lives(folder) == []


@pytest.mark.exhaustive
def test_a_running_flow_is_cancelled_with_its_job(lab: PrefectLab, deploy: Callable[..., str], folder: Path) -> None:
    deployment = deploy(sleep_s=600.0)
    with working(lab, folder):
        flow_run = start(lab, deployment)
        wait_until(lambda: lives(folder), what=said(folder))
        lab.post(f"flow_runs/{flow_run}/set_state", {"state": {"type": "CANCELLING"}})
        cancelled = lab.wait_for(flow_run, told=said(folder))
        wait_until(lambda: jobs_of(flow_run)[0][1] not in ("RUNNING", "COMPLETING"), what=said(folder))
    assert cancelled["state_type"] == "CANCELLED"
    assert (len(jobs_of(flow_run)), len(lives(folder))) == (1, 1)


@pytest.mark.exhaustive
def test_a_job_that_never_ran_is_submitted_again(lab: PrefectLab, deploy: Callable[..., str], folder: Path) -> None:
    """An administrator took it out of the queue, while no worker lived."""
    deployment = deploy(held=True)
    with working(lab, folder):
        flow_run = start(lab, deployment)
        wait_until(lambda: lab.get(f"flow_runs/{flow_run}")["infrastructure_pid"], what=said(folder))
    ((number, _, _),) = jobs_of(flow_run)
    slurm("scancel", number)
    with working(lab, folder):
        wait_until(lambda: len(jobs_of(flow_run)) == 2, what=said(folder))
        slurm("scontrol", "release", jobs_of(flow_run)[1][0])
        done = lab.wait_for(flow_run, told=said(folder))
    assert done["state_type"] == "COMPLETED"
    assert len(lives(folder)) == 1


@pytest.mark.exhaustive
def test_a_flow_that_was_killed_and_keeps_no_journal_has_crashed(lab: PrefectLab, deploy: Callable[..., str], folder: Path) -> None:
    """It is not known whether it may be repeated."""
    deployment = deploy(sleep_s=600.0)
    with working(lab, folder):
        flow_run = start(lab, deployment)
        wait_until(lambda: lives(folder), what=said(folder))
        kill_flow(flow_run)
        crashed = lab.wait_for(flow_run, told=said(folder))
    assert crashed["state_type"] == "CRASHED"
    assert "Its Slurm job is over" in crashed["state"]["message"]
    assert len(lives(folder)) == 1


@pytest.mark.exhaustive
def test_a_job_at_its_end_of_time_leaves_the_flow_run_to_the_next(lab: PrefectLab, deploy: Callable[..., str], folder: Path) -> None:
    """As at preemption: Slurm tells the flow's process, which reschedules its flow run; the next job waits until it has ended."""
    deployment = deploy(sleep_s=25.0)
    with working(lab, folder):
        flow_run = start(lab, deployment)
        wait_until(lambda: lives(folder), what=said(folder))
        slurm("scancel", "--batch", "--signal=TERM", jobs_of(flow_run)[0][0])
        done = lab.wait_for(flow_run, told=said(folder))
    assert done["state_type"] == "COMPLETED"
    assert len(lives(folder)) == len(jobs_of(flow_run)) == 2
    assert done["run_count"] == 2


@pytest.mark.exhaustive
def test_a_job_whose_flow_run_has_ended_is_ended(lab: PrefectLab, deploy: Callable[..., str], folder: Path) -> None:
    """Somebody set its state by hand, while no worker lived."""
    deployment = deploy(sleep_s=600.0)
    with working(lab, folder):
        flow_run = start(lab, deployment)
        wait_until(lambda: lives(folder), what=said(folder))
    lab.post(f"flow_runs/{flow_run}/set_state", {"state": {"type": "FAILED", "name": "Failed"}, "force": True})
    with working(lab, folder):
        wait_until(lambda: jobs_of(flow_run)[0][1] not in ("RUNNING", "COMPLETING"), what=said(folder))
    assert lab.get(f"flow_runs/{flow_run}")["state_type"] == "FAILED"
    assert len(jobs_of(flow_run)) == 1


@pytest.mark.exhaustive
def test_a_killed_worker_and_a_killed_flow_cost_nothing(lab: PrefectLab, deploy: Callable[..., str], folder: Path) -> None:
    """In mid-training. The training goes on; the next worker finds the flow run whose process is gone, and a new process adopts."""
    project = make_project(folder / "project", changes=ON_SLURM)
    deployment = deploy(entrypoint="flows/pretrain.py:pretrain", flow="pretrain", parameters={"recipe": str(project.recipe)})
    with working(lab, folder):
        flow_run = start(lab, deployment)
        wait_until(lambda: list(project.root.glob("train/*/commits/*.json")), what=said(folder), timeout_s=240.0)
    kill_flow(flow_run)
    wait_until(lambda: jobs_of(flow_run)[0][1] not in ("RUNNING", "COMPLETING"), what=said(folder))
    assert lab.get(f"flow_runs/{flow_run}")["state_type"] == "RUNNING", "Prefect knows of nothing"
    with working(lab, folder):
        done = lab.wait_for(flow_run, told=said(folder), timeout_s=300.0)
    assert done["state_type"] == "COMPLETED", said(folder)()
    assert len(jobs_of(flow_run)) == 2
    (run_id,) = project.run_ids()
    assert project.answer("status", run_id)["state"] == "finished"
    queue = subprocess.run(("squeue", "--noheader", "--states=all", "--format=%j"), capture_output=True, text=True, check=True).stdout.split()
    assert len([name for name in queue if name.startswith(run_id) and "-train-" in name]) == 1
    with sqlite3.connect(project.folder / ".headrace/state/mlflow.db") as database:
        assert database.execute("SELECT status FROM runs").fetchall() == [("FINISHED",)]


def test_prefect_takes_the_automations(lab: PrefectLab, folder: Path) -> None:
    file = folder / "automations.yaml"
    text = (ROOT / "infra" / "automations.yaml").read_text(encoding="utf-8")
    file.write_text(text.replace("block_document_id: NOTIFICATION_BLOCK", f"block_document_id: {uuid.uuid4()}"))
    lab.prefect("automation", "create", "--from-file", str(file))
    assert len(lab.post("automations/filter", {})) == text.count("\n  - name: ")


def kill_flow(flow_run: str) -> None:
    """Kills the processes of a flow; those that end with the first one, or by themselves as a `squeue` does, are gone already."""
    for process in processes_of(flow_run):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def slurm(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True, timeout=30)
