"""The whole pipeline on a real Slurm cluster, as a user runs it: where each stage's job runs, a killed `headrace run`, a cancelled run."""

import contextlib
import ipaddress
import re
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.launchers.protocol import AGENT_MODULE
from schemas.stage import Stage, stages_of
from tests.fakes.tiny_pipeline import TEXT_STAGES, Project, make_project

pytestmark = [pytest.mark.slow, pytest.mark.slurm]

ON_SLURM: Mapping[str, Any] = {
    "training.steps": 300,
    "checkpoint.every_steps": 10,
    "tracking.validate_every_steps": 150,
    "cluster.kind": "slurm",
    "cluster.queue": "cpu",
    "cluster.ranks_per_node": 1,
    "cluster.max_parallel_items": 2,
    "cluster.stages": {"train": {"queue": "gpu", "nodes": 2, "gpus_per_node": 1}},
}
"""Text on a partition without GPUs; training on two nodes, long enough to be disturbed in the middle."""


@dataclass(frozen=True)
class Finished:
    """A pipeline that was finished by another process than the one that began it."""

    project: Project
    run_id: str
    state_after_kill: str
    """What `headrace status` said when the first process was gone."""
    listeners: frozenset[str]
    """Addresses at which agents and ranks listened in mid-training."""


@pytest.fixture(scope="module")
def on_slurm(slurm_cluster: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    project = make_project(tmp_path_factory.mktemp("slurm") / "project", changes=ON_SLURM)
    process = project.start("run", "tiny.yaml")
    wait_for(lambda: commits(project), process)
    listeners = frozenset(addresses_of(project))
    process.kill()
    process.wait()
    (run_id,) = project.run_ids()
    state = project.answer("status", run_id)["state"]
    done = project.headrace("resume", "last")
    assert done.returncode == 0, done.stdout + done.stderr
    yield Finished(project, run_id, state_after_kill=state, listeners=listeners)
    project.end()
    assert project.left_behind() == []


def wait_for(what: Callable[[], Any], process: "subprocess.Popen[bytes]", *, timeout_s: float = 120.0) -> None:
    """Waits while a command works on it."""
    deadline = time.monotonic() + timeout_s
    while not what():
        assert process.poll() is None, "the command has ended"
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def addresses_of(project: Project) -> Iterator[str]:
    """Yields where the agents of a project and what they started listen; `srun` and Slurm's daemons are the site's."""
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if AGENT_MODULE in line and str(project.root) in line:
            for member in (process, *process.children(recursive=True)):
                with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
                    yield from [end.laddr.ip for end in member.net_connections(kind="inet") if end.status == psutil.CONN_LISTEN]


def commits(project: Project) -> list[Path]:
    return list(project.root.glob("train/*/commits/step-*.json"))


def records(run_id: str) -> list[dict[str, str]]:
    """What the scheduler has recorded of a run's jobs, in order."""
    told = subprocess.run(("scontrol", "--oneliner", "show", "job"), capture_output=True, text=True, check=True, timeout=30).stdout
    jobs = [dict(re.findall(r"(\w+)=(\S*)", line)) for line in told.splitlines()]
    return sorted((job for job in jobs if job.get("JobName", "").startswith(run_id)), key=lambda job: int(job["JobId"]))


def stage_of(job: Mapping[str, str]) -> str:
    return job["JobName"].split("-")[-2]


def test_every_stage_is_made_by_jobs_of_its_own_kind(on_slurm: Finished) -> None:
    wait_for_the_queue(on_slurm.run_id)  # an agent has told its end before Slurm sees it
    jobs = records(on_slurm.run_id)
    assert list(dict.fromkeys(stage_of(job) for job in jobs)) == [stage.value for stage in stages_of(prepared=False) if stage is not Stage.REGISTER]
    assert {job["JobState"] for job in jobs} == {"COMPLETED"}
    text = [job for job in jobs if stage_of(job) != "train"]
    assert {(job["Partition"], job["NumNodes"]) for job in text} == {("cpu", "1")}
    assert not any("gpu" in job.get(field, "") for job in text for field in ("TresPerNode", "TRES"))
    (training,) = (job for job in jobs if stage_of(job) == "train")
    assert (training["Partition"], training["NumNodes"], training["TresPerNode"]) == ("gpu", "2", "gres:gpu:1")


def test_a_killed_control_process_loses_and_doubles_nothing(on_slurm: Finished) -> None:
    assert on_slurm.state_after_kill == "detached"
    assert len([job for job in records(on_slurm.run_id) if stage_of(job) == "train"]) == 1
    with sqlite3.connect(on_slurm.project.folder / ".headrace/state/mlflow.db") as database:
        assert database.execute("SELECT status FROM runs").fetchall() == [("FINISHED",)]


def test_ranks_of_two_nodes_meet_on_no_outside_address(on_slurm: Finished) -> None:
    assert len({address for address in on_slurm.listeners if not address.startswith("127.0.")}) == 2, "both nodes' own addresses"
    assert [address for address in on_slurm.listeners if not ipaddress.ip_address(address).is_loopback] == []


def test_status_logs_and_verify_work_as_on_one_machine(on_slurm: Finished) -> None:
    project = on_slurm.project
    view = project.answer("status", "last")
    assert view["state"] == "finished"
    states = ["found"] * len(TEXT_STAGES) + ["made"] * (len(stages_of(prepared=False)) - len(TEXT_STAGES))  # found: by the second process
    assert [(stage["stage"], stage["state"]) for stage in view["stages"]] == list(zip(stages_of(prepared=False), states, strict=True))
    assert view["incidents"] == []
    training = next(stage for stage in view["stages"] if stage["stage"] == "train")
    assert len({beat["host"] for beat in training["job"]["heartbeats"]}) == 2
    logs = project.here("logs", on_slurm.run_id, "--stage", "train", "--rank", "1")
    assert logs.code == 0, logs.err
    assert "rank 1" in logs.out
    verified = project.headrace("verify", "tiny")
    assert verified.returncode == 0, verified.stdout + verified.stderr


def test_a_cancelled_run_leaves_nothing_in_the_queue(on_slurm: Finished, tmp_path: Path) -> None:
    project = make_project(tmp_path / "project", changes={**ON_SLURM, "training.seed": 7})
    project.take(on_slurm.project, *TEXT_STAGES)
    try:
        process = project.start("run", "tiny.yaml")
        wait_for(lambda: commits(project), process)
        (run_id,) = project.run_ids()
        cancelled = project.here("cancel", "last")
        assert cancelled.code == 0, cancelled.out + cancelled.err
        assert process.wait(timeout=180) == 75, (project.folder / "output.log").read_text()
    finally:
        project.end()
    assert project.answer("status", "last")["state"] == "interrupted"
    assert project.left_behind() == []
    wait_for_the_queue(run_id)
    (job,) = records(run_id)
    assert job["JobState"] in ("COMPLETED", "FAILED"), "it ended by itself, at the signal"


def wait_for_the_queue(run_id: str) -> None:
    """Waits until Slurm, too, knows that the run's jobs are over."""
    deadline = time.monotonic() + 120
    argv = ("squeue", "--noheader", "--format=%j")
    while run_id in subprocess.run(argv, capture_output=True, text=True, check=True, timeout=30).stdout:
        assert time.monotonic() < deadline, "jobs are left in the queue"
        time.sleep(0.2)
