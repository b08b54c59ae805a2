"""What follows the end of an attempt, by its own word and by the launcher's. No process is started, and no time passes."""

from pathlib import Path

import pytest

from cluster.attempt import read_verdict
from cluster.launchers.protocol import JobState
from schemas.attempt import Cause
from schemas.errors import ConfigError, InterruptedRunError, Problem
from schemas.exit_code import ExitCode
from schemas.job import JobSpec
from tests.fakes.job_request import LIMITS, gang_request
from tests.fakes.scripted_job import ScriptedJob, ends, never_starts, raises_at_call, runs
from tests.fakes.scripted_launcher import Script


@pytest.mark.parametrize(
    "code", [ExitCode.USAGE, ExitCode.DATA_VERDICT, ExitCode.GATE, ExitCode.POLICY, ExitCode.OUT_OF_MEMORY, ExitCode.VERIFICATION]
)
def test_what_the_agent_has_judged_is_final(stage: ScriptedJob, code: ExitCode) -> None:
    stage.launcher.scripts = [ends(stage, code, Cause.USER_CODE)]
    assert stage.run().exit_code is code
    verdict = read_verdict(stage.storage, stage.attempt(0))
    assert verdict is not None
    assert verdict.decision == "stop"


def test_asked_again_after_a_stop_a_new_attempt_starts_with_fresh_budgets(stage: ScriptedJob) -> None:
    stage.launcher.scripts = [ends(stage, ExitCode.POLICY, Cause.USER_CODE), ends(stage)]
    assert stage.run().exit_code is ExitCode.POLICY
    assert stage.run().exit_code is ExitCode.DONE
    assert [spec.attempt for spec in stage.launcher.submitted] == [0, 1]


def test_preempted_attempts_are_followed_by_others_while_they_commit(stage: ScriptedJob) -> None:
    preempted = [ends(stage, ExitCode.INTERRUPTED, Cause.PREEMPTION, committed_step=step) for step in (5, 10, 15, 20)]
    stage.launcher.scripts = [*preempted, ends(stage)]
    assert stage.run().exit_code is ExitCode.DONE
    assert len(stage.launcher.submitted) == 5


def test_preempted_attempts_without_progress_stop_by_policy(stage: ScriptedJob) -> None:
    stage.launcher.scripts = [ends(stage, ExitCode.INTERRUPTED, Cause.PREEMPTION, committed_step=5) for _ in range(9)]
    record = stage.run()
    assert record.exit_code is ExitCode.POLICY
    assert len(stage.launcher.submitted) == 4  # the first committed step 5, three more brought nothing


def test_budgets_outlive_the_supervisor(stage: ScriptedJob) -> None:
    stage.request = stage.request.model_copy(update={"limits": stage.request.limits.model_copy(update={"max_interruptions": 1})})
    stage.launcher.scripts = [ends(stage, ExitCode.INTERRUPTED, Cause.PREEMPTION, committed_step=5), runs(stage)]
    with pytest.raises(KeyboardInterrupt):
        stage.run(stop_requested=raises_at_call(6))
    assert len(stage.launcher.submitted) == 2
    stage.end(stage.launcher.submitted[1], ExitCode.INTERRUPTED, Cause.PREEMPTION, committed_step=9)
    record = stage.run()
    assert record.exit_code is ExitCode.POLICY
    assert "2 interruptions" in record.message
    assert len(stage.launcher.submitted) == 2


def test_allocations_that_end_are_chained_for_as_long_as_each_commits_something(stage: ScriptedJob) -> None:
    ended = [ends(stage, ExitCode.INTERRUPTED, Cause.TIME_LIMIT, committed_step=step) for step in (10, 20, 30, 40)]
    stage.request = gang_request(Path(stage.storage.url).parent, limits=LIMITS.model_copy(update={"max_interruptions": 0}))
    stage.launcher.scripts = [*ended, ends(stage)]
    assert stage.run().exit_code is ExitCode.DONE
    assert len(stage.launcher.submitted) == 5


def test_allocations_that_end_without_a_commit_are_not_asked_for_for_ever(stage: ScriptedJob) -> None:
    stage.launcher.scripts = [ends(stage, ExitCode.INTERRUPTED, Cause.TIME_LIMIT, committed_step=step) for step in (10, 10, 10, 10)]
    record = stage.run()
    assert record.exit_code is ExitCode.POLICY
    assert len(stage.launcher.submitted) == 4


def test_a_stop_is_asked_of_the_job_and_its_end_awaited(stage: ScriptedJob) -> None:
    stage.launcher.scripts = [runs(stage)]
    wished = []
    stage.clock.at(2.0, lambda: wished.append(True))
    stage.clock.at(9.0, lambda: stage.end(stage.launcher.submitted[0], ExitCode.INTERRUPTED, Cause.CANCELLED))
    record = stage.run(stop_requested=lambda: bool(wished))
    assert (record.exit_code, record.cause) == (ExitCode.INTERRUPTED, Cause.CANCELLED)
    assert stage.launcher.cancelled == [stage.launcher.submitted[0].key]
    assert stage.storage.exists(stage.attempt(0).cancel)


def test_a_job_that_waits_is_cancelled_until_the_launcher_has_heard(stage: ScriptedJob) -> None:
    stage.launcher.scripts = [never_starts(JobState.PENDING)]
    wished = []

    def heard() -> None:
        stage.launcher.states[stage.launcher.submitted[0].key] = JobState.ENDED
        stage.launcher.causes[stage.launcher.submitted[0].key] = Cause.CANCELLED

    stage.clock.at(2.0, lambda: wished.append(True))
    stage.clock.at(19.0, heard)
    record = stage.run(stop_requested=lambda: bool(wished))
    assert (record.exit_code, record.cause) == (ExitCode.INTERRUPTED, Cause.CANCELLED)
    assert len(stage.launcher.cancelled) >= 3


def preempted(stage: ScriptedJob, *, state: JobState, cause: Cause | None = None, later: JobState | None = None) -> Script:
    """A job that was told to stop by a signal; what the launcher says of it then, and half a minute later."""

    def script(spec: JobSpec) -> JobState:
        ends(stage, ExitCode.INTERRUPTED, Cause.PREEMPTION, committed_step=5)(spec)
        if later is None:
            learns(spec)
        else:
            stage.clock.at(stage.clock.now + 30.0, lambda: learns(spec))
        return state

    def learns(spec: JobSpec) -> None:
        stage.launcher.states[spec.key] = later or state
        if cause is not None:
            stage.launcher.causes[spec.key] = cause

    return script


@pytest.mark.parametrize("first", [JobState.ENDED, JobState.RUNNING, JobState.PENDING, JobState.UNKNOWN])
def test_a_job_that_somebody_cancelled_is_not_submitted_again(stage: ScriptedJob, first: JobState) -> None:
    """The launcher may know it only half a minute later."""
    later = None if first is JobState.ENDED else JobState.ENDED
    stage.launcher.scripts = [preempted(stage, state=first, cause=Cause.CANCELLED, later=later)]
    record = stage.run()
    assert record.exit_code is ExitCode.INTERRUPTED
    assert "cancelled by somebody" in record.message
    assert len(stage.launcher.submitted) == 1


def test_what_the_launcher_knows_of_a_signal_decides(stage: ScriptedJob) -> None:
    stage.launcher.scripts = [preempted(stage, state=JobState.ENDED, cause=Cause.NODE), ends(stage)]
    assert stage.run().exit_code is ExitCode.DONE
    verdict = read_verdict(stage.storage, stage.attempt(0))
    assert verdict is not None
    assert verdict.reason.startswith("node: restart")


def test_a_node_that_was_lost_twice_is_avoided(stage: ScriptedJob) -> None:
    stage.launcher.scripts = [runs(stage, JobState.ENDED), runs(stage, JobState.ENDED), ends(stage)]
    assert stage.run().exit_code is ExitCode.DONE
    assert [spec.excluded_nodes for spec in stage.launcher.submitted] == [(), (), ("node",)]


def test_where_too_few_nodes_are_left_none_is_avoided(stage: ScriptedJob) -> None:
    def refuses(_spec: JobSpec) -> JobState:
        raise ConfigError((Problem("cluster", "", "Requested node configuration is not available"),))

    stage.launcher.scripts = [runs(stage, JobState.ENDED), runs(stage, JobState.ENDED), refuses, ends(stage)]
    assert stage.run().exit_code is ExitCode.DONE
    assert [(spec.attempt, spec.excluded_nodes) for spec in stage.launcher.submitted[2:]] == [(2, ("node",)), (2, ())]


def test_a_job_that_was_put_back_into_the_queue_is_taken_out_of_it(stage: ScriptedJob) -> None:
    stage.launcher.scripts = [preempted(stage, state=JobState.PENDING), ends(stage)]
    assert stage.run().exit_code is ExitCode.DONE
    first, _ = stage.launcher.submitted
    assert stage.launcher.cancelled == [first.key]


def test_resumed_after_a_cancel_it_goes_on(stage: ScriptedJob) -> None:
    stage.launcher.scripts = [ends(stage, ExitCode.INTERRUPTED, Cause.CANCELLED), ends(stage)]
    assert stage.run().exit_code is ExitCode.INTERRUPTED
    assert stage.run().exit_code is ExitCode.DONE


def test_a_stop_before_the_submission_submits_nothing(stage: ScriptedJob) -> None:
    with pytest.raises(InterruptedRunError):
        stage.run(stop_requested=lambda: True)
    assert stage.launcher.submitted == []
