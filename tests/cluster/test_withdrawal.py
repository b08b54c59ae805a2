"""An attempt whose nodes the queue does not give back makes room for a smaller one: once, whoever dies, and never beside a job that works."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.attempt import list_attempts, read_claim, read_exit, read_spec, read_verdict
from cluster.closing import is_to_close
from cluster.launchers.protocol import JobState
from cluster.liveness import Life
from cluster.storage import AlreadyExistsError
from schemas.attempt import Cause, ExitRecord
from schemas.errors import ConfigError, Problem
from schemas.exit_code import ExitCode
from schemas.gang_shape import GangShape
from schemas.job import ElasticLimits, JobSpec
from tests.fakes.job_request import LIMITS, gang_request
from tests.fakes.scripted_job import LAYOUT, ScriptedJob, ends, never_starts, runs
from tests.fakes.scripted_launcher import Script

SHAPES = tuple(GangShape(num_nodes=nodes, ranks_per_node=1) for nodes in (4, 2, 1))
ELASTIC = ElasticLimits(shapes=SHAPES, smaller_after_s=600.0)
LOST_AFTER_S = 300.0


@pytest.fixture
def job(tmp_path: Path) -> ScriptedJob:
    return elastic(ScriptedJob(tmp_path), tmp_path)


def elastic(job: ScriptedJob, tmp_path: Path, **changes: Any) -> ScriptedJob:
    job.request = gang_request(tmp_path, num_nodes=4, ranks=1, **{"elastic": ELASTIC, **changes})
    return job


def ran_before(job: ScriptedJob) -> Script:
    """An attempt that worked, and was preempted after a commit."""
    return ends(job, ExitCode.INTERRUPTED, Cause.PREEMPTION, committed_step=10)


def waits(job: ScriptedJob, *, then: Script | None = None, at: float = 0.0, lets_go: bool = True) -> Script:
    """A job that waits in the queue. It starts at some time, unless it was taken back before; `lets_go`: whether the queue hears that."""

    def script(spec: JobSpec) -> JobState:
        def start() -> None:
            if job.launcher.states[spec.key] is JobState.PENDING and then is not None:
                job.launcher.states[spec.key] = then(spec)

        job.clock.at(max(at, job.clock.now + 1.0), start)
        return JobState.PENDING

    cancel = job.launcher.cancel

    def cancels(key: str) -> None:
        cancel(key)
        if lets_go and job.launcher.states.get(key) is JobState.PENDING:
            job.launcher.states[key] = JobState.ENDED

    job.launcher.cancel = cancels  # type: ignore[method-assign]
    return script


def sizes(job: ScriptedJob) -> list[int]:
    return [spec.num_nodes for spec in job.launcher.submitted]


def record_of(job: ScriptedJob, number: int) -> ExitRecord:
    record = read_exit(job.storage, job.attempt(number))
    assert record is not None
    return record


def test_nodes_that_are_not_given_back_are_done_without(job: ScriptedJob) -> None:
    job.launcher.scripts = [ran_before(job), waits(job), waits(job), ends(job)]
    assert job.run(poll_s=20.0).exit_code is ExitCode.DONE
    assert sizes(job) == [4, 4, 2, 1]
    assert 1200.0 < job.clock.now < 1400.0
    first, second = record_of(job, 1), record_of(job, 2)
    assert (first.cause, first.message) == (Cause.QUEUE, "the queue did not give 4 nodes within 10 min")
    assert second.message == "the queue did not give 2 nodes within 10 min"
    assert [spec.smaller_because for spec in job.launcher.submitted] == ["", "", first.message, second.message]
    assert job.launcher.cancelled == [spec.key for spec in job.launcher.submitted[1:3]]
    verdict = read_verdict(job.storage, job.attempt(1))
    assert verdict is not None
    assert verdict.decision == "restart"
    told = [view for view in job.views if view.attempt == 1][-1]
    assert (told.state, told.incidents[-1].evidence) == (Life.ENDED, (first.message,)), "who looks on hears of it"


def test_a_later_attempt_has_all_of_them_again(job: ScriptedJob) -> None:
    job.launcher.scripts = [ran_before(job), waits(job), ends(job, ExitCode.INTERRUPTED, Cause.TIME_LIMIT, committed_step=20), ends(job)]
    assert job.run(poll_s=20.0).exit_code is ExitCode.DONE
    assert sizes(job) == [4, 4, 2, 4]
    assert job.launcher.submitted[-1].smaller_because == ""


def test_the_first_attempt_waits_as_long_as_it_takes(job: ScriptedJob) -> None:
    job.launcher.scripts = [waits(job, then=ends(job), at=90_000.0)]
    assert job.run(poll_s=500.0).exit_code is ExitCode.DONE
    assert sizes(job) == [4]


def test_the_smallest_waits_as_long_as_it_takes(job: ScriptedJob) -> None:
    job.launcher.scripts = [ran_before(job), waits(job), waits(job), waits(job, then=ends(job), at=50_000.0)]
    assert job.run(poll_s=500.0).exit_code is ExitCode.DONE
    assert sizes(job) == [4, 4, 2, 1]


def test_without_smaller_shapes_every_attempt_waits(job: ScriptedJob, tmp_path: Path) -> None:
    elastic(job, tmp_path, elastic=None)
    job.launcher.scripts = [ran_before(job), waits(job, then=ends(job), at=50_000.0)]
    assert job.run(poll_s=500.0).exit_code is ExitCode.DONE
    assert sizes(job) == [4, 4]


def test_a_wait_uses_up_no_budget(job: ScriptedJob, tmp_path: Path) -> None:
    """The second attempt that works commits nothing new: it is the first in a row."""
    elastic(job, tmp_path, limits=LIMITS.model_copy(update={"max_attempts_without_progress": 2, "max_interruptions": 2, "max_failures": 0}))
    preempted = ends(job, ExitCode.INTERRUPTED, Cause.PREEMPTION, committed_step=10)
    job.launcher.scripts = [ran_before(job), waits(job), waits(job), preempted, waits(job), waits(job), ends(job)]
    assert job.run(poll_s=20.0).exit_code is ExitCode.DONE
    assert sizes(job) == [4, 4, 2, 1, 4, 2, 1]


def test_a_job_that_starts_while_it_is_withdrawn_works(job: ScriptedJob, monkeypatch: pytest.MonkeyPatch) -> None:
    job.launcher.scripts = [ran_before(job), waits(job)]
    create = job.storage.create_exclusive

    def job_is_faster(key: str, data: bytes) -> None:
        if key == job.attempt(1).claim:
            create(key, data.replace(b"supervisor:queue", b"some-job"))
            job.clock.at(job.clock.now + 60.0, lambda: job.end(job.launcher.submitted[1]))
            raise AlreadyExistsError(key)
        create(key, data)

    monkeypatch.setattr(job.storage, "create_exclusive", job_is_faster)
    assert job.run(poll_s=20.0).exit_code is ExitCode.DONE
    assert sizes(job) == [4, 4]
    assert job.launcher.cancelled == []


@pytest.mark.parametrize("state", [JobState.PENDING, JobState.UNKNOWN])
def test_a_queue_that_does_not_let_go_is_told_again_and_waited_for_so_long(job: ScriptedJob, state: JobState) -> None:
    """Its job loses the claim whenever it starts."""
    job.launcher.scripts = [ran_before(job), waits(job, lets_go=False), ends(job)]
    job.clock.at(700.0, lambda: job.launcher.states.update({job.launcher.submitted[1].key: state}))
    assert job.run(poll_s=20.0).exit_code is ExitCode.DONE
    assert sizes(job) == [4, 4, 2]
    assert 600.0 + LOST_AFTER_S < job.clock.now < 700.0 + LOST_AFTER_S
    assert len(job.launcher.cancelled) > 10


def dies(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("dies_at", ["claim.json", "exit.json", "verdict.json", "cancel"])
def test_who_dies_while_withdrawing_is_followed_by_another_who_goes_on(job: ScriptedJob, dies_at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dies right after the object is there, or when it is to tell the launcher."""
    job.launcher.scripts = [ran_before(job), waits(job), ends(job)]
    create = job.storage.create_exclusive

    def creates_and_dies(key: str, data: bytes) -> None:
        create(key, data)
        if key == f"{job.attempt(1).key}/{dies_at}":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(job.storage, "create_exclusive", creates_and_dies)
        if dies_at == "cancel":
            patch.setattr(job.launcher, "cancel", dies)
        with pytest.raises(KeyboardInterrupt):
            job.run(poll_s=20.0)
    assert sizes(job) == [4, 4]
    assert job.run(poll_s=20.0).exit_code is ExitCode.DONE
    assert sizes(job) == [4, 4, 2]
    assert record_of(job, 1).cause is Cause.QUEUE
    assert set(job.launcher.cancelled) == {job.launcher.submitted[1].key}


def test_another_supervisor_counts_the_wait_that_it_has_not_seen(job: ScriptedJob) -> None:
    job.launcher.scripts = [ran_before(job), waits(job), ends(job)]
    job.clock.at(400.0, dies)
    with pytest.raises(KeyboardInterrupt):
        job.run(poll_s=20.0)
    assert job.run(poll_s=20.0).exit_code is ExitCode.DONE
    assert 600.0 < job.clock.now < 700.0


def test_a_job_on_hold_does_not_wait_for_nodes(job: ScriptedJob) -> None:
    job.launcher.scripts = [ran_before(job), waits(job), ends(job)]
    job.clock.at(100.0, lambda: job.launcher.held.add(job.launcher.submitted[1].key))
    job.clock.at(5000.0, job.launcher.held.clear)
    assert job.run(poll_s=20.0).exit_code is ExitCode.DONE
    assert sizes(job) == [4, 4, 2]
    assert 5600.0 < job.clock.now < 5700.0


@pytest.mark.parametrize("state", [JobState.UNKNOWN, JobState.RUNNING])
def test_only_a_queue_that_says_so_keeps_a_job_waiting(job: ScriptedJob, state: JobState) -> None:
    """A job that Slurm starts, and whose nodes take long to boot, has its nodes."""
    job.launcher.scripts = [ran_before(job), never_starts(state)]
    job.clock.at(5000.0, lambda: ends(job)(job.launcher.submitted[1]))
    assert job.run(poll_s=200.0).exit_code is ExitCode.DONE
    assert sizes(job) == [4, 4]


def test_who_wishes_a_stop_gets_no_smaller_attempt(job: ScriptedJob) -> None:
    """The queue takes its time to hear of it."""
    job.launcher.scripts = [ran_before(job), waits(job, lets_go=False)]
    wished: list[bool] = []

    def hears() -> None:
        key = job.launcher.submitted[1].key
        job.launcher.states[key], job.launcher.causes[key] = JobState.ENDED, Cause.CANCELLED

    job.clock.at(590.0, lambda: wished.append(True))
    job.clock.at(800.0, hears)
    record = job.run(poll_s=20.0, stop_requested=lambda: bool(wished))
    assert (record.exit_code, record.cause) == (ExitCode.INTERRUPTED, Cause.CANCELLED)
    assert sizes(job) == [4, 4]


def refuses(_spec: JobSpec) -> JobState:
    raise ConfigError((Problem("cluster", "", "Requested node configuration is not available"),))


def test_fewer_nodes_are_better_than_those_that_fail(job: ScriptedJob) -> None:
    lost = runs(job, JobState.ENDED)
    job.launcher.scripts = [lost, lost, refuses, ends(job)]
    assert job.run(poll_s=20.0).exit_code is ExitCode.DONE
    assert [(spec.num_nodes, spec.excluded_nodes) for spec in job.launcher.submitted] == [(4, ()), (4, ()), (4, ("node",)), (2, ("node",))]
    assert record_of(job, 2).message == "scripted has no 4 nodes other than node for it"
    assert any("node configuration" in line for line in record_of(job, 2).incidents[-1].evidence)


def test_what_is_refused_at_every_size_is_refused(job: ScriptedJob) -> None:
    job.launcher.scripts = [ran_before(job), refuses, refuses, refuses]
    with pytest.raises(ConfigError):
        job.run(poll_s=20.0)
    assert sizes(job) == [4, 4, 2, 1]


def test_what_is_refused_at_first_is_not_tried_smaller(job: ScriptedJob) -> None:
    job.launcher.scripts = [refuses]
    with pytest.raises(ConfigError):
        job.run()
    assert sizes(job) == [4]


def test_a_smaller_attempt_that_was_never_submitted_is_submitted_as_it_is(job: ScriptedJob) -> None:
    def dies_submitting(_spec: JobSpec) -> JobState:
        raise KeyboardInterrupt

    elastic(job, Path(job.storage.url).parent, elastic=ELASTIC.model_copy(update={"grow_after_s": 60.0}), time_limit_s=100.0)
    job.launcher.scripts = [ran_before(job), waits(job), dies_submitting, ends(job)]
    with pytest.raises(KeyboardInterrupt):
        job.run(poll_s=20.0)
    assert job.run().exit_code is ExitCode.DONE
    assert [(spec.attempt, spec.num_nodes, spec.time_limit_s) for spec in job.launcher.submitted[1:]] == [(1, 4, 100.0), (2, 2, 60.0), (2, 2, 60.0)]


# ---- whatever happens ----------------------------------------------------------------------------------------------------


@dataclass
class Happening:
    """What becomes of one submission."""

    starts_after_s: float
    works_s: float
    ends: Cause
    lets_go: bool
    """Whether the queue hears that it shall let go of the job."""


HAPPENINGS = st.builds(
    Happening,
    starts_after_s=st.sampled_from([0.0, 300.0, 595.0, 600.0, 605.0, 2000.0]),
    works_s=st.sampled_from([0.0, 50.0, 1000.0]),
    ends=st.sampled_from([Cause.PREEMPTION, Cause.TIME_LIMIT, Cause.NODE]),
    lets_go=st.booleans(),
)


@dataclass
class Queue:
    """A queue that gives what it wants to, and jobs that work if they get their claim."""

    job: ScriptedJob
    happenings: list[Happening]
    working: set[str] = field(default_factory=set)
    worked: list[int] = field(default_factory=list)

    def take(self, spec: JobSpec) -> JobState:
        """Takes a submission."""
        happening = self.happenings.pop(0) if self.happenings else Happening(1.0, works_s=1.0, ends=Cause.FINISHED, lets_go=True)
        self.job.clock.at(self.job.clock.now + happening.starts_after_s, lambda: self._start(spec, happening))
        self.lets_go[spec.key] = happening.lets_go
        return JobState.PENDING

    lets_go: dict[str, bool] = field(default_factory=dict)

    def cancel(self, key: str) -> None:
        """A job that waits leaves the queue; one that works stops by itself."""
        if self.job.launcher.states.get(key) is JobState.PENDING and self.lets_go[key]:
            self.job.launcher.states[key] = JobState.ENDED

    def _start(self, spec: JobSpec, happening: Happening) -> None:
        if self.job.launcher.states[spec.key] is not JobState.PENDING:
            return
        try:
            self.job.claim(spec)
        except AlreadyExistsError:
            self.job.launcher.states[spec.key] = JobState.ENDED
            return
        assert self.working == set(), "two jobs work at the same time"
        self.working.add(spec.key)
        self.worked.append(spec.num_nodes)
        self.job.launcher.states[spec.key] = JobState.RUNNING
        self.job.clock.at(self.job.clock.now + happening.works_s, lambda: self._end(spec, happening))

    def _end(self, spec: JobSpec, happening: Happening) -> None:
        self.working.remove(spec.key)
        self.job.launcher.states[spec.key] = JobState.ENDED
        code = ExitCode.DONE if happening.ends is Cause.FINISHED else ExitCode.INTERRUPTED
        self.job.end(spec, code, happening.ends, committed_step=10 * len(self.worked))


@pytest.mark.slow
@settings(max_examples=25)
@given(st.lists(HAPPENINGS, max_size=8), st.lists(st.integers(1, 6000), max_size=3))
def test_one_job_works_at_a_time_and_the_training_ends(happenings: list[Happening], deaths: list[int]) -> None:
    """Whatever the queue gives and when, and however often supervisors die."""
    with tempfile.TemporaryDirectory() as folder:
        job = elastic(ScriptedJob(Path(folder)), Path(folder))
        queue = Queue(job, list(happenings))
        job.launcher.scripts = Endless(queue.take)
        job.launcher.cancel = queue.cancel  # type: ignore[method-assign]
        left = sorted(deaths)

        def sleep(seconds: float) -> None:
            job.clock.sleep(seconds)
            if left and job.clock.now > left[0]:
                left.pop(0)
                raise KeyboardInterrupt

        for _ in range(len(deaths) + 1):
            try:
                record = job.run(poll_s=45.0, sleep=sleep)
                break
            except KeyboardInterrupt:
                continue
        assert record.exit_code is ExitCode.DONE
        attempts = [job.attempt(number) for number in list_attempts(job.storage, LAYOUT, step_name="")]
        specs, claims = [read_spec(job.storage, attempt) for attempt in attempts], [read_claim(job.storage, attempt) for attempt in attempts]
        assert {(spec.num_nodes, spec.ranks_per_node) for spec in specs} <= {(shape.num_nodes, shape.ranks_per_node) for shape in SHAPES}
        assert all(claim is not None for claim in claims)
        begun = [spec.num_nodes for spec, claim in zip(specs, claims, strict=True) if claim is not None and not is_to_close(claim)]
        assert begun == queue.worked, "what was withdrawn never works"
        for earlier, later in pairwise(specs):
            shrank = record_of(job, earlier.attempt).cause is Cause.QUEUE
            assert later.num_nodes == (max(nodes for nodes in (2, 1) if nodes < earlier.num_nodes) if shrank else 4)


class Endless(list[Callable[[JobSpec], JobState]]):
    """One script for all submissions."""

    def __init__(self, script: Callable[[JobSpec], JobState]) -> None:
        super().__init__()
        self._script = script

    def pop(self, _index: Any = -1) -> Callable[[JobSpec], JobState]:
        return self._script
