"""Kills of everything, at the whole pipeline: what must happen, and that nothing is left behind."""

import contextlib
import importlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.fakes.finished_pipeline import TRAINING
from tests.fakes.tiny_pipeline import TEXT_STAGES, Project, make_project

pytestmark = pytest.mark.slow


@pytest.fixture
def project(finished: Project, tmp_path: Path) -> Iterator[Project]:
    """A project whose text is prepared; its training, undisturbed, is the finished project's, with which all others are compared."""
    made = make_project(tmp_path / "project", changes=TRAINING)
    made.take(finished, *TEXT_STAGES)
    yield made
    made.end()
    assert made.left_behind() == []


def wait_for(what: Callable[[], Any], *, timeout_s: float = 120.0) -> Any:
    """Returns the first truthy answer of `what`."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := what():
            return found
        time.sleep(0.02)
    raise AssertionError("it did not happen in time")


def ranks(project: Project, *, epoch: int = 0) -> list[dict[str, Any]]:
    """What the training's ranks in an epoch last said of themselves, by rank: step by step, where heartbeats are a second old."""
    scratch = project.folder / ".headrace" / "state" / "scratch"
    try:
        return [json.loads(path.read_bytes()) for path in sorted(scratch.glob(f"*-train-*/n0000/e{epoch:06d}/progress-*.json"))]
    except FileNotFoundError:  # the agent has ended, be it while its folder was listed
        return []


def at_step(project: Project, step: int, *, epoch: int = 0) -> list[dict[str, Any]]:
    """The ranks of an epoch, once both are at the step."""
    found = ranks(project, epoch=epoch)
    return found if len(found) == 2 and all(rank["step"] >= step and rank["phase"] == "stepping" for rank in found) else []


def is_live(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def hold_still(pids: list[int]) -> None:
    """Stops processes and what they have started, writers of checkpoints above all; returns once all of them do nothing any more."""
    ranks = [psutil.Process(pid) for pid in pids]
    for rank in ranks:
        rank.suspend()  # first: it starts no other writer then
    family = [process for rank in ranks for process in (rank, *rank.children(recursive=True))]
    for process in family:
        process.suspend()
    wait_for(lambda: all(process.status() in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE) for process in family), timeout_s=30)


def weights(project: Project) -> str:
    content: str = json.loads((project.artifact("train") / "record.json").read_text())["content_hash"]
    return content


def test_a_killed_rank_costs_nothing_but_time_and_a_cancelled_run_goes_on(project: Project, finished: Project) -> None:
    for name in ("flows.cli", "flows.piloting", "flows.cancellation", "flows.lookup", "tasks.views"):
        importlib.import_module(name)  # seconds on a busy machine: a cancellation that had to import them might come after the last step
    process = project.start("run", "tiny.yaml")
    victim = wait_for(lambda: at_step(project, 8))[1]
    os.kill(victim["pid"], signal.SIGKILL)
    wait_for(lambda: at_step(project, 12, epoch=1))
    (run,) = project.run_ids()
    cancelled = project.here("cancel", run)
    assert cancelled.code == 0, cancelled.out + cancelled.err
    assert process.wait(timeout=120) == 75, (project.folder / "output.log").read_text()
    assert project.answer("status", run)["state"] == "interrupted"
    done = project.headrace("resume", run)
    assert done.returncode == 0, done.stdout + done.stderr
    assert weights(project) == weights(finished)
    view = project.answer("status", run)
    assert view["state"] == "finished"
    (incident,) = view["incidents"]
    assert (incident["cause"], incident["rank"], incident["decision"], incident["exit_status"]) == ("killed", 1, "restart", -9)
    assert incident["recovered_after_s"] > 0


def test_a_killed_flow_is_adopted_and_its_job_goes_on(project: Project, finished: Project) -> None:
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
    assert weights(project) == weights(finished)


@pytest.mark.exhaustive
def test_everything_killed_goes_on_from_the_newest_commit(project: Project, finished: Project) -> None:
    process = project.start("run", "tiny.yaml")
    victims = wait_for(lambda: at_step(project, 12))
    process.kill()
    process.wait()
    for found in psutil.process_iter(["cmdline"]):
        words = found.info["cmdline"] or []
        if "cluster.agent.agent" in words and str(project.folder) in " ".join(words):
            with contextlib.suppress(psutil.NoSuchProcess):
                found.kill()
    wait_for(lambda: not any(is_live(victim["pid"]) for victim in victims), timeout_s=30)
    (run,) = project.run_ids()
    done = project.headrace("resume", run)
    assert done.returncode == 0, done.stdout + done.stderr
    first = json.loads(sorted((project.root / "train").glob("*/epochs/*.json"))[1].read_text())
    assert first["epoch"] == 1
    assert weights(project) == weights(finished)


@pytest.mark.exhaustive
def test_a_damaged_commit_is_passed_over_for_the_one_before(project: Project, finished: Project) -> None:
    process = project.start("run", "tiny.yaml")
    wait_for(lambda: len(list((project.root / "train").glob("*/commits/*.json"))) > 1)  # they follow late
    victims = wait_for(lambda: at_step(project, 17))
    hold_still([victim["pid"] for victim in victims])  # else a checkpoint that is on its way may become the newest one after the look
    commit = json.loads(sorted((project.root / "train").glob("*/commits/*.json"))[-1].read_text())
    (newest,) = (project.root / "train").glob(f"*/{commit['folder']}/rank-0000.bin")
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(bytes(data))
    for victim in victims:
        os.kill(victim["pid"], signal.SIGKILL)
    assert process.wait(timeout=240) == 0, (project.folder / "output.log").read_text()
    assert weights(project) == weights(finished)
    logs = project.here("logs", project.run_ids()[0], "--stage", "train", "--rank", "0")
    assert newest.parent.name.partition(".")[0] in logs.out, "the log says which commit was passed over"


@pytest.mark.exhaustive
def test_two_runs_of_one_recipe_never_write_one_artifact_together(project: Project) -> None:
    long = ("--set", "training.steps=3000")
    first = project.start("run", "tiny.yaml", *long)
    wait_for(lambda: at_step(project, 3))
    second = project.headrace("run", "tiny.yaml", *long)
    assert second.returncode == 8, second.stdout + second.stderr
    assert "is being worked on by" in second.stderr
    assert project.here("cancel", project.run_ids()[0]).code == 0
    assert first.wait(timeout=120) == 75
