"""What is left of a gang that has lost a part is ended, once for a while, and only where a node is silent, too."""

from pathlib import Path
from typing import Any

import pytest

from cluster.launchers.protocol import JobReport, JobState, Launcher
from cluster.liveness import Silence
from cluster.remains import Remains
from cluster.submission import Patience
from cluster.supervisor import clear_up
from schemas.attempt import Cause
from schemas.errors import UnreachableError
from schemas.exit_code import ExitCode
from schemas.job import JobKind, JobSpec
from schemas.progress import Heartbeat
from tests.fakes.job_request import gang_request
from tests.fakes.scripted_job import LAYOUT, ScriptedJob, ends
from tests.fakes.scripted_launcher import ScriptedLauncher, StillClock

BROKEN = JobReport(JobState.RUNNING, broken="pod 1: Evicted")


class Watched:
    def __init__(self, tmp_path: Path, **changes: Any) -> None:
        self.clock, self.launcher = StillClock(), ScriptedLauncher([])
        patience = Patience(clock=self.clock, sleep=self.clock.sleep, poll_s=1.0, stop_requested=lambda: False)
        spec = gang_request(tmp_path, num_nodes=2, key="k").model_copy(update=changes)
        self.remains = Remains(spec, launcher=self.launcher, patience=patience)


def test_the_rest_of_a_gang_is_asked_to_end_and_given_time_for_it(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    for _ in range(40):
        watched.remains.see(BROKEN)
        watched.clock.sleep(1.0)
    assert watched.launcher.cancelled == ["k", "k"]


@pytest.mark.parametrize("job", [None, JobReport(JobState.RUNNING), JobReport(JobState.UNKNOWN)])
def test_what_is_whole_or_unknown_is_left_alone(tmp_path: Path, job: JobReport | None) -> None:
    watched = Watched(tmp_path)
    watched.remains.see(job)
    assert watched.launcher.cancelled == []


def test_items_of_an_array_go_on_with_fewer_nodes(tmp_path: Path) -> None:
    watched = Watched(tmp_path, kind=JobKind.ARRAY)
    watched.remains.see(BROKEN)
    assert watched.launcher.cancelled == []


def beat(node_rank: int, sequence: int) -> Heartbeat:
    return Heartbeat(key="k", node_rank=node_rank, host="h", agent_pid=1, epoch=0, sequence=sequence, at=0.0, ranks=())


def test_the_silence_of_one_node_among_others_that_speak() -> None:
    silence = Silence()
    assert silence.of_one_node_s(0.0, num_nodes=2) == 0.0
    for second in range(8):
        beats = [beat(0, second), *([beat(1, second)] if second < 3 else [beat(1, 2)])]
        silence.observe(beats, claimed=True, now=float(second), wall=0.0, began_at=0.0)
    assert silence.of_one_node_s(7.0, num_nodes=2) == 5.0
    assert silence.of_one_node_s(7.0, num_nodes=3) == 7.0  # one that has never spoken


@pytest.mark.parametrize("broken", [True, False])
def test_a_supervisor_ends_the_rest_when_launcher_and_heartbeats_agree(tmp_path: Path, broken: bool) -> None:
    """Node 1 never speaks, node 0 does. What has been decided on is released."""
    stage = ScriptedJob(tmp_path)
    stage.request = gang_request(tmp_path, num_nodes=2)
    cancelled_at: list[float] = []

    def script(spec: JobSpec) -> JobState:
        stage.claim(spec)
        stage.beat(spec, sequence=0)
        if broken:
            stage.launcher.broken[spec.key] = "pod 1: Evicted"
        for second in range(1, 20):
            stage.clock.at(float(second), lambda second=second: stage.beat(spec, sequence=second))  # type: ignore[misc]
        stage.clock.at(20.0, lambda: stage.end(spec, ExitCode.INTERRUPTED, Cause.NODE))
        return JobState.RUNNING

    stage.launcher.scripts = [script, ends(stage)]
    cancel = stage.launcher.cancel
    stage.launcher.cancel = lambda key: (cancelled_at.append(stage.clock.now), cancel(key))[0]  # type: ignore[method-assign]
    assert stage.run().exit_code is ExitCode.DONE
    assert bool(cancelled_at) == broken
    assert all(10.0 < moment < 12.0 for moment in cancelled_at)
    assert stage.launcher.released == [spec.key for spec in stage.launcher.submitted]


def test_a_launcher_alone_is_not_believed_that_a_part_is_lost(tmp_path: Path) -> None:
    """Heartbeats pause for some seconds, as when storage is slow: enough to ask the launcher, not enough to believe it."""
    stage = ScriptedJob(tmp_path)

    def script(spec: JobSpec) -> JobState:
        stage.claim(spec)
        stage.beat(spec, sequence=0)
        stage.launcher.broken[spec.key] = "pod 0: machine m0 is silent"
        for sequence, second in enumerate((1.0, 2.0, 8.0, 9.0), start=1):
            stage.clock.at(second, lambda sequence=sequence: stage.beat(spec, sequence=sequence))  # type: ignore[misc]
        stage.clock.at(10.0, lambda: stage.end(spec))
        return JobState.RUNNING

    stage.launcher.scripts = [script]
    assert stage.run().exit_code is ExitCode.DONE
    assert stage.launcher.cancelled == []
    assert any(view.job is not None and view.job.broken for view in stage.views)


def test_who_comes_after_one_that_died_before_it_had_cleared_up_does_so(tmp_path: Path) -> None:
    stage = ScriptedJob(tmp_path)
    stage.launcher.scripts = [ends(stage)]
    stage.run()
    stage.launcher.released.clear()
    stage.run()
    assert stage.launcher.released == [stage.launcher.submitted[0].key]


def test_a_job_whose_work_is_done_is_cleared_up_without_another_look_at_it(tmp_path: Path) -> None:
    stage = ScriptedJob(tmp_path)
    step_name = stage.request.step_name
    clear_up(stage.storage, LAYOUT, step_name=step_name, launcher=unreachable)  # nothing was ever submitted: nobody is asked
    stage.launcher.scripts = [ends(stage)]
    stage.run()
    stage.launcher.released.clear()
    clear_up(stage.storage, LAYOUT, step_name=step_name, launcher=lambda: stage.launcher)
    assert stage.launcher.released == [stage.launcher.submitted[0].key]
    clear_up(stage.storage, LAYOUT, step_name=step_name, launcher=unreachable)  # the work is done all the same


def unreachable() -> Launcher:
    raise UnreachableError("no cluster here")
