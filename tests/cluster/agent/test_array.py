"""Arrays: which items run, in which order, and what happens when some of them fail."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.attempt import read_exit, read_heartbeats, read_notices
from cluster.logs import read_logs
from schemas.attempt import Cause
from schemas.exit_code import ExitCode
from schemas.progress import NoticeKind
from tests.fakes.job_request import array_request
from tests.fakes.live_job import LiveJob, wait_until


@pytest.fixture
def array(tmp_path: Path) -> Iterator[Callable[..., LiveJob]]:
    jobs: list[LiveJob] = []

    def make(*, items: int = 6, num_nodes: int = 1, changes: dict[str, Any] | None = None, **options: Any) -> LiveJob:
        jobs.append(LiveJob(array_request(tmp_path, items=items, num_nodes=num_nodes, options=options, **(changes or {}))))
        return jobs[-1]

    yield make
    for job in jobs:
        job.sweep()


def fault(kind: str, *, item: int = 3, times: int = 1) -> dict[str, Any]:
    return {"item": item, "kind": kind, "times": times}


def unfinished(job: LiveJob) -> list[Path]:
    """What items had begun and nobody removed."""
    return sorted((job.storage.root / job.request.artifact_key).rglob(".tmp-e*-part-*"))


def starts(job: LiveJob, number: int = 0) -> list[tuple[int, int]]:
    """(epoch, item) of every start of an attempt."""
    return [(line.epoch, line.rank) for line in read_logs(job.storage, job.attempt(number)) if "starts" in line.text]


def finished(job: LiveJob) -> set[int]:
    return {index for index in range(job.request.num_items) if job.storage.exists(job.layout.item("scan", index))}


@pytest.mark.slow
def test_all_items_run_once(array: Callable[..., LiveJob]) -> None:
    job = array()
    record = job.run()
    assert (record.exit_code, record.incidents) == (ExitCode.DONE, ())
    assert finished(job) == set(range(6))
    assert sorted(starts(job)) == [(0, index) for index in range(6)]
    assert job.views[-1].items_done == 6


@pytest.mark.slow
def test_finished_items_are_not_run_again(array: Callable[..., LiveJob]) -> None:
    job = array()
    job.run()
    for index in (1, 4):
        job.storage.delete(job.layout.item("scan", index))
    assert job.run().exit_code is ExitCode.DONE
    assert sorted(item for _, item in starts(job, 1)) == [1, 4]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "cause", "status"), [("kill", Cause.KILLED, -signal.SIGKILL), ("raise", Cause.USER_CODE, 1)])
def test_a_failed_item_runs_again_under_an_epoch_of_its_own(array: Callable[..., LiveJob], kind: str, cause: Cause, status: int) -> None:
    job = array(faults=[fault(kind)])
    record = job.run()
    assert record.exit_code is ExitCode.DONE
    [incident] = record.incidents
    assert (incident.rank, incident.cause, incident.exit_status) == (3, cause, status)
    assert {(0, 3), (1, 3)} <= set(starts(job))
    assert len(starts(job)) == 7
    assert unfinished(job) == []


@pytest.mark.slow
def test_an_item_that_always_fails_stops_the_array_and_is_named(array: Callable[..., LiveJob]) -> None:
    one_by_one = {"at_a_time": 1}  # so the others are done before its second start
    job = array(items=3, faults=[fault("raise", item=1, times=99)], changes=one_by_one)
    record = job.run()
    assert record.exit_code is ExitCode.POLICY
    assert "item 1: ValueError: the data ran out of luck" in record.message
    assert "group 1" in record.message
    assert len(record.incidents) == 3
    assert finished(job) == {0, 2}


@pytest.mark.slow
def test_a_verdict_of_one_item_ends_the_others(array: Callable[..., LiveJob]) -> None:
    job = array(item_s=30.0, faults=[fault("exit:3", item=4)])
    record = job.run()
    assert record.exit_code is ExitCode.DATA_VERDICT
    assert finished(job) == set()
    wait_until(lambda: job.family() == [])


@pytest.mark.slow
def test_a_killed_zygote_is_no_item_without_progress(array: Callable[..., LiveJob]) -> None:
    """Items that go down together with their zygote count each for itself, not as so many starts without progress."""
    job = array(items=4, waits_at_first=True, changes={"at_a_time": 4})

    def kill_zygote() -> None:
        wait_until(lambda: len(job.family()) == 6)
        job.agents()[0].children()[0].kill()

    job.when(lambda view: bool(view.heartbeats), kill_zygote)
    record = job.run()
    assert record.exit_code is ExitCode.DONE
    assert {incident.cause for incident in record.incidents} == {Cause.KILLED}
    assert finished(job) == {0, 1, 2, 3}


@pytest.mark.slow
def test_a_killed_agent_leaves_what_is_finished(array: Callable[..., LiveJob]) -> None:
    job = array(items=6, waits_below=4)
    job.when(lambda view: view.items_done >= 2, lambda: job.agents()[0].kill())
    record = job.run()
    assert record.exit_code is ExitCode.DONE
    assert job.attempts == (0, 1)
    assert sorted(item for _, item in starts(job, 1)) == [0, 1, 2, 3]


@pytest.mark.slow
def test_a_preempted_array_keeps_what_is_finished_and_the_next_attempt_goes_on(array: Callable[..., LiveJob]) -> None:
    job = array(items=8, waits_below=6)
    job.when(lambda view: view.items_done >= 2, lambda: job.agents()[0].terminate())
    record = job.run()
    first = read_exit(job.storage, job.attempt(0))
    assert first is not None
    assert (first.exit_code, first.cause) == (ExitCode.INTERRUPTED, Cause.PREEMPTION)
    (incident,) = first.incidents
    assert (incident.rank, incident.decision, incident.committed_step >= 2) == (-1, "stop", True)
    assert (record.exit_code, job.attempts) == (ExitCode.DONE, (0, 1))
    assert finished(job) == set(range(8))
    assert len(starts(job, 1)) <= 8 - incident.committed_step
    assert unfinished(job) == [], "of those that waited when they were stopped"


@pytest.mark.slow
def test_two_nodes_share_the_items(array: Callable[..., LiveJob]) -> None:
    job = array(num_nodes=2, faults=[fault("raise", item=4)])
    record = job.run()
    assert record.exit_code is ExitCode.DONE
    assert [incident.rank for incident in record.incidents] == [4]
    assert finished(job) == set(range(6))
    wait_until(lambda: job.family() == [])


@pytest.mark.slow
def test_what_stopped_two_nodes_is_told_after_what_items_suffered(array: Callable[..., LiveJob]) -> None:
    """The supervisor decides by the last incident: an item's failure on another node, long mended, is not why the job ended."""
    job = array(num_nodes=2, items=20, waits_below=12, faults=[fault("raise", item=18)])
    job.when(lambda view: sum(beat.items_done >= 2 for beat in view.heartbeats) == 2, lambda: [agent.terminate() for agent in job.agents()] and None)
    record = job.run()
    assert record.exit_code is ExitCode.DONE, "the next attempt does the rest"
    first = read_exit(job.storage, job.attempt(0))
    assert first is not None
    assert [(incident.cause, incident.rank) for incident in first.incidents] == [(Cause.USER_CODE, 18), (Cause.PREEMPTION, -1)]


@pytest.mark.slow
def test_a_failure_on_one_node_ends_the_other(array: Callable[..., LiveJob]) -> None:
    job = array(num_nodes=2, item_s=30.0, faults=[fault("exit:7", item=4)])
    record = job.run()
    assert record.exit_code is ExitCode.VERIFICATION
    assert "item 4" in record.message
    wait_until(lambda: job.family() == [])


@pytest.mark.exhaustive
def test_an_item_that_is_stopped_is_noticed_and_runs_again_while_others_go_on(array: Callable[..., LiveJob]) -> None:
    job = array(items=3, faults=[fault("stop", item=1)])
    record = job.run()
    assert record.exit_code is ExitCode.DONE
    (incident,) = record.incidents
    assert (incident.cause, incident.rank, incident.item, incident.exit_status) == (Cause.HANG, 1, "item 1 (group 1)", -signal.SIGKILL)
    assert incident.detected_after_s >= 4.0
    assert incident.evidence[0].startswith("item 1 (group 1): no sign of life for")
    assert "its process is stopped, in strike (" in incident.evidence[0]
    assert "strike" in job.storage.read(job.attempt().stack(epoch=incident.epoch, rank=1)).decode()
    assert finished(job) == {0, 1, 2}
    assert sorted(starts(job)) == [(0, 0), (0, 1), (0, 2), (1, 1)]


@pytest.mark.exhaustive
def test_an_idle_node_does_what_another_has_not_begun_and_runs_again_what_trails_there(array: Callable[..., LiveJob]) -> None:
    """Node 1's largest item sleeps for ever: the rest of its share is done by node 0, and half a minute later that item is, too."""
    job = array(num_nodes=2, items=16, changes={"at_a_time": 1}, faults=[fault("hang", item=14, times=1)])
    record = job.run()
    assert (record.exit_code, record.incidents) == (ExitCode.DONE, ()), "nothing failed"
    wait_until(lambda: job.family() == [])  # node 1 publishes its last words while node 0 leaves the exit record
    assert finished(job) == set(range(16))
    assert len([item for _, item in starts(job) if item == 14]) == 2
    assert len(starts(job)) == 17, "nothing else ran twice"
    told = [notice.message for notice in read_notices(job.storage, job.attempt()) if notice.kind is NoticeKind.ITEM_TAKEN]
    assert told[0] == "node 0 has done its share, and takes what others have not begun: first item 0 (group 0)"
    assert told[1].startswith("item 14 (group 14) is run a second time, by node 0: it trails elsewhere, in work for ")
    assert told[2:] == ["item 14 (group 14): another node was faster; this run of it is ended"]
    beats = read_heartbeats(job.storage, job.attempt())
    assert sum(beat.items_done for beat in beats) == 16
    assert sum(beat.array.bytes_done for beat in beats if beat.array is not None) == sum(range(16))


@pytest.mark.exhaustive
def test_the_share_of_a_lost_node_is_done_by_the_others_and_nobody_waits_for_it(array: Callable[..., LiveJob]) -> None:
    job = array(num_nodes=2, items=12, item_s=0.3, changes={"at_a_time": 1})

    def lose_node() -> None:
        next(agent for agent in job.agents() if agent.cmdline()[agent.cmdline().index("--node-rank") + 1] == "1").kill()

    job.when(lambda view: view.items_done >= 2, lose_node)
    record = job.run()
    assert record.exit_code is ExitCode.DONE
    assert job.attempts == (0,), "well before it counts as lost"
    assert finished(job) == set(range(12))
