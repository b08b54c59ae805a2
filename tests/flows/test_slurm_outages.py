"""A deployed pipeline on a real Slurm cluster whose services are killed in mid-training, one by one and all together, and come back later.

Workers and flows that are killed by themselves are in `test_slurm_deployment.py`.
"""

import contextlib
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.fakes.mlflow_server import mlflow_serving
from tests.fakes.prefect_lab import PrefectLab, prefect_serving, processes_of, wait_until
from tests.fakes.server_process import free_port
from tests.fakes.slurm_deployment import ON_SLURM, QUICK, deploy_flow, jobs_of, said, start, working
from tests.fakes.tiny_pipeline import Project, make_project

pytestmark = [pytest.mark.slow, pytest.mark.slurm, pytest.mark.exhaustive, pytest.mark.usefixtures("slurm_cluster")]

STEPS = 300
PREFECT, MLFLOW, WORKER, FLOW = "prefect", "mlflow", "worker", "flow"


class Site:
    """Prefect's server, MLflow's, and a worker. Each can be killed, and comes back where it was."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        ports = {name: free_port() for name in (PREFECT, MLFLOW)}
        homes = {name: folder.parent / name for name in ports}
        for home in homes.values():
            home.mkdir()
        self.mlflow_uri = f"http://127.0.0.1:{ports[MLFLOW]}"
        self._open: dict[str, ExitStack] = {}
        self._stack = stack
        self._how: dict[str, Callable[[], AbstractContextManager[Any]]] = {
            PREFECT: lambda: prefect_serving(homes[PREFECT], env=QUICK, port=ports[PREFECT]),
            MLFLOW: lambda: mlflow_serving(homes[MLFLOW], port=ports[MLFLOW]),
            WORKER: lambda: working(self.lab, folder),
        }
        self.lab: PrefectLab = self.begin(PREFECT)
        self.begin(MLFLOW)

    def begin(self, name: str) -> Any:
        """Starts a service; it is up then."""
        self._open[name] = self._stack.enter_context(ExitStack())
        return self._open[name].enter_context(self._how[name]())

    def kill(self, name: str) -> None:
        """Kills it with all that it started."""
        self._open.pop(name).close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    folder = tmp_path / "flows"
    folder.mkdir()
    with ExitStack() as stack:
        yield Site(folder, stack)


@pytest.mark.parametrize("killed", [(PREFECT,), (MLFLOW,), (PREFECT, MLFLOW, WORKER, FLOW)], ids="+".join)
def test_a_run_completes_once_whatever_was_killed_in_mid_training(site: Site, killed: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in site.lab.env.items():
        monkeypatch.setenv(name, value)
    changes = {**ON_SLURM, "training.steps": STEPS, "tracking.mlflow_uri": site.mlflow_uri}
    project = make_project(site.folder / "project", changes=changes)
    recipe = {"recipe": str(project.recipe)}
    deployment = deploy_flow(site.lab, site.folder, entrypoint="flows/pretrain.py:pretrain", flow="pretrain", parameters=recipe)
    site.begin(WORKER)
    flow_run = start(site.lab, deployment)
    wait_until(lambda: newest_commit(project), what=said(site.folder), timeout_s=240.0)
    for name in killed:
        if name != FLOW:
            site.kill(name)
    if FLOW in killed:
        for process in processes_of(flow_run):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    before = newest_commit(project)
    wait_until(lambda: newest_commit(project) > before, what=said(site.folder))  # nobody upstairs is needed for that
    for name in (PREFECT, MLFLOW, WORKER):
        if name in killed:
            site.begin(name)
    done = site.lab.wait_for(flow_run, told=said(site.folder), timeout_s=300.0)
    assert done["state_type"] == "COMPLETED", said(site.folder)()
    assert len(jobs_of(flow_run)) == (2 if FLOW in killed else 1)
    (run_id,) = project.run_ids()
    assert project.answer("status", run_id)["state"] == "finished"
    assert len(training_jobs(run_id)) == 1, "one effective job"
    with contextlib.closing(sqlite3.connect(site.folder.parent / MLFLOW / "server.db")) as database:
        assert database.execute("SELECT status FROM runs").fetchall() == [("FINISHED",)]
        ((steps,),) = database.execute("SELECT count(DISTINCT step) FROM metrics WHERE key = 'loss'")
    assert steps == STEPS, "what was measured meanwhile was handed over later"


def newest_commit(project: Project) -> int:
    """The training's newest committed step; 0 before the first."""
    return max((int(path.stem.removeprefix("step-")) for path in project.root.glob("train/*/commits/step-*.json")), default=0)


def training_jobs(run_id: str) -> list[str]:
    """The run's jobs of training that Slurm ever had."""
    argv = ("squeue", "--noheader", "--states=all", "--format=%j")
    names = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=30).stdout.split()
    return [name for name in names if name.startswith(run_id) and "-train-" in name]
