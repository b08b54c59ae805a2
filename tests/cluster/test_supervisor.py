"""What the supervisor does, told by what storage and launcher say. No process is started, and no time passes."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.attempt import list_attempts, read_exit, read_spec, read_verdict
from cluster.launchers.protocol import JobState
from cluster.layout import ArtifactLayout, AttemptLayout
from cluster.liveness import Life
from cluster.process import process_table
from cluster.storage import FileStorage
from cluster.supervisor import JobView, run_job
from schemas.canonical import canonical_json
from schemas.errors import ConfigError, InterruptedRunError, Problem, UnreachableError
from schemas.exit_code import ExitCode
from schemas.job import Cause, Claim, ExitRecord, Heartbeat, Incident, ItemRecord, JobSpec, RankPhase, RankProgress
from tests.fakes.job_request import ARTIFACT, LIMITS, array_request, gang_request
from tests.fakes.scripted_launcher import Script, ScriptedLauncher, StillClock

LAYOUT = ArtifactLayout(ARTIFACT)


class Stage:
    """A storage, a launcher with scripts, a clock, and the request."""

    def __init__(self, tmp_path: Path, *scripts: Script) -> None:
        self.storage = FileStorage(tmp_path / "data")
        self.launcher = ScriptedLauncher(list(scripts))
        self.clock = StillClock()
        self.request = gang_request(tmp_path)
        self.views: list[JobView] = []

    def run(self, **options: Any) -> ExitRecord:
        options = {"request": self.request, "stop_requested": lambda: False, "clock": self.clock, "sleep": self.clock.sleep, **options}
        return run_job(options.pop("request"), storage=self.storage, launcher=self.launcher, on_view=self.views.append, **options)

    def attempt(self, number: int) -> AttemptLayout:
        return LAYOUT.attempt(self.request.step_name, number)

    def put(self, key: str, value: Any) -> None:
        self.storage.create_exclusive(key, canonical_json(value))

    def claim(self, spec: JobSpec, *, dead: bool = False) -> None:
        """The attempt's agent claims it: one of another machine, or a dead one of this machine."""
        table = process_table() if dead else "another boot/1"
        claim = Claim(key=spec.key, host="node", pid=2**22 + 1, pid_started=1.0, process_table=table, submission="s", claimed_at=time.time())
        self.put(LAYOUT.attempt(spec.step_name, spec.attempt).claim, claim)

    def beat(self, spec: JobSpec, *, sequence: int = 0, step: int = 7, items_done: int = 0) -> None:
        rank = RankProgress(rank=0, pid=1, phase=RankPhase.STEPPING, step=step, committed_step=5, total_steps=20, at=time.time())
        beat = Heartbeat(
            key=spec.key, node_rank=0, host="node", agent_pid=1, epoch=3, sequence=sequence, at=time.time(), ranks=(rank,), items_done=items_done
        )
        self.put(LAYOUT.attempt(spec.step_name, spec.attempt).heartbeat(0, sequence), beat)

    def end(self, spec: JobSpec, code: ExitCode = ExitCode.DONE, cause: Cause = Cause.FINISHED, committed_step: int = -1) -> None:
        incidents = ()
        if code is not ExitCode.DONE:
            incidents = (
                Incident(
                    epoch=0,
                    at=1.0,
                    cause=cause,
                    rank=1,
                    step=7,
                    committed_step=committed_step,
                    exit_status=1,
                    evidence=("x",),
                    decision="stop",
                    reason="y",
                ),
            )
        record = ExitRecord(key=spec.key, exit_code=code, cause=cause, message=f"ended: {cause.value}", epoch=0, incidents=incidents, ended_at=1.0)
        self.put(LAYOUT.attempt(spec.step_name, spec.attempt).exit, record)


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def ends(stage: Stage, code: ExitCode = ExitCode.DONE, cause: Cause = Cause.FINISHED, committed_step: int = -1) -> Script:
    """A job that claims, ends at once and is gone."""

    def script(spec: JobSpec) -> JobState:
        stage.claim(spec)
        stage.end(spec, code, cause, committed_step)
        return JobState.ABSENT

    return script


def runs(stage: Stage, state: JobState = JobState.RUNNING, *, dead: bool = False) -> Script:
    """A job that claims and gives one sign of life."""

    def script(spec: JobSpec) -> JobState:
        stage.claim(spec, dead=dead)
        stage.beat(spec)
        return state

    return script


def never_starts(state: JobState) -> Script:
    return lambda _spec: state


def test_submits_follows_and_returns_the_exit_record(stage: Stage) -> None:
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


def test_a_finished_job_is_not_run_again(stage: Stage) -> None:
    stage.launcher.scripts = [ends(stage)]
    stage.run()
    assert stage.run().exit_code is ExitCode.DONE
    assert len(stage.launcher.submitted) == 1


def test_a_finished_job_whose_result_is_missing_is_run_again(stage: Stage) -> None:
    stage.launcher.scripts = [ends(stage), ends(stage)]
    stage.run()
    stage.run(is_complete=lambda: False)
    assert [spec.attempt for spec in stage.launcher.submitted] == [0, 1]


def test_an_array_with_a_missing_item_is_run_again(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
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


def test_a_running_attempt_is_adopted(stage: Stage) -> None:
    stage.launcher.scripts = [runs(stage)]
    with pytest.raises(KeyboardInterrupt):  # the first supervisor dies while following
        stage.run(poll_s=0.5, stop_requested=_raises_at_call(3))
    stage.clock.at(stage.clock.now + 5.0, lambda: stage.end(stage.launcher.submitted[0]))
    assert stage.run().exit_code is ExitCode.DONE
    assert len(stage.launcher.submitted) == 1


def _raises_at_call(number: int) -> Callable[[], bool]:
    calls = iter(range(1, 1000))

    def asked() -> bool:
        if next(calls) >= number:
            raise KeyboardInterrupt
        return False

    return asked


def test_killed_between_intent_and_submission_the_same_attempt_is_submitted(stage: Stage) -> None:
    def dies(_spec: JobSpec) -> JobState:
        raise KeyboardInterrupt

    stage.launcher.scripts = [dies, ends(stage)]
    with pytest.raises(KeyboardInterrupt):
        stage.run()
    assert stage.run().exit_code is ExitCode.DONE
    first, second = stage.launcher.submitted
    assert (first.key, first.attempt) == (second.key, second.attempt)


def test_killed_after_the_launcher_took_it_the_job_is_adopted(stage: Stage) -> None:
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


def test_a_never_submitted_attempt_of_another_request_is_closed(stage: Stage) -> None:
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


def refuses_with(stage: Stage, state: JobState, *, later: JobState | None = None) -> Script:
    """A submission that fails; `later` is what the launcher says of it ten seconds afterwards."""

    def script(spec: JobSpec) -> JobState:
        stage.launcher.states[spec.key] = state
        if later is not None:
            stage.clock.at(stage.clock.now + 10.0, lambda: stage.launcher.states.update({spec.key: later}))
        raise UnreachableError("sbatch says no")

    return script


@pytest.mark.parametrize("state", [JobState.PENDING, JobState.RUNNING, JobState.ENDED])
def test_a_submission_that_failed_and_was_taken_all_the_same_is_followed(stage: Stage, state: JobState) -> None:
    def taken(spec: JobSpec) -> JobState:
        runs(stage)(spec)
        return refuses_with(stage, state)(spec)

    stage.launcher.scripts = [taken]
    stage.clock.at(5.0, lambda: stage.end(stage.launcher.submitted[0]))
    assert stage.run().exit_code is ExitCode.DONE
    assert len(stage.launcher.submitted) == 1


def test_what_the_launcher_will_never_take_is_over_and_the_next_start_submits_anew(stage: Stage) -> None:
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


def test_nothing_is_submitted_again_before_the_launcher_can_be_asked(stage: Stage) -> None:
    stage.launcher.scripts = [refuses_with(stage, JobState.UNKNOWN, later=JobState.ABSENT), ends(stage)]
    assert stage.run().exit_code is ExitCode.DONE
    first, second = stage.launcher.submitted
    assert first.key == second.key
    assert stage.clock.now >= 10.0


def test_a_launcher_that_nobody_can_ask_is_given_up(stage: Stage) -> None:
    stage.launcher.scripts = [refuses_with(stage, JobState.UNKNOWN)]
    with pytest.raises(UnreachableError):
        stage.run(poll_s=20.0)
    assert stage.clock.now >= 300.0
    assert len(stage.launcher.submitted) == 1


def test_silence_of_the_scheduler_makes_no_new_attempt(stage: Stage) -> None:
    stage.launcher.scripts = [runs(stage, JobState.UNKNOWN)]
    stage.clock.at(5_000.0, lambda: stage.end(stage.launcher.submitted[0]))
    assert stage.run(poll_s=100.0).exit_code is ExitCode.DONE
    assert len(stage.launcher.submitted) == 1
    assert Life.UNKNOWN in {view.state for view in stage.views}


def test_absence_shorter_than_lost_after_makes_no_new_attempt(stage: Stage) -> None:
    stage.launcher.scripts = [runs(stage, JobState.ABSENT)]
    stage.clock.at(280.0, lambda: stage.end(stage.launcher.submitted[0]))
    stage.run(poll_s=20.0)
    assert len(stage.launcher.submitted) == 1


@pytest.mark.parametrize("has_started", [False, True])
def test_a_launcher_that_forgets_a_job_for_a_moment_ends_nothing(stage: Stage, has_started: bool) -> None:
    """The job has been silent for hours, and the launcher has vouched for it all the while."""
    stage.launcher.scripts = [runs(stage) if has_started else never_starts(JobState.PENDING)]

    def says(state: JobState) -> Callable[[], None]:
        return lambda: stage.launcher.states.update({stage.launcher.submitted[0].key: state})

    stage.clock.at(9_000.0, says(JobState.ABSENT))
    stage.clock.at(9_250.0, says(JobState.RUNNING))
    stage.clock.at(9_400.0, lambda: stage.end(stage.launcher.submitted[0]))
    assert stage.run(poll_s=20.0).exit_code is ExitCode.DONE
    assert len(stage.launcher.submitted) == 1


def test_absence_longer_than_lost_after_makes_one_under_a_fence(stage: Stage) -> None:
    stage.launcher.scripts = [runs(stage, JobState.ABSENT), ends(stage)]
    assert stage.run(poll_s=20.0).exit_code is ExitCode.DONE
    assert [spec.attempt for spec in stage.launcher.submitted] == [0, 1]
    lost = read_exit(stage.storage, stage.attempt(0))
    assert lost is not None
    assert (lost.cause, lost.exit_code, lost.incidents[-1].step) == (Cause.NODE, ExitCode.INTERRUPTED, 7)
    assert stage.clock.now >= 300.0


def test_a_dead_agent_of_this_machine_is_replaced_at_once(stage: Stage) -> None:
    stage.launcher.scripts = [runs(stage, JobState.ABSENT, dead=True), ends(stage)]
    assert stage.run().exit_code is ExitCode.DONE
    assert stage.clock.now < 5.0
    killed = read_exit(stage.storage, stage.attempt(0))
    assert killed is not None
    assert killed.cause is Cause.KILLED


def test_a_job_that_ended_before_its_agent_started_is_replaced(stage: Stage) -> None:
    stage.launcher.scripts = [never_starts(JobState.ENDED), ends(stage)]
    assert stage.run().exit_code is ExitCode.DONE
    assert [spec.attempt for spec in stage.launcher.submitted] == [0, 1]
    lost = [view for view in stage.views if view.attempt == 0][-1]
    assert lost.state is Life.ENDED
    assert lost.incidents[-1].evidence[0].startswith("the job ended before its agent started"), "who looks on hears of it"


def test_agents_that_never_start_stop_by_policy(stage: Stage) -> None:
    stage.launcher.scripts = [never_starts(JobState.ENDED)] * 3
    record = stage.run()
    assert record.exit_code is ExitCode.POLICY
    assert "3 starts in a row brought nothing new" in record.message
    assert len(stage.launcher.submitted) == 3


def test_a_job_that_starts_while_it_is_being_closed_lives(stage: Stage) -> None:
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


@pytest.mark.parametrize(
    "code", [ExitCode.USAGE, ExitCode.DATA_VERDICT, ExitCode.GATE, ExitCode.POLICY, ExitCode.OUT_OF_MEMORY, ExitCode.VERIFICATION]
)
def test_what_the_agent_has_judged_is_final(stage: Stage, code: ExitCode) -> None:
    stage.launcher.scripts = [ends(stage, code, Cause.USER_CODE)]
    assert stage.run().exit_code is code
    verdict = read_verdict(stage.storage, stage.attempt(0))
    assert verdict is not None
    assert verdict.decision == "stop"


def test_asked_again_after_a_stop_a_new_attempt_starts_with_fresh_budgets(stage: Stage) -> None:
    stage.launcher.scripts = [ends(stage, ExitCode.POLICY, Cause.USER_CODE), ends(stage)]
    assert stage.run().exit_code is ExitCode.POLICY
    assert stage.run().exit_code is ExitCode.DONE
    assert [spec.attempt for spec in stage.launcher.submitted] == [0, 1]


def test_preempted_attempts_are_followed_by_others_while_they_commit(stage: Stage) -> None:
    preempted = [ends(stage, ExitCode.INTERRUPTED, Cause.PREEMPTION, committed_step=step) for step in (5, 10, 15, 20)]
    stage.launcher.scripts = [*preempted, ends(stage)]
    assert stage.run().exit_code is ExitCode.DONE
    assert len(stage.launcher.submitted) == 5


def test_preempted_attempts_without_progress_stop_by_policy(stage: Stage) -> None:
    stage.launcher.scripts = [ends(stage, ExitCode.INTERRUPTED, Cause.PREEMPTION, committed_step=5) for _ in range(9)]
    record = stage.run()
    assert record.exit_code is ExitCode.POLICY
    assert len(stage.launcher.submitted) == 4  # the first committed step 5, three more brought nothing


def test_budgets_outlive_the_supervisor(stage: Stage) -> None:
    stage.request = stage.request.model_copy(update={"limits": stage.request.limits.model_copy(update={"max_interruptions": 1})})
    stage.launcher.scripts = [ends(stage, ExitCode.INTERRUPTED, Cause.PREEMPTION, committed_step=5), runs(stage)]
    with pytest.raises(KeyboardInterrupt):
        stage.run(stop_requested=_raises_at_call(6))
    assert len(stage.launcher.submitted) == 2
    stage.end(stage.launcher.submitted[1], ExitCode.INTERRUPTED, Cause.PREEMPTION, committed_step=9)
    record = stage.run()
    assert record.exit_code is ExitCode.POLICY
    assert "2 interruptions" in record.message
    assert len(stage.launcher.submitted) == 2


def test_allocations_that_end_are_chained_for_as_long_as_each_commits_something(stage: Stage) -> None:
    ended = [ends(stage, ExitCode.INTERRUPTED, Cause.TIME_LIMIT, committed_step=step) for step in (10, 20, 30, 40)]
    stage.request = gang_request(Path(stage.storage.url).parent, limits=LIMITS.model_copy(update={"max_interruptions": 0}))
    stage.launcher.scripts = [*ended, ends(stage)]
    assert stage.run().exit_code is ExitCode.DONE
    assert len(stage.launcher.submitted) == 5


def test_allocations_that_end_without_a_commit_are_not_asked_for_for_ever(stage: Stage) -> None:
    stage.launcher.scripts = [ends(stage, ExitCode.INTERRUPTED, Cause.TIME_LIMIT, committed_step=step) for step in (10, 10, 10, 10)]
    record = stage.run()
    assert record.exit_code is ExitCode.POLICY
    assert len(stage.launcher.submitted) == 4


def test_a_stop_is_asked_of_the_job_and_its_end_awaited(stage: Stage) -> None:
    stage.launcher.scripts = [runs(stage)]
    wished = []
    stage.clock.at(2.0, lambda: wished.append(True))
    stage.clock.at(9.0, lambda: stage.end(stage.launcher.submitted[0], ExitCode.INTERRUPTED, Cause.CANCELLED))
    record = stage.run(stop_requested=lambda: bool(wished))
    assert (record.exit_code, record.cause) == (ExitCode.INTERRUPTED, Cause.CANCELLED)
    assert stage.launcher.cancelled == [stage.launcher.submitted[0].key]
    assert stage.storage.exists(stage.attempt(0).cancel)


def test_a_job_that_waits_is_cancelled_until_the_launcher_has_heard(stage: Stage) -> None:
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


def preempted(stage: Stage, *, state: JobState, cause: Cause | None = None, later: JobState | None = None) -> Script:
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
def test_a_job_that_somebody_cancelled_is_not_submitted_again(stage: Stage, first: JobState) -> None:
    """The launcher may know it only half a minute later."""
    later = None if first is JobState.ENDED else JobState.ENDED
    stage.launcher.scripts = [preempted(stage, state=first, cause=Cause.CANCELLED, later=later)]
    record = stage.run()
    assert record.exit_code is ExitCode.INTERRUPTED
    assert "cancelled by somebody" in record.message
    assert len(stage.launcher.submitted) == 1


def test_what_the_launcher_knows_of_a_signal_decides(stage: Stage) -> None:
    stage.launcher.scripts = [preempted(stage, state=JobState.ENDED, cause=Cause.NODE), ends(stage)]
    assert stage.run().exit_code is ExitCode.DONE
    verdict = read_verdict(stage.storage, stage.attempt(0))
    assert verdict is not None
    assert verdict.reason.startswith("node: restart")


def test_a_node_that_was_lost_twice_is_avoided(stage: Stage) -> None:
    stage.launcher.scripts = [runs(stage, JobState.ENDED), runs(stage, JobState.ENDED), ends(stage)]
    assert stage.run().exit_code is ExitCode.DONE
    assert [spec.excluded_nodes for spec in stage.launcher.submitted] == [(), (), ("node",)]


def test_where_too_few_nodes_are_left_none_is_avoided(stage: Stage) -> None:
    def refuses(_spec: JobSpec) -> JobState:
        raise ConfigError((Problem("cluster", "", "Requested node configuration is not available"),))

    stage.launcher.scripts = [runs(stage, JobState.ENDED), runs(stage, JobState.ENDED), refuses, ends(stage)]
    assert stage.run().exit_code is ExitCode.DONE
    assert [(spec.attempt, spec.excluded_nodes) for spec in stage.launcher.submitted[2:]] == [(2, ("node",)), (2, ())]


def test_a_job_that_was_put_back_into_the_queue_is_taken_out_of_it(stage: Stage) -> None:
    stage.launcher.scripts = [preempted(stage, state=JobState.PENDING), ends(stage)]
    assert stage.run().exit_code is ExitCode.DONE
    first, _ = stage.launcher.submitted
    assert stage.launcher.cancelled == [first.key]


def test_resumed_after_a_cancel_it_goes_on(stage: Stage) -> None:
    stage.launcher.scripts = [ends(stage, ExitCode.INTERRUPTED, Cause.CANCELLED), ends(stage)]
    assert stage.run().exit_code is ExitCode.INTERRUPTED
    assert stage.run().exit_code is ExitCode.DONE


def test_a_stop_before_the_submission_submits_nothing(stage: Stage) -> None:
    with pytest.raises(InterruptedRunError):
        stage.run(stop_requested=lambda: True)
    assert stage.launcher.submitted == []


def test_a_storage_that_fails_for_a_while_is_asked_again(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_storage_that_stays_away_is_an_error_that_leaves_the_job_alone(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.launcher.scripts = [runs(stage)]

    def away(self: FileStorage, prefix: str) -> tuple[str, ...]:
        raise OSError(5, "Input/output error")

    stage.clock.at(10.0, lambda: monkeypatch.setattr(FileStorage, "names", away))
    with pytest.raises(UnreachableError, match="has not answered for 300 s"):
        stage.run(poll_s=20.0)
    assert stage.launcher.cancelled == []


def test_two_supervisors_make_one_attempt(stage: Stage) -> None:
    """The second finds the intent of the first before the job has started."""

    def meanwhile(spec: JobSpec) -> JobState:
        stage.claim(spec)
        stage.end(spec)
        other = Stage.__new__(Stage)
        other.__dict__ = {**stage.__dict__, "launcher": ScriptedLauncher([])}
        assert other.run().key == spec.key
        assert other.launcher.submitted == []
        return JobState.RUNNING

    stage.launcher.scripts = [meanwhile]
    assert stage.run().exit_code is ExitCode.DONE
    assert list_attempts(stage.storage, LAYOUT, step_name="") == (0,)


def test_jobs_of_one_artifact_stay_apart_by_step_name(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    stage.launcher.scripts = [ends(stage), ends(stage)]
    for step_name in ("scan", "merge"):
        stage.request = stage.request.model_copy(update={"step_name": step_name})
        stage.run()
        assert read_spec(stage.storage, stage.attempt(0)).step_name == step_name
    assert len(stage.launcher.submitted) == 2
    assert stage.storage.names(LAYOUT.attempts) == ("merge-0000", "scan-0000")
