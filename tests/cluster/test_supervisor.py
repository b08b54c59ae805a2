"""What the supervisor submits and what it adopts, told by what storage and launcher say. No process is started, and no time passes."""

from pathlib import Path

import pytest

from cluster import supervisor
from cluster.attempt import list_attempts, read_exit, read_spec
from cluster.launchers.protocol import JobState
from cluster.layout import AttemptLayout
from cluster.liveness import Life
from cluster.storage import Storage
from schemas.attempt import Cause, ExitRecord
from schemas.errors import ConfigError, Problem, UnreachableError
from schemas.exit_code import ExitCode
from schemas.job import ItemRecord, JobSpec
from tests.fakes.job_request import array_request
from tests.fakes.scripted_job import LAYOUT, ScriptedJob, ends, raises_at_call, runs
from tests.fakes.scripted_launcher import Script, ScriptedLauncher


def test_submits_follows_and_returns_the_exit_record(stage: ScriptedJob) -> None:
    stage.launcher.scripts = [runs(stage)]
    stage.clock.at(3.0, lambda: stage.beat(stage.launcher.submitted[0], sequence=1, step=9))
    stage.clock.at(6.0, lambda: stage.end(stage.launcher.submitted[0]))
    record = stage.run()
    spec = stage.launcher.submitted[0]
    assert record.exit_code is ExitCode.DONE
    assert spec.key.startswith("run-train-")
    assert spec.scratch_dir.endswith(spec.key)
    assert [view.step for view in stage.views][:3] == [7, 7, 7]
    assert (stage.views[-1].step, stage.views[-1].total_steps, stage.views[-1].epoch, stage.views[-1].state) == (9, 20, 3, Life.ENDED)


def test_what_a_job_says_as_it_ends_is_in_the_last_view(stage: ScriptedJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """It speaks a last time, and ends, between the look at its heartbeats and the one at its exit record."""

    def end_first(storage: Storage, attempt: AttemptLayout) -> ExitRecord | None:
        if stage.views and not storage.exists(attempt.exit):
            stage.beat(stage.launcher.submitted[0], sequence=1, step=20)
            stage.end(stage.launcher.submitted[0])
        return read_exit(storage, attempt)

    monkeypatch.setattr(supervisor, "read_exit", end_first)
    stage.launcher.scripts = [runs(stage)]
    assert stage.run().exit_code is ExitCode.DONE
    assert (stage.views[-1].step, stage.views[-1].state) == (20, Life.ENDED)


def test_a_finished_job_is_not_run_again(stage: ScriptedJob) -> None:
    stage.launcher.scripts = [ends(stage)]
    stage.run()
    assert stage.run().exit_code is ExitCode.DONE
    assert len(stage.launcher.submitted) == 1


def test_a_finished_job_whose_result_is_missing_is_run_again(stage: ScriptedJob) -> None:
    stage.launcher.scripts = [ends(stage), ends(stage)]
    stage.run()
    stage.run(is_complete=lambda: False)
    assert [spec.attempt for spec in stage.launcher.submitted] == [0, 1]


def test_an_array_with_a_missing_item_is_run_again(tmp_path: Path) -> None:
    stage = ScriptedJob(tmp_path)
    stage.request = array_request(tmp_path, items=2)
    stage.launcher.scripts = [ends(stage), ends(stage)]
    for index in range(2):
        stage.put(LAYOUT.item("scan", index), ItemRecord(index=index, epoch=0, files=(), output={}))
    stage.run()
    stage.run()
    assert len(stage.launcher.submitted) == 1
    stage.storage.delete(LAYOUT.item("scan", 1))
    stage.run()
    assert len(stage.launcher.submitted) == 2


def test_a_running_attempt_is_adopted(stage: ScriptedJob) -> None:
    stage.launcher.scripts = [runs(stage)]
    with pytest.raises(KeyboardInterrupt):  # the first supervisor dies while following
        stage.run(poll_s=0.5, stop_requested=raises_at_call(3))
    stage.clock.at(stage.clock.now + 5.0, lambda: stage.end(stage.launcher.submitted[0]))
    assert stage.run().exit_code is ExitCode.DONE
    assert len(stage.launcher.submitted) == 1


def test_killed_between_intent_and_submission_the_same_attempt_is_submitted(stage: ScriptedJob) -> None:
    def dies(_spec: JobSpec) -> JobState:
        raise KeyboardInterrupt

    stage.launcher.scripts = [dies, ends(stage)]
    with pytest.raises(KeyboardInterrupt):
        stage.run()
    assert stage.run().exit_code is ExitCode.DONE
    first, second = stage.launcher.submitted
    assert (first.key, first.attempt) == (second.key, second.attempt)


def test_killed_after_the_launcher_took_it_the_job_is_adopted(stage: ScriptedJob) -> None:
    """The submitter died before it could write down the answer; the launcher knows the key."""

    def taken(spec: JobSpec) -> JobState:
        stage.launcher.states[spec.key] = JobState.PENDING
        raise KeyboardInterrupt

    stage.launcher.scripts = [taken]
    with pytest.raises(KeyboardInterrupt):
        stage.run()
    stage.clock.at(stage.clock.now + 5.0, lambda: stage.end(stage.launcher.submitted[0]))
    assert stage.run().exit_code is ExitCode.DONE
    assert len(stage.launcher.submitted) == 1


def test_a_never_submitted_attempt_of_another_request_is_closed(stage: ScriptedJob) -> None:
    def refuses(_spec: JobSpec) -> JobState:
        raise UnreachableError("sbatch says no")

    stage.launcher.scripts = [refuses, refuses, refuses, ends(stage)]
    with pytest.raises(UnreachableError):
        stage.run()
    stage.launcher.submitted.clear()
    changed = stage.request.model_copy(update={"ranks_per_node": 1})
    assert stage.run(request=changed).exit_code is ExitCode.DONE
    assert [spec.attempt for spec in stage.launcher.submitted] == [1]
    assert stage.storage.exists(stage.attempt(0).claim)  # a late job of it loses the claim
    closed = read_exit(stage.storage, stage.attempt(0))
    assert closed is not None
    assert closed.cause is Cause.CANCELLED


def refuses_with(stage: ScriptedJob, state: JobState, *, later: JobState | None = None) -> Script:
    """A submission that fails; `later` is what the launcher says of it ten seconds afterwards."""

    def script(spec: JobSpec) -> JobState:
        stage.launcher.states[spec.key] = state
        if later is not None:
            stage.clock.at(stage.clock.now + 10.0, lambda: stage.launcher.states.update({spec.key: later}))
        raise UnreachableError("sbatch says no")

    return script


@pytest.mark.parametrize("state", [JobState.PENDING, JobState.RUNNING, JobState.ENDED])
def test_a_submission_that_failed_and_was_taken_all_the_same_is_followed(stage: ScriptedJob, state: JobState) -> None:
    def taken(spec: JobSpec) -> JobState:
        runs(stage)(spec)
        return refuses_with(stage, state)(spec)

    stage.launcher.scripts = [taken]
    stage.clock.at(5.0, lambda: stage.end(stage.launcher.submitted[0]))
    assert stage.run().exit_code is ExitCode.DONE
    assert len(stage.launcher.submitted) == 1


def test_what_the_launcher_will_never_take_is_over_and_the_next_start_submits_anew(stage: ScriptedJob) -> None:
    """Slurm takes a job and lets it wait for ever; its launcher takes it back, and it stays in the queue's memory as cancelled."""

    def refuses(spec: JobSpec) -> JobState:
        stage.launcher.states[spec.key] = JobState.ENDED
        raise ConfigError((Problem("cluster.queue", "'closed'", "takes nobody's jobs"),))

    stage.launcher.scripts = [refuses, ends(stage)]
    with pytest.raises(ConfigError):
        stage.run()
    refused = read_exit(stage.storage, stage.attempt(0))
    assert refused is not None
    assert refused.cause is Cause.CANCELLED
    assert stage.run().exit_code is ExitCode.DONE
    assert [spec.attempt for spec in stage.launcher.submitted] == [0, 1]


def test_nothing_is_submitted_again_before_the_launcher_can_be_asked(stage: ScriptedJob) -> None:
    stage.launcher.scripts = [refuses_with(stage, JobState.UNKNOWN, later=JobState.ABSENT), ends(stage)]
    assert stage.run().exit_code is ExitCode.DONE
    first, second = stage.launcher.submitted
    assert first.key == second.key
    assert stage.clock.now >= 10.0


def test_a_launcher_that_nobody_can_ask_is_given_up(stage: ScriptedJob) -> None:
    stage.launcher.scripts = [refuses_with(stage, JobState.UNKNOWN)]
    with pytest.raises(UnreachableError):
        stage.run(poll_s=20.0)
    assert stage.clock.now >= 300.0
    assert len(stage.launcher.submitted) == 1


def test_two_supervisors_make_one_attempt(stage: ScriptedJob) -> None:
    """The second finds the intent of the first before the job has started."""

    def meanwhile(spec: JobSpec) -> JobState:
        stage.claim(spec)
        stage.end(spec)
        other = ScriptedJob.__new__(ScriptedJob)
        other.__dict__ = {**stage.__dict__, "launcher": ScriptedLauncher([])}
        assert other.run().key == spec.key
        assert other.launcher.submitted == []
        return JobState.RUNNING

    stage.launcher.scripts = [meanwhile]
    assert stage.run().exit_code is ExitCode.DONE
    assert list_attempts(stage.storage, LAYOUT, step_name="") == (0,)


def test_jobs_of_one_artifact_stay_apart_by_step_name(tmp_path: Path) -> None:
    stage = ScriptedJob(tmp_path)
    stage.launcher.scripts = [ends(stage), ends(stage)]
    for step_name in ("scan", "merge"):
        stage.request = stage.request.model_copy(update={"step_name": step_name})
        stage.run()
        assert read_spec(stage.storage, stage.attempt(0)).step_name == step_name
    assert len(stage.launcher.submitted) == 2
    assert stage.storage.names(LAYOUT.attempts) == ("merge-0000", "scan-0000")
