"""Deployments of flows on the tests' Slurm cluster: a worker process, flow runs, and what there is of them in the queue and in process tables."""

import contextlib
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from flows.deployment import deploy_all
from tests.fakes.prefect_lab import PrefectLab

POOL = "on-slurm"
QUICK = {"PREFECT_WORKER_QUERY_SECONDS": "1", "PREFECT_WORKER_HEARTBEAT_SECONDS": "2"}
"""The worker looks for flow runs every second, and reconciles every other."""
ON_SLURM: Mapping[str, Any] = {
    "training.steps": 400,
    "checkpoint.every_steps": 10,
    "tracking.validate_every_steps": 200,
    "cluster.kind": "slurm",
    "cluster.queue": "cpu",
    "cluster.ranks_per_node": 1,
    "cluster.max_parallel_items": 2,
    "cluster.stages": {"train": {"nodes": 2}},
}
"""A pipeline whose jobs are batch jobs, with training on two nodes."""


def deploy_flow(lab: PrefectLab, folder: Path, *, held: bool = False, flow: str = "sleeping", **fields: Any) -> str:
    """Deploys a flow as `headrace deploy` would, by default the one that sleeps; returns the deployment's id. Settings are those of this process."""
    variables = {"working_dir": str(folder), "time_limit": "10m", "memory": "500M", "extra_directives": ["--hold"] if held else []}
    deployment = {
        "name": folder.parent.name,
        "entrypoint": "tests/fakes/sleeping_flow.py:sleeping",
        "work_pool": {"name": POOL, "type": "slurm", "job_variables": variables},
        **fields,
    }
    pull = [{"prefect.deployments.steps.set_working_directory": {"directory": "{{ $PWD }}"}}]
    file = folder.parent / "prefect.yaml"
    file.write_text(yaml.safe_dump({"name": "test", "pull": pull, "deployments": [deployment]}))
    assert deploy_all(pool=None, file=file)["pools"] == [POOL]
    made = lab.get(f"deployments/name/{flow}/{folder.parent.name}")
    return str(made["id"])


@contextlib.contextmanager
def working(lab: PrefectLab, folder: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Runs a worker as long as the body."""
    argv = (sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "slurm")
    with (folder.parent / "worker.log").open("ab") as log:
        process = subprocess.Popen(argv, env=lab.env, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def start(lab: PrefectLab, deployment: str) -> str:
    """Makes a flow run; returns its id."""
    made = lab.post(f"deployments/{deployment}/create_flow_run", {})
    return str(made["id"])


def jobs_of(flow_run_id: str) -> list[list[str]]:
    """Number, state, comment of the flow run's jobs, oldest first."""
    argv = ("squeue", "--noheader", "--states=all", "--sort=i", "--format=%A|%T|%k|%j")
    lines = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=30).stdout.splitlines()
    return [line.split("|")[:3] for line in lines if line.endswith(flow_run_id)]


def said(folder: Path) -> Callable[[], str]:
    """What the worker and the jobs printed."""

    def files() -> list[Path]:
        return [folder.parent / "worker.log", *sorted(folder.glob(".headrace/control/*.out"))]

    return lambda: "\n".join(file.read_text(errors="replace")[-3000:] for file in files())
