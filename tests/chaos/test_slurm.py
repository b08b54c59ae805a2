"""Lives of a Slurm job on a real cluster, and what its commands may do to the supervisor: whatever happens, one job takes effect."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.attempt import read_exit, read_heartbeats, read_submitted, read_verdict
from cluster.closing import close
from cluster.launchers.slurm_queue import SlurmError, call
from cluster.liveness import Life
from cluster.supervisor import JobView
from schemas.canonical import canonical_json
from schemas.errors import ConfigError
from schemas.execution_config import ClusterConfig, ClusterKind
from schemas.exit_code import ExitCode
from schemas.job import AttemptVerdict, Cause, ExitRecord, Heartbeat
from tests.chaos.slurm_trouble import (
    MAIN,
    Shims,
    is_pending,
    job_ids,
    leaves_nothing,
    partition_down,
    repair,
    slurm,
    slurm_job,
    starts,
    supervising,
    sweep,
)
from tests.fakes.job_request import array_request, gang_request
from tests.fakes.live_job import LiveJob, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.slurm, pytest.mark.usefixtures("cluster")]

exhaustive = pytest.mark.exhaustive
"""The others take less than a minute together."""

LOST_AFTER_S = 4.0
SAVED_AFTER_S = 3.0
"""A controller that dies sooner after a submission has not saved it, and forgets the job."""
CPU = ClusterConfig(kind=ClusterKind.SLURM, queue="cpu")
"""The partition that tests switch off."""
STEPS = {"steps": 40, "step_s": 0.05, "commit_every": 5}

MakeJob = Callable[..., LiveJob]


@pytest.fixture
def cluster(slurm_cluster: Any) -> Iterator[Any]:
    """The cluster of all tests, whole again afterwards."""
    yield slurm_cluster
    repair(slurm_cluster)


@pytest.fixture
def make_job(cluster: Any, tmp_path: Path) -> Iterator[MakeJob]:
    """Makes jobs that have ended when the test has."""
    made: list[LiveJob] = []

    def make(*, cluster: ClusterConfig = MAIN, options: dict[str, Any] | None = None, **changes: Any) -> LiveJob:
        request = gang_request(tmp_path, options={**STEPS, **(options or {})}, **{"lost_after_s": LOST_AFTER_S, **changes})
        made.append(slurm_job(request, cluster=cluster))
        return made[-1]

    yield make
    repair(cluster)
    for job in made:
        sweep(job)


@pytest.fixture
def shims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shims:
    return Shims(tmp_path / "commands", monkeypatch)


def works(view: JobView) -> bool:
    return view.committed_step >= 5


def after(seconds: float) -> Callable[[JobView], bool]:
    """Comes true so long after now."""
    until = time.monotonic() + seconds
    return lambda _view: time.monotonic() > until


def record_of(job: LiveJob, number: int) -> ExitRecord:
    record = read_exit(job.storage, job.attempt(number))
    assert record is not None
    return record


def went_through(job: LiveJob, record: ExitRecord, *, attempts: list[int]) -> None:
    """The job is done, these attempts took effect in this order, and nothing is left."""
    assert record.exit_code is ExitCode.DONE, record.message
    assert starts(job) == attempts, record.incidents
    wait_until(lambda: leaves_nothing(job))


# ---- what happens to nodes and to the controller -----------------------------------------------------------------------


def lose_node(job: LiveJob, cluster: Any, node_rank: int, *, tell_slurm: bool) -> str:
    host = next(beat.host for beat in read_heartbeats(job.storage, job.attempt()) if beat.node_rank == node_rank)
    cluster.kill(host)
    if tell_slurm:  # what it finds out by itself after its SlurmdTimeout
        slurm("scontrol", "update", f"NodeName={host}", "State=DOWN", "Reason=test")
    return host


@pytest.mark.parametrize(
    ("node_rank", "tell_slurm"),
    [(0, True), pytest.param(1, True, marks=exhaustive), pytest.param(0, False, marks=exhaustive)],
)
def test_after_a_node_has_lost_power_the_next_attempt_runs_on_those_that_are_left(
    make_job: MakeJob, cluster: Any, node_rank: int, tell_slurm: bool
) -> None:
    job, lost = make_job(num_nodes=2, ranks=1, options={"steps": 60}, lost_after_s=60.0, grace_s=1.0), []
    job.when(works, lambda: lost.append(lose_node(job, cluster, node_rank, tell_slurm=tell_slurm)))
    record = job.run()
    starts_before = starts(job).count(0)  # ranks that wait for the lost ones hang, and may start again before anybody knows why
    went_through(job, record, attempts=[0] * starts_before + [1])
    assert lost[0] not in {beat.host for beat in read_heartbeats(job.storage, job.attempt(1))}
    verdict = read_verdict(job.storage, job.attempt(0))
    assert verdict is not None
    assert verdict.reason.startswith("node: restart")


def test_a_controller_that_dies_and_comes_back_does_not_touch_a_running_job(make_job: MakeJob, cluster: Any) -> None:
    job = make_job(options={"steps": 120})

    def kill() -> None:
        cluster.kill("slurmctld")
        job.when(after(1.0), lambda: cluster.start("slurmctld"))

    job.when(works, lambda: job.when(after(SAVED_AFTER_S), kill))
    went_through(job, job.run(), attempts=[0])
    assert record_of(job, 0).incidents == ()


@exhaustive
def test_a_job_ends_without_the_controller(make_job: MakeJob, cluster: Any) -> None:
    job = make_job(options={"steps": 120})
    job.when(works, lambda: job.when(after(SAVED_AFTER_S), lambda: cluster.kill("slurmctld")))
    record = job.run()
    cluster.start("slurmctld")
    went_through(job, record, attempts=[0])


@exhaustive
def test_a_submission_waits_for_the_controller(make_job: MakeJob, cluster: Any) -> None:
    job = make_job(lost_after_s=60.0)
    cluster.kill("slurmctld")
    back = threading.Timer(5.0, cluster.start, ["slurmctld"])
    back.start()
    record = job.run()
    back.join()
    went_through(job, record, attempts=[0])


@exhaustive
def test_a_controller_that_forgets_a_job_costs_one_attempt(make_job: MakeJob, cluster: Any) -> None:
    """What was submitted in the last seconds before its death it does not know afterwards."""
    job = make_job(cluster=CPU)

    def forget() -> None:
        cluster.kill("slurmctld")
        for path in (cluster.folder / "state").glob("job*"):
            path.unlink()
        cluster.start("slurmctld")
        wait_until(cluster.healthy)

    with partition_down("cpu"):  # which the controller forgets, too
        job.when(is_pending, forget)
        record = job.run()
    went_through(job, record, attempts=[1])


# ---- what people do to jobs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_nodes", [1, pytest.param(2, marks=exhaustive)])
def test_who_cancels_a_running_job_wants_it_to_end(make_job: MakeJob, num_nodes: int) -> None:
    job = make_job(num_nodes=num_nodes, ranks=1)
    job.when(works, lambda: slurm("scancel", *job_ids(job)))
    record = job.run()
    assert record.exit_code is ExitCode.INTERRUPTED
    assert "cancelled" in record.message
    assert job.attempts == (0,)
    verdict = read_verdict(job.storage, job.attempt(0))
    assert verdict is not None
    assert verdict.decision == "stop"
    wait_until(lambda: leaves_nothing(job))
    went_through(job, job.run(), attempts=[0, 1])


def test_who_cancels_a_waiting_job_wants_it_to_end(make_job: MakeJob) -> None:
    job = make_job(cluster=CPU)
    with partition_down("cpu"):
        job.when(is_pending, lambda: slurm("scancel", *job_ids(job)))
        record = job.run()
    assert (record.exit_code, record.cause) == (ExitCode.INTERRUPTED, Cause.CANCELLED)
    assert job.attempts == (0,)
    assert starts(job) == []


@exhaustive
def test_a_cancelled_job_whose_agents_had_no_time_for_a_word_is_known_by_slurm(make_job: MakeJob) -> None:
    job = make_job(num_nodes=2, ranks=1, options={"step_s": 3.0, "commit_every": 1})

    def cancel() -> None:
        slurm("scancel", *job_ids(job))
        job.sweep()  # as Slurm does itself after its KillWait

    job.when(lambda view: view.committed_step >= 1, cancel)
    record = job.run()
    assert (record.exit_code, record.cause) == (ExitCode.INTERRUPTED, Cause.CANCELLED)
    assert job.attempts == (0,)
    wait_until(lambda: leaves_nothing(job))


def test_slurm_does_not_start_a_job_again_by_itself(make_job: MakeJob) -> None:
    job = make_job()

    def requeue() -> None:
        with pytest.raises(AssertionError, match="disabled"):
            slurm("scontrol", "requeue", *job_ids(job))

    job.when(works, requeue)
    went_through(job, job.run(), attempts=[0])


@exhaustive
def test_a_job_that_is_put_back_into_the_queue_by_force_is_continued_by_a_new_attempt(make_job: MakeJob) -> None:
    job = make_job(options={"steps": 80})

    def requeue() -> None:
        (job_id,) = job_ids(job)
        slurm("scontrol", "update", f"JobId={job_id}", "Requeue=1")
        slurm("scontrol", "requeue", job_id)

    job.when(works, requeue)
    went_through(job, job.run(), attempts=[0, 1])


@exhaustive
def test_a_job_on_hold_is_waited_for(make_job: MakeJob) -> None:
    job = make_job(cluster=CPU)

    def hold() -> None:
        slurm("scontrol", "hold", *job_ids(job))
        slurm("scontrol", "update", "PartitionName=cpu", "State=UP")
        job.when(lambda view: view.job is not None and "Held" in view.job.told, wait_longer_than_lost)

    def wait_longer_than_lost() -> None:
        job.when(after(LOST_AFTER_S + 1.0), lambda: slurm("scontrol", "release", *job_ids(job)))

    with partition_down("cpu"):
        job.when(is_pending, hold)
        went_through(job, job.run(), attempts=[0])


@exhaustive
@pytest.mark.parametrize(("num_nodes", "lost_after_s"), [(1, LOST_AFTER_S), (2, 60.0)])
def test_a_suspended_job_goes_on_where_it_was(make_job: MakeJob, num_nodes: int, lost_after_s: float) -> None:
    job = make_job(num_nodes=num_nodes, ranks=1, lost_after_s=lost_after_s)

    def suspend() -> None:
        slurm("scontrol", "suspend", *job_ids(job))
        job.when(after(LOST_AFTER_S + 4.0), lambda: slurm("scontrol", "resume", *job_ids(job)))

    job.when(works, suspend)
    went_through(job, job.run(), attempts=[0])
    assert any(view.job is not None and view.job.told == "SUSPENDED" for view in job.views)


# ---- what Slurm's commands do ------------------------------------------------------------------------------------------


@exhaustive
@pytest.mark.parametrize("wish", ["fail", "hang", "lie"])
def test_a_queue_that_cannot_be_asked_for_a_moment_makes_no_new_attempt(make_job: MakeJob, shims: Shims, wish: str) -> None:
    """The job waits for longer than `lost_after`, so that any impatience would show."""
    job = make_job(cluster=CPU)
    for name in ("sacct", "scancel"):
        shims.let(name, wish)

    def trouble() -> None:
        shims.let("squeue", wish)
        job.when(after(LOST_AFTER_S - 1.0), end_of_trouble)

    def end_of_trouble() -> None:
        shims.heal()
        slurm("scontrol", "update", "PartitionName=cpu", "State=UP")

    with partition_down("cpu"):
        job.when(is_pending, lambda: job.when(after(LOST_AFTER_S + 1.0), trouble))
        went_through(job, job.run(), attempts=[0])
    assert job.attempts == (0,)


@exhaustive
@pytest.mark.parametrize("wish", ["fail", "hang", "lie"])
def test_a_running_job_speaks_for_itself(make_job: MakeJob, shims: Shims, wish: str) -> None:
    job = make_job(options={"steps": 100})
    job.when(works, lambda: [shims.let(name, wish) for name in ("squeue", "sacct", "scancel", "sbatch")])
    record = job.run()
    shims.heal()
    went_through(job, record, attempts=[0])


@exhaustive
@pytest.mark.parametrize("wish", ["fail", "hang"])
def test_a_job_that_dies_while_nobody_can_be_asked_is_replaced_once_somebody_can(make_job: MakeJob, shims: Shims, wish: str) -> None:
    job = make_job(options={"steps": 80})

    def die() -> None:
        shims.let("squeue", wish)
        job.sweep()
        job.when(after(LOST_AFTER_S + 6.0), shims.heal)

    job.when(works, die)
    went_through(job, job.run(), attempts=[0, 1])
    assert Life.UNKNOWN in {view.state for view in job.views}


@exhaustive
def test_of_a_job_that_slurm_denies_for_too_long_only_the_next_attempt_takes_effect(make_job: MakeJob, shims: Shims) -> None:
    """It waits all the while, nobody can cancel it, and it starts in the end: it finds its attempt closed."""
    job = make_job(cluster=CPU)

    def trouble() -> None:
        shims.let("squeue", "lie")
        shims.let("scancel", "fail")
        job.when(lambda view: view.attempt == 1, end_of_trouble)

    def end_of_trouble() -> None:
        shims.heal()
        slurm("scontrol", "update", "PartitionName=cpu", "State=UP")

    with partition_down("cpu"):
        job.when(is_pending, trouble)
        went_through(job, job.run(), attempts=[1])
    assert len(job_ids(job, active=False)) == 2
    assert record_of(job, 0).cause is Cause.NODE


def test_a_cancellation_that_fails_is_repeated_while_the_job_waits(make_job: MakeJob, shims: Shims) -> None:
    job, wished = make_job(cluster=CPU), threading.Event()
    shims.let("scancel", "fail")

    def cancel() -> None:
        wished.set()
        job.when(lambda _view: shims.calls("scancel") >= 3, shims.heal)

    with partition_down("cpu"):
        job.when(is_pending, cancel)
        record = job.run(stop_requested=wished.is_set)
    assert (record.exit_code, record.cause) == (ExitCode.INTERRUPTED, Cause.CANCELLED)
    assert starts(job) == []
    assert leaves_nothing(job)


def test_a_command_that_hangs_is_ended_with_all_that_it_started(shims: Shims, tmp_path: Path) -> None:
    shims.let("squeue", "hang")
    with pytest.raises(SlurmError, match=r"squeue did not answer for 0\.5 s"):
        call(("squeue",), answer_s=0.5)
    folder = str(tmp_path / "commands")
    wait_until(lambda: not any(process.info["cwd"] == folder for process in psutil.process_iter(["cwd"])))


# ---- submission ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wish", "jobs"),
    [
        ("take-and-fail", 1),
        ("take-twice", 2),
        pytest.param("fail", 1, marks=exhaustive),
        pytest.param("hang", 1, marks=exhaustive),
        pytest.param("take-and-hang", 1, marks=exhaustive),
    ],
)
def test_whatever_sbatch_says_one_job_takes_effect(make_job: MakeJob, shims: Shims, wish: str, jobs: int) -> None:
    job = make_job(lost_after_s=30.0)
    shims.let("sbatch", wish, once=True)
    record = job.run()
    went_through(job, record, attempts=[0])
    assert len(job_ids(job, active=False)) == jobs
    submitted = read_submitted(job.storage, job.attempt(0))
    assert submitted is not None
    assert submitted.job_id in job_ids(job, active=False)


@pytest.mark.parametrize("when", [pytest.param(works, id="beside the job"), pytest.param(None, id="after its end", marks=exhaustive)])
def test_a_submission_that_arrives_late_starts_nothing(make_job: MakeJob, shims: Shims, when: Callable[[JobView], bool] | None) -> None:
    job = make_job()
    shims.let("sbatch", "take-late", once=True)
    if when is not None:
        job.when(when, shims.arrive)
    record = job.run()
    if when is None:
        shims.arrive()
    wait_until(lambda: job_ids(job) == [])
    went_through(job, record, attempts=[0])
    assert len(job_ids(job, active=False)) == 2


@pytest.mark.parametrize("wish", ["take-and-die", pytest.param("die", marks=exhaustive)])
def test_a_submitter_killed_around_the_submission_is_replaced_and_one_job_takes_effect(make_job: MakeJob, shims: Shims, wish: str) -> None:
    job = make_job()
    shims.let("sbatch", wish, once=True)
    with supervising(job.request) as submitter:
        assert submitter.wait() == -signal.SIGKILL
    assert not job.storage.exists(job.attempt().submitted)
    went_through(job, job.run(), attempts=[0])
    assert len(job_ids(job, active=False)) == 1


@exhaustive
def test_a_submitter_killed_after_the_submission_is_replaced_and_the_job_adopted(make_job: MakeJob) -> None:
    job = make_job(options={"steps": 80})
    with supervising(job.request):
        wait_until(lambda: job.attempts != () and job.storage.exists(job.attempt().submitted))
    went_through(job, job.run(), attempts=[0])
    assert len(job_ids(job, active=False)) == 1


def test_two_supervisors_make_one_effective_job(make_job: MakeJob) -> None:
    job = make_job()
    requests = [job.request.model_copy(update={"run_id": run_id}) for run_id in ("run-a", "run-b")]
    with supervising(requests[0]) as first, supervising(requests[1]) as second:
        assert [first.wait(), second.wait()] == [0, 0]
    assert job.attempts == (0,)
    went_through(job, record_of(job, 0), attempts=[0])


# ---- the rest ------------------------------------------------------------------------------------------------------------


@exhaustive
def test_the_end_of_an_allocation_is_committed_and_the_next_one_goes_on(make_job: MakeJob) -> None:
    job = make_job(options={"steps": 120, "commit_every": 1000}, time_limit_s=8.0, grace_s=1.0)
    record = job.run()
    assert record.exit_code is ExitCode.DONE
    ended = [record_of(job, number) for number in job.attempts[:-1]]
    assert ended
    assert {(each.exit_code, each.cause) for each in ended} == {(ExitCode.INTERRUPTED, Cause.TIME_LIMIT)}
    steps = [each.incidents[-1].committed_step for each in ended]
    assert steps == sorted(set(steps)), "each allocation commits more"
    went_through(job, record, attempts=list(job.attempts))


@exhaustive
def test_two_hundred_items_on_two_nodes_with_failing_ones(cluster: Any, tmp_path: Path) -> None:
    faults = [{"item": item, "kind": kind, "times": 1} for item, kind in [(3, "raise"), (50, "kill"), (111, "exit:9"), (199, "segv")]]
    request = array_request(tmp_path, items=200, at_a_time=2, num_nodes=2, options={"item_s": 0.05, "faults": faults})
    job = slurm_job(request.model_copy(update={"limits": request.limits.model_copy(update={"max_failures": 10})}), patience_s=400.0)
    try:
        record = job.run()
        assert record.exit_code is ExitCode.DONE, record.message
        assert job.attempts == (0,)
        assert sorted(incident.rank for incident in record.incidents) == [3, 50, 111, 199]
        assert len(job.storage.names(f"{job.layout.key}/items")) == 200
        wait_until(lambda: leaves_nothing(job))
    finally:
        sweep(job)


def lost_before(job: LiveJob, host: str, *, attempt: int) -> None:
    """An attempt that is over because its node was lost."""
    layout, key = job.attempt(attempt), f"past-{attempt}"
    spec = job.request.model_copy(update={"attempt": attempt, "key": key})
    beat = Heartbeat(key=key, node_rank=0, host=host, agent_pid=1, epoch=-1, sequence=0, at=time.time(), ranks=())
    job.storage.create_exclusive(layout.spec, canonical_json(spec))
    job.storage.create_exclusive(layout.heartbeat(0, 0), canonical_json(beat))
    close(job.storage, spec, cause=Cause.NODE, evidence=("lost",))
    job.storage.create_exclusive(layout.verdict, canonical_json(AttemptVerdict(decision="restart", reason="lost", at=time.time())))


@pytest.mark.parametrize(("num_nodes", "hosts"), [(2, {"node2", "node3"}), (3, {"node1", "node2", "node3"})], ids=["enough others", "too few others"])
def test_a_node_that_was_lost_twice_is_avoided_where_there_are_others(make_job: MakeJob, num_nodes: int, hosts: set[str]) -> None:
    job = make_job(num_nodes=num_nodes, ranks=1, options={"steps": 5})
    for attempt in range(2):
        lost_before(job, "node1", attempt=attempt)
    record = job.run()
    assert {beat.host for beat in read_heartbeats(job.storage, job.attempt(2))} == hosts
    went_through(job, record, attempts=[2])


@pytest.mark.parametrize(
    ("queues", "problem"),
    [
        ({"queue": "closed"}, ("cluster.queue", "'closed'", "")),
        ({"queue": "mian"}, ("cluster.queue", "'mian'", "main")),
        ({"queue": "main", "stages": {"train": {"queue": "gqu"}}}, ("cluster.stages.train.queue", "'gqu'", "gpu")),
    ],
    ids=["takes nobody's jobs", "is not there", "of one stage is not there"],
)
def test_a_partition_that_refuses_a_job_is_named_with_the_key_of_the_recipe(
    make_job: MakeJob, queues: dict[str, Any], problem: tuple[str, str, str]
) -> None:
    job = make_job(cluster=ClusterConfig.model_validate({"kind": "slurm", **queues}))
    with pytest.raises(ConfigError) as error:
        job.run()
    (found,) = error.value.problems
    assert (found.key, found.value, found.nearest) == problem
    assert job_ids(job) == []
    assert record_of(job, 0).cause is Cause.CANCELLED
