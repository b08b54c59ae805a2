"""`headrace verify-resume` as a user calls it: stopped in the middle, then to its end; nothing of it stays."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.tiny_pipeline import TEXT_STAGES, Project, make_project

pytestmark = pytest.mark.slow

STEPS = 60


@pytest.fixture(scope="module")
def project(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    changes = {
        "training.steps": STEPS,
        "checkpoint.every_steps": 20,
        "tracking.validate_every_steps": STEPS,
        "restart.max_attempts_without_progress": 1,
    }
    made = make_project(tmp_path_factory.mktemp("proof") / "project", changes=changes)
    made.take(finished, *TEXT_STAGES)
    yield made
    made.end()


def scratch(project: Project) -> list[Path]:
    folder = project.folder / ".headrace" / "state" / "verify-resume"
    return list(folder.iterdir()) if folder.exists() else []


def at_work(project: Project) -> bool:
    """Whether the undisturbed training's agent has told how far it is."""
    return any(beat for folder in scratch(project) for beat in folder.glob("calm/train/*/attempts/*/heartbeats/*.json"))


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
    assert project.left_behind() == []


def test_two_kills_change_no_byte_and_leave_no_run(project: Project) -> None:
    """No step is committed between the kills and the budget of idle starts is one: kills are not charged to it."""
    proof = project.answer("verify-resume", "tiny.yaml", "--kills", "2")
    assert proof["equal"]
    assert proof["calm_hash"] == proof["disturbed_hash"]
    assert proof["calm_ids"] == proof["disturbed_ids"] == proof["prescribed_ids"]
    assert (proof["steps"], len(proof["kills"])) == (STEPS, 2)
    assert (proof["ledger"]["steps"], proof["ledger"]["restarts"]) == (STEPS, 2)
    assert project.run_ids() == []
    assert scratch(project) == []


def test_another_number_of_ranks_goes_on_where_the_first_was_killed(project: Project) -> None:
    steps = {"training.steps": 240, "tracking.sample_tokens": 0, "tracking.validate_every_steps": 240}
    proof = project.answer("verify-resume", "tiny.yaml", "--world", "2,1", *(f"--set={key}={value}" for key, value in steps.items()))
    assert proof["proven"]
    assert proof["findings"] == []
    assert proof["calm_ids"] == proof["resized_ids"] == proof["prescribed_ids"]
    (change,) = proof["transitions"]
    assert (change["was"], change["now"]) == (2, 1)
    assert 0 < change["resumed_from"] < change["killed_at"] < proof["steps"] == 240
    assert change["committed_state"] == change["loaded_state"] != ""
    assert change["loss_after"] == pytest.approx(change["loss_before"], rel=1e-3)
    assert len(proof["calm_validation_losses"]) == 3
    assert project.run_ids() == []
    assert scratch(project) == []
