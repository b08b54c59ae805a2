"""What is seen of a run while its job waits in a queue, runs, or cannot be asked for."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cluster.launchers import launcher_for
from cluster.launchers.protocol import Handle, JobReport, JobState, Submission
from cluster.launchers.slurm import SlurmLauncher
from cluster.layout import ArtifactLayout, AttemptLayout
from cluster.storage import FileStorage
from flows.screens import status_screen
from schemas.attempt import Cause, ExitRecord, Submitted
from schemas.canonical import canonical_json
from schemas.cluster_config import ClusterConfig
from schemas.config import RunConfig
from schemas.errors import UnreachableError
from schemas.exit_code import ExitCode
from schemas.gang_shape import GangShape
from schemas.job import ElasticLimits, JobSpec
from schemas.journal import EventKind
from schemas.progress import Heartbeat, RankPhase, RankProgress
from schemas.stage import Stage, stages_of
from schemas.view import JobProgress, QueuePlace, RunState, RunView
from tasks.runs import Run, create_run, open_run
from tasks.views import in_detail, job_progress, view_of
from tests.fakes.in_process_work import config_with
from tests.fakes.job_request import gang_request
from tests.fakes.live_job import wait_until

ARTIFACT = "train/test-0123456789ab"


@dataclass
class Asked:
    """A launcher that answers one thing, and counts how often it is asked."""

    report: JobReport
    kind: str = "slurm"
    keys: list[Sequence[str]] = field(default_factory=list)

    def query(self, keys: Sequence[str]) -> Mapping[str, JobReport]:
        self.keys.append(keys)
        return dict.fromkeys(keys, self.report)

    def render(self, spec: JobSpec) -> Submission:
        raise AssertionError("looking on submits nothing")

    def submit(self, submission: Submission) -> Handle:
        raise AssertionError("looking on submits nothing")

    def cancel(self, key: str) -> None:
        raise AssertionError("looking on cancels nothing")

    def release(self, key: str) -> None:
        raise AssertionError("looking on removes nothing")


class Training:
    """A run whose training has a job, and nobody who controls it."""

    def __init__(self, tmp_path: Path, *, kind: str = "slurm") -> None:
        self.config = config_with(storage={"root": str(tmp_path / "data")}, state=str(tmp_path / "state"), cluster={"kind": kind})
        self.run: Run = open_run(create_run(self.config, project_dir=tmp_path, recipe="x.yaml"))
        self.run.append(EventKind.STAGE_STARTED, stage=Stage.TRAIN, artifact_key=ARTIFACT)
        self.storage, self.folder = FileStorage(tmp_path / "data"), tmp_path

    def attempt(self, number: int) -> AttemptLayout:
        return ArtifactLayout(ARTIFACT).attempt("", number)

    def intend(self, number: int = 0, *, job_id: str = "", **changes: Any) -> None:
        own: dict[str, Any] = {"attempt": number, "key": f"key-{number}", "artifact_key": ARTIFACT, "config": self.config.model_dump(mode="json")}
        spec = gang_request(self.folder, intended_at=time.time() - 100 + number, **own, **changes)
        self.storage.create_exclusive(self.attempt(number).spec, canonical_json(spec))
        if job_id:
            answer = Submitted(key=spec.key, launcher="slurm", job_id=job_id, at=time.time())
            self.storage.create_exclusive(self.attempt(number).submitted, canonical_json(answer))

    def beat(self, number: int = 0, *, age_s: float = 0.0, hosts: tuple[str, ...] = ("node1", "node2")) -> None:
        at = time.time() - age_s
        for node, host in enumerate(hosts):
            rank = RankProgress(rank=node, pid=1, phase=RankPhase.STEPPING, step=7, committed_step=5, total_steps=20, at=at)
            beat = Heartbeat(key="k", node_rank=node, host=host, agent_pid=1, epoch=0, sequence=1, at=at, ranks=(rank,))
            self.storage.create_exclusive(self.attempt(number).heartbeat(node, 1), canonical_json(beat))

    def look(self, launcher: Asked) -> RunView:
        return in_detail(view_of(self.run), storage=self.storage, launcher_of=lambda _config: launcher)

    def job(self, launcher: Asked) -> JobProgress:
        return _training_job(self.look(launcher))

    def live(self) -> JobProgress:
        """What `headrace status` sees, with the launcher of the recipe."""
        return _training_job(in_detail(view_of(self.run), storage=self.storage))

    def queue(self, launcher: Asked) -> QueuePlace:
        queue = self.job(launcher).queue
        assert queue is not None
        return queue


def _training_job(view: RunView) -> JobProgress:
    job = view.stages[stages_of(prepared=False).index(Stage.TRAIN)].job
    assert job is not None
    return job


@pytest.fixture
def training(tmp_path: Path) -> Training:
    return Training(tmp_path)


PENDING = JobReport(JobState.PENDING, job_id="4711", told="PENDING (Priority)", starts="2026-11-22T10:00:00")


def test_a_job_that_waits(training: Training) -> None:
    training.intend(job_id="4711")
    launcher = Asked(PENDING)
    view = training.look(launcher)
    assert launcher.keys == [["key-0"]], "asked once"
    assert _training_job(view).queue == QueuePlace(
        launcher="slurm", state="pending", job_id="4711", told="PENDING (Priority)", reason="Priority", starts="2026-11-22T10:00:00"
    )
    assert view.state is RunState.DETACHED, "nobody controls the run, and its job goes on"
    screen = status_screen(view)
    assert "  slurm job 4711: PENDING (Priority), expected to start 2026-11-22T10:00:00" in screen
    assert any(line.startswith("  train") and line.endswith("not started yet") for line in screen)


def test_a_job_that_speaks_for_itself_is_not_asked_for(training: Training) -> None:
    training.intend(job_id="4711")
    training.beat()
    launcher = Asked(PENDING)
    assert training.queue(launcher) == QueuePlace(launcher="slurm", state="running", job_id="4711", nodes="node1, node2")
    assert launcher.keys == []
    assert "  slurm job 4711: running on node1, node2" in status_screen(training.look(launcher))


def test_a_job_that_has_fallen_silent_is_asked_for_and_keeps_the_nodes_it_told(training: Training) -> None:
    training.intend()
    training.beat(age_s=60.0)
    queue = training.queue(Asked(JobReport(JobState.RUNNING, job_id="4711", told="RUNNING")))
    assert (queue.state, queue.job_id, queue.nodes) == ("running", "4711", "node1, node2")
    assert training.queue(Asked(JobReport(JobState.RUNNING, told="RUNNING", nodes="node[1-2]"))).nodes == "node[1-2]"


def test_an_attempt_that_waits_is_the_newest_though_the_one_before_has_spoken(training: Training) -> None:
    training.intend(0, job_id="1")
    training.beat(0, age_s=200.0)
    training.intend(1, job_id="2")
    launcher = Asked(PENDING)
    assert training.job(launcher).attempt == 1
    assert launcher.keys == [["key-1"]]


def test_a_job_with_fewer_nodes_says_since_when_and_why(training: Training) -> None:
    shapes = (GangShape(num_nodes=4, ranks_per_node=2), GangShape(num_nodes=2, ranks_per_node=2))
    why = "the queue did not give 4 nodes within 10 min"
    training.intend(3, job_id="4711", num_nodes=2, elastic=ElasticLimits(shapes=shapes, smaller_after_s=600.0), smaller_because=why)
    training.beat(3)
    assert f"  2 of 4 nodes since attempt 3: {why}" in status_screen(training.look(Asked(PENDING)))


@pytest.mark.parametrize(
    ("state", "says"),
    [
        (JobState.UNKNOWN, "not known what became of it: slurm does not answer"),
        (JobState.ABSENT, "not known what became of it: slurm knows no such job of this user's"),
    ],
)
def test_what_slurm_does_not_say_is_said(training: Training, state: JobState, says: str) -> None:
    training.intend(job_id="4711")
    view = training.look(Asked(JobReport(state)))
    assert f"  slurm job 4711: {says}" in status_screen(view)
    assert view.state is RunState.INTERRUPTED


def test_where_slurms_commands_are_missing_the_rest_is_shown(training: Training, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    training.intend(job_id="4711")
    training.beat(age_s=60.0)
    monkeypatch.setenv("PATH", str(tmp_path))
    view = in_detail(view_of(training.run), storage=training.storage, launcher_of=launcher_for)
    screen = status_screen(view)
    assert "  slurm job 4711: not known what became of it: sbatch, squeue, scancel not on PATH" in screen
    assert any("step 7/20" in line for line in screen)


def test_an_ended_job_and_one_of_this_machine_are_not_asked_for(training: Training, tmp_path: Path) -> None:
    training.intend(job_id="4711")
    record = ExitRecord(key="key-0", exit_code=ExitCode.DONE, cause=Cause.FINISHED, message="", epoch=0, incidents=(), ended_at=0.0)
    training.storage.create_exclusive(training.attempt(0).exit, canonical_json(record))
    launcher = Asked(PENDING)
    assert training.queue(launcher).state == "ended"
    (tmp_path / "other").mkdir()
    local = Training(tmp_path / "other", kind="local")
    local.intend()
    assert local.job(launcher).queue is None
    assert launcher.keys == []


def test_a_launcher_that_is_not_there_is_a_line(training: Training) -> None:
    training.intend()

    def refuse(_config: RunConfig) -> Asked:
        raise UnreachableError("no such thing", mend="get one")

    view = in_detail(view_of(training.run), storage=training.storage, launcher_of=refuse)
    assert "  slurm job: not known what became of it: no such thing" in status_screen(view)


def test_the_last_lines_of_the_first_rank(training: Training) -> None:
    training.intend()
    training.beat()
    attempt = training.attempt(0)
    training.storage.create_exclusive(attempt.log_segment(epoch=0, rank=0, sequence=0), b"of the start before\n")
    for sequence, text in enumerate((b"".join(b"line %d\n" % number for number in range(50)), b"\nline 50\nline 51\nline", b" 52\nlast")):
        training.storage.create_exclusive(attempt.log_segment(epoch=1, rank=0, sequence=sequence), text)
    training.storage.create_exclusive(attempt.log_segment(epoch=1, rank=1, sequence=0), b"another rank\n")
    job = training.job(Asked(PENDING))
    assert job.last_lines == ("line 49", "line 50", "line 51", "line 52", "last")
    assert "  | line 52" in status_screen(training.look(Asked(PENDING)))


def test_without_detail_nobody_is_asked(training: Training) -> None:
    training.intend()
    job = job_progress(training.storage, ARTIFACT, now=time.time())
    assert job is not None
    assert (job.queue, job.last_lines) == (None, ())


@pytest.mark.slow
@pytest.mark.slurm
def test_a_job_of_a_real_cluster_from_the_queue_to_its_nodes(slurm_cluster: Any, tmp_path: Path) -> None:
    cluster = ClusterConfig.model_validate({"kind": "slurm", "queue": "main", "extra_directives": ["--hold"]})
    training = Training(tmp_path)
    own = {"key": f"run-train-{tmp_path.name}", "artifact_key": ARTIFACT, "config": training.config.model_dump(mode="json")}
    spec = gang_request(tmp_path, num_nodes=2, ranks=1, options={"steps": 2000}, intended_at=time.time(), **own)
    training.storage.create_exclusive(training.attempt(0).spec, canonical_json(spec))
    launcher = SlurmLauncher(cluster)
    handle = launcher.submit(launcher.render(spec))
    try:
        waiting = _seen(training, lambda queue: queue.state == "pending")
        assert (waiting.job_id, waiting.reason, waiting.nodes) == (handle.job_id, "JobHeldUser", "")
        slurm_cluster.ask("scontrol", "release", handle.job_id)
        running = _seen(training, lambda queue: queue.state == "running" and ", " in queue.nodes)
        assert set(running.nodes.split(", ")) <= set(slurm_cluster.nodes)
        wait_until(lambda: bool(training.live().last_lines))
    finally:
        launcher.cancel(spec.key)
        wait_until(lambda: launcher.query([spec.key])[spec.key].state not in (JobState.PENDING, JobState.RUNNING))
    assert _seen(training, lambda queue: queue.state == "ended").problem == ""


def _seen(training: Training, condition: Callable[[QueuePlace], bool]) -> QueuePlace:
    """Waits until `headrace status` would show such a place."""
    shown: list[QueuePlace] = []

    def is_so() -> bool:
        queue = training.live().queue
        assert queue is not None
        shown.append(queue)
        return condition(queue)

    wait_until(is_so)
    return shown[-1]
