"""Kills of everything, at the whole pipeline: what must happen, and that nothing is left behind."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.fakes.tiny_pipeline import Project, make_project

pytestmark = pytest.mark.slow

CHANGES = {"training.steps": 300, "checkpoint.every_steps": 5, "tracking.validate_every_steps": 300}
"""Long enough that a heartbeat a second sees every training under way, also on a fast machine."""


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The undisturbed training that all others are compared with."""
    project = make_project(tmp_path_factory.mktemp("calm") / "project", changes=CHANGES)
    done = project.headrace("run", "tiny.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    return project


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    made = make_project(tmp_path / "project", changes=CHANGES)
    yield made
    for process in made.started:  # a test that failed midway leaves its command running
        process.kill()
        process.wait()
    assert processes_of(made) == [], "nothing may be left behind"


def processes_of(project: Project) -> list[str]:
    """Command lines of live processes that work for the project; its Prefect server ends a little after its last user."""
    deadline = time.monotonic() + 30
    while True:
        found = []
        for process in psutil.process_iter(["pid", "cmdline", "status"]):
            line = " ".join(process.info["cmdline"] or [])
            if str(project.folder) in line and process.info["status"] != psutil.STATUS_ZOMBIE and process.pid != os.getpid():
                found.append(line)
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.2)


def wait_for(what: Callable[[], Any], *, timeout_s: float = 120.0) -> Any:
    """Returns the first truthy answer of `what`."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := what():
            return found
        time.sleep(0.05)
    raise AssertionError("it did not happen in time")


def ranks(project: Project) -> list[dict[str, Any]]:
    """The ranks' own progress, newest heartbeat."""
    beats = sorted((project.root / "train").glob("*/attempts/*/heartbeats/*.json"))
    try:
        found: list[dict[str, Any]] = json.loads(beats[-1].read_text())["ranks"] if beats else []
    except FileNotFoundError:  # the agent removes old heartbeats
        return []
    return found


def at_step(project: Project, step: int) -> list[dict[str, Any]]:
    found = ranks(project)
    return found if len(found) == 2 and all(rank["step"] >= step and rank["phase"] == "stepping" for rank in found) else []


def weights(project: Project) -> str:
    content: str = json.loads((project.artifact("train") / "record.json").read_text())["content_hash"]
    return content


def test_a_killed_rank_costs_nothing_but_time(project: Project, calm: Project) -> None:
    process = project.start("run", "tiny.yaml")
    victim = wait_for(lambda: at_step(project, 8))[1]
    os.kill(victim["pid"], signal.SIGKILL)
    assert process.wait(timeout=240) == 0, (project.folder / "output.log").read_text()
    assert weights(project) == weights(calm)
    (incident,) = project.answer("status", project.run_ids()[0])["incidents"]
    assert (incident["cause"], incident["rank"], incident["decision"], incident["exit_status"]) == ("killed", 1, "restart", -9)
    assert incident["recovered_after_s"] > 0


def test_a_killed_flow_is_adopted_and_its_job_goes_on(project: Project, calm: Project) -> None:
    process = project.start("run", "tiny.yaml")
    wait_for(lambda: at_step(project, 5))
    process.kill()
    process.wait()
    (run,) = project.run_ids()
    done = project.headrace("resume", run)
    assert done.returncode == 0, done.stdout + done.stderr
    assert project.run_ids() == [run]
    assert len(list((project.root / "train").glob("*/attempts/*/spec.json"))) == 1, "no second job"
    assert len(list((project.root / "train").glob("*/epochs/*.json"))) == 1, "the ranks were never disturbed"
    assert weights(project) == weights(calm)


@pytest.mark.exhaustive
def test_everything_killed_goes_on_from_the_newest_commit(project: Project, calm: Project) -> None:
    process = project.start("run", "tiny.yaml")
    victims = wait_for(lambda: at_step(project, 12))
    process.kill()
    process.wait()
    for found in psutil.process_iter(["cmdline"]):
        if "cluster.agent.agent" in (found.info["cmdline"] or []) and str(project.folder) in " ".join(found.info["cmdline"]):
            found.kill()
    wait_for(lambda: not any(psutil.pid_exists(victim["pid"]) for victim in victims), timeout_s=30)
    (run,) = project.run_ids()
    done = project.headrace("resume", run)
    assert done.returncode == 0, done.stdout + done.stderr
    first = json.loads(sorted((project.root / "train").glob("*/epochs/*.json"))[1].read_text())
    assert first["epoch"] == 1
    assert weights(project) == weights(calm)


@pytest.mark.exhaustive
def test_a_damaged_commit_is_passed_over_for_the_one_before(project: Project, calm: Project) -> None:
    process = project.start("run", "tiny.yaml")
    victims = wait_for(lambda: at_step(project, 17))
    for victim in victims:
        os.kill(victim["pid"], signal.SIGSTOP)  # hold the ranks still while the newest checkpoint is damaged
    commit = json.loads(sorted((project.root / "train").glob("*/commits/*.json"))[-1].read_text())
    (newest,) = (project.root / "train").glob(f"*/{commit['folder']}/rank-0000.bin")
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(bytes(data))
    for victim in victims:
        os.kill(victim["pid"], signal.SIGKILL)
    assert process.wait(timeout=240) == 0, (project.folder / "output.log").read_text()
    assert weights(project) == weights(calm)
    logs = project.headrace("logs", project.run_ids()[0], "--stage", "train", "--rank", "0")
    assert newest.parent.name.partition(".")[0] in logs.stdout, "the log says which commit was passed over"


def test_cancel_stops_gracefully_and_resume_goes_on(project: Project, calm: Project) -> None:
    process = project.start("run", "tiny.yaml")
    wait_for(lambda: at_step(project, 6))
    (run,) = project.run_ids()
    cancelled = project.headrace("cancel", run)
    assert cancelled.returncode == 0, cancelled.stdout + cancelled.stderr
    assert process.wait(timeout=120) == 75
    assert project.answer("status", run)["state"] == "interrupted"
    done = project.headrace("resume", run)
    assert done.returncode == 0, done.stdout + done.stderr
    assert weights(project) == weights(calm)


@pytest.mark.exhaustive
def test_two_runs_of_one_recipe_never_write_one_artifact_together(project: Project) -> None:
    long = ("--set", "training.steps=3000")
    first = project.start("run", "tiny.yaml", *long)
    wait_for(lambda: at_step(project, 3))
    second = project.headrace("run", "tiny.yaml", *long)
    assert second.returncode == 8, second.stdout + second.stderr
    assert "is being worked on by" in second.stderr
    assert project.headrace("cancel", project.run_ids()[0]).returncode == 0
    assert first.wait(timeout=120) == 75
