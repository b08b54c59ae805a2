"""What the supervisor makes of silence: of the scheduler, of agents, of storage. No process is started, and no time passes."""

from collections.abc import Callable

import pytest

from cluster.attempt import read_exit
from cluster.launchers.protocol import JobState
from cluster.liveness import Life
from cluster.storage import FileStorage
from schemas.attempt import Cause
from schemas.errors import UnreachableError
from schemas.exit_code import ExitCode
from tests.fakes.scripted_job import ScriptedJob, ends, never_starts, runs


def test_silence_of_the_scheduler_makes_no_new_attempt(stage: ScriptedJob) -> None:
    stage.launcher.scripts = [runs(stage, JobState.UNKNOWN)]
    stage.clock.at(5_000.0, lambda: stage.end(stage.launcher.submitted[0]))
    assert stage.run(poll_s=100.0).exit_code is ExitCode.DONE
    assert len(stage.launcher.submitted) == 1
    assert Life.UNKNOWN in {view.state for view in stage.views}


def test_absence_shorter_than_lost_after_makes_no_new_attempt(stage: ScriptedJob) -> None:
    stage.launcher.scripts = [runs(stage, JobState.ABSENT)]
    stage.clock.at(280.0, lambda: stage.end(stage.launcher.submitted[0]))
    stage.run(poll_s=20.0)
    assert len(stage.launcher.submitted) == 1


@pytest.mark.parametrize("has_started", [False, True])
def test_a_launcher_that_forgets_a_job_for_a_moment_ends_nothing(stage: ScriptedJob, has_started: bool) -> None:
    """The job has been silent for hours, and the launcher has vouched for it all the while."""
    stage.launcher.scripts = [runs(stage) if has_started else never_starts(JobState.PENDING)]

    def says(state: JobState) -> Callable[[], None]:
        return lambda: stage.launcher.states.update({stage.launcher.submitted[0].key: state})

    stage.clock.at(9_000.0, says(JobState.ABSENT))
    stage.clock.at(9_250.0, says(JobState.RUNNING))
    stage.clock.at(9_400.0, lambda: stage.end(stage.launcher.submitted[0]))
    assert stage.run(poll_s=20.0).exit_code is ExitCode.DONE
    assert len(stage.launcher.submitted) == 1


def test_absence_longer_than_lost_after_makes_one_under_a_fence(stage: ScriptedJob) -> None:
    stage.launcher.scripts = [runs(stage, JobState.ABSENT), ends(stage)]
    assert stage.run(poll_s=20.0).exit_code is ExitCode.DONE
    assert [spec.attempt for spec in stage.launcher.submitted] == [0, 1]
    lost = read_exit(stage.storage, stage.attempt(0))
    assert lost is not None
    assert (lost.cause, lost.exit_code, lost.incidents[-1].step) == (Cause.NODE, ExitCode.INTERRUPTED, 7)
    assert stage.clock.now >= 300.0


def test_a_dead_agent_of_this_machine_is_replaced_at_once(stage: ScriptedJob) -> None:
    stage.launcher.scripts = [runs(stage, JobState.ABSENT, dead=True), ends(stage)]
    assert stage.run().exit_code is ExitCode.DONE
    assert stage.clock.now < 5.0
    killed = read_exit(stage.storage, stage.attempt(0))
    assert killed is not None
    assert killed.cause is Cause.KILLED


def test_a_job_that_ended_before_its_agent_started_is_replaced(stage: ScriptedJob) -> None:
    stage.launcher.scripts = [never_starts(JobState.ENDED), ends(stage)]
    assert stage.run().exit_code is ExitCode.DONE
    assert [spec.attempt for spec in stage.launcher.submitted] == [0, 1]
    lost = [view for view in stage.views if view.attempt == 0][-1]
    assert lost.state is Life.ENDED
    assert lost.incidents[-1].evidence[0].startswith("the job ended before its agent started"), "who looks on hears of it"


def test_agents_that_never_start_stop_by_policy(stage: ScriptedJob) -> None:
    stage.launcher.scripts = [never_starts(JobState.ENDED)] * 3
    record = stage.run()
    assert record.exit_code is ExitCode.POLICY
    assert "3 starts in a row brought nothing new" in record.message
    assert len(stage.launcher.submitted) == 3


def test_a_job_that_starts_while_it_is_being_closed_lives(stage: ScriptedJob) -> None:
    """The scheduler said "ended" for a job whose agent claims at that very moment."""
    stage.launcher.scripts = [never_starts(JobState.ENDED)]
    original = stage.storage.create_exclusive

    def claimed_first(key: str, data: bytes) -> None:
        if key.endswith("claim.json") and not stage.storage.exists(key):
            original(key, data.replace(b"supervisor", b"some-job"))
            stage.clock.at(stage.clock.now + 2.0, lambda: stage.end(stage.launcher.submitted[0]))
        original(key, data)

    stage.storage.create_exclusive = claimed_first  # type: ignore[method-assign]
    assert stage.run().exit_code is ExitCode.DONE
    assert len(stage.launcher.submitted) == 1


def test_a_storage_that_fails_for_a_while_is_asked_again(stage: ScriptedJob, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.launcher.scripts = [runs(stage)]
    stage.clock.at(100.0, lambda: stage.end(stage.launcher.submitted[0]))
    names = FileStorage.names

    def flaky(self: FileStorage, prefix: str) -> tuple[str, ...]:
        if 10.0 < stage.clock.now < 60.0:
            raise OSError(116, "Stale file handle")
        return names(self, prefix)

    monkeypatch.setattr(FileStorage, "names", flaky)
    assert stage.run(poll_s=5.0).exit_code is ExitCode.DONE
    assert len(stage.launcher.submitted) == 1


def test_a_storage_that_stays_away_is_an_error_that_leaves_the_job_alone(stage: ScriptedJob, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.launcher.scripts = [runs(stage)]

    def away(self: FileStorage, prefix: str) -> tuple[str, ...]:
        raise OSError(5, "Input/output error")

    stage.clock.at(10.0, lambda: monkeypatch.setattr(FileStorage, "names", away))
    with pytest.raises(UnreachableError, match="has not answered for 300 s"):
        stage.run(poll_s=20.0)
    assert stage.launcher.cancelled == []
