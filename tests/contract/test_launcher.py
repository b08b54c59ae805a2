"""What every launcher must do: render without acting, submit, answer in three values, cancel gracefully; and one claim for two submissions."""

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.attempt import read_claim, read_exit
from cluster.launchers.protocol import JobState
from cluster.layout import ArtifactLayout
from cluster.logs import read_logs
from cluster.storage import FileStorage
from schemas.attempt import Cause
from schemas.canonical import canonical_json
from schemas.exit_code import ExitCode
from schemas.job import JobSpec
from tests.contract.launchers import LauncherBench
from tests.fakes.live_job import LiveJob, wait_until

pytestmark = pytest.mark.slow

OVER = (JobState.ENDED, JobState.ABSENT)


class Trial:
    """One attempt of the bench's job, its intent written."""

    def __init__(self, bench: LauncherBench, **options: object) -> None:
        self.launcher = bench.launcher
        key = f"run-train-{secrets.token_hex(3)}"
        options = {**bench.request.options, **options}
        self.spec: JobSpec = bench.request.model_copy(update={"key": key, "scratch_dir": f"{bench.request.scratch_dir}/{key}", "options": options})
        self.storage = FileStorage(Path(self.spec.storage_root))
        self.attempt = ArtifactLayout(self.spec.artifact_key).attempt("", 0)
        self.storage.create_exclusive(self.attempt.spec, canonical_json(self.spec))

    def submit(self) -> None:
        self.launcher.submit(self.launcher.render(self.spec))

    def state(self) -> JobState:
        return self.launcher.query([self.spec.key])[self.spec.key].state

    def has_ended(self) -> bool:
        return self.storage.exists(self.attempt.exit) and self.state() in OVER


@pytest.fixture
def trial(bench: LauncherBench) -> Iterator[Trial]:
    trial = Trial(bench, lasts=0)
    yield trial
    LiveJob(trial.spec).sweep()


def test_rendering_is_pure_and_shows_what_would_run(bench: LauncherBench) -> None:
    spec = bench.request.model_copy(update={"key": "demo-train-abc123", "num_nodes": 2})
    first, second = bench.launcher.render(spec), bench.again().render(spec)
    assert first == second
    assert "demo-train-abc123" in first.text
    assert not Path(spec.scratch_dir).exists()
    assert bench.launcher.query(["demo-train-abc123"])["demo-train-abc123"].state in OVER


def test_unknown_keys_are_absent_and_every_key_gets_an_answer(bench: LauncherBench) -> None:
    assert bench.launcher.query([]) == {}
    answers = bench.launcher.query(["no-such-job", "nor-this"])
    assert {key: report.state for key, report in answers.items()} == {"no-such-job": JobState.ABSENT, "nor-this": JobState.ABSENT}


def test_a_submitted_job_runs_ends_and_is_over(bench: LauncherBench) -> None:
    trial = Trial(bench, steps=5)
    trial.submit()
    wait_until(trial.has_ended)
    record = read_exit(trial.storage, trial.attempt)
    assert record is not None
    assert record.exit_code is ExitCode.DONE
    assert record.key == trial.spec.key


def test_another_process_finds_a_running_job_by_its_key(bench: LauncherBench, trial: Trial) -> None:
    trial.submit()
    wait_until(lambda: trial.state() is JobState.RUNNING)
    answers = bench.again().query([trial.spec.key, "other"])
    assert {key: report.state for key, report in answers.items()} == {trial.spec.key: JobState.RUNNING, "other": JobState.ABSENT}


def test_of_two_submissions_one_takes_effect(trial: Trial) -> None:
    trial.submit()
    trial.submit()
    wait_until(lambda: trial.storage.exists(trial.attempt.log_segment(epoch=0, rank=0, sequence=0)))
    claim = read_claim(trial.storage, trial.attempt)
    assert claim is not None
    trial.launcher.cancel(trial.spec.key)
    wait_until(trial.has_ended)
    starts = [line.text for line in read_logs(trial.storage, trial.attempt, rank=0)]
    assert starts == ["rank 0 of 2 starts epoch 0 from -1"]


def test_cancelling_is_graceful_and_leaves_nothing(bench: LauncherBench, trial: Trial) -> None:
    """A launcher only sends the signal. Who cancels for good says so in storage first; alone, it is what a scheduler sends before it takes a node."""
    trial.submit()
    wait_until(lambda: trial.storage.exists(trial.attempt.log_segment(epoch=0, rank=0, sequence=0)))
    bench.again().cancel(trial.spec.key)
    wait_until(trial.has_ended)
    record = read_exit(trial.storage, trial.attempt)
    assert record is not None
    assert (record.exit_code, record.cause) == (ExitCode.INTERRUPTED, Cause.PREEMPTION)
    wait_until(lambda: LiveJob(trial.spec).family() == [])


def test_cancelling_what_is_not_there_is_nothing(bench: LauncherBench) -> None:
    bench.launcher.cancel("no-such-job")
