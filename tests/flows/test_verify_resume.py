"""`headrace verify-resume` as a user calls it: stopped in the middle, then to its end; nothing of it stays."""

import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.fakes.tiny_pipeline import Project, make_project

pytestmark = pytest.mark.slow

STEPS = 60


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    changes = {
        "training.steps": STEPS,
        "checkpoint.every_steps": 20,
        "tracking.validate_every_steps": STEPS,
        "restart.max_attempts_without_progress": 1,
    }
    return make_project(tmp_path_factory.mktemp("proof") / "project", changes=changes)


def scratch(project: Project) -> list[Path]:
    folder = project.folder / ".headrace" / "state" / "verify-resume"
    return list(folder.iterdir()) if folder.exists() else []


def at_work(project: Project) -> bool:
    """Whether the undisturbed training's agent has told how far it is."""
    return any(beat for folder in scratch(project) for beat in folder.glob("calm/train/*/attempts/*/heartbeats/*.json"))


def live(project: Project) -> list[int]:
    found = []
    for process in psutil.process_iter(["pid", "cmdline", "status"]):
        ours = str(project.folder) in " ".join(process.info["cmdline"] or []) and process.pid != os.getpid()
        found += [process.pid] if ours and process.info["status"] != psutil.STATUS_ZOMBIE else []
    return found


def test_ctrl_c_stops_the_job_and_leaves_nothing(project: Project) -> None:
    started = project.start("verify-resume", "tiny.yaml")
    deadline = time.monotonic() + 180
    while not at_work(project):
        assert started.poll() is None, (project.folder / "output.log").read_text()
        assert time.monotonic() < deadline, "the training does not begin"
        time.sleep(0.05)
    started.send_signal(signal.SIGINT)
    code, output = started.wait(timeout=120), (project.folder / "output.log").read_text()
    assert code == 75, output
    assert "Traceback" not in output
    assert "headrace resume" not in output, "there is no run to resume"
    assert scratch(project) == []
    deadline = time.monotonic() + 30
    while live(project):
        assert time.monotonic() < deadline, live(project)
        time.sleep(0.1)


def test_two_kills_change_no_byte_and_leave_no_run(project: Project) -> None:
    """No step is committed between the kills and the budget of idle starts is one: kills are not charged to it."""
    proof = project.answer("verify-resume", "tiny.yaml", "--kills", "2")
    assert proof["equal"]
    assert proof["calm_hash"] == proof["disturbed_hash"]
    assert (proof["steps"], len(proof["kills"])) == (STEPS, 2)
    assert project.run_ids() == []
    assert scratch(project) == []
