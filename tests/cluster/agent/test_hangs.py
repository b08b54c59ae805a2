"""Gangs of real processes that hang in every way, under a real agent: who is named, what is kept, and that the work goes on."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.attempt import read_notices
from schemas.attempt import Cause, Incident
from schemas.exit_code import ExitCode
from schemas.progress import NoticeKind
from tests.fakes.job_request import gang_request
from tests.fakes.live_job import LiveJob, wait_until

pytestmark = pytest.mark.slow

IN_TIME_S = 30.0
"""A hang is found in 5 s, on a machine that is busy with other things later."""


@pytest.fixture
def gang(tmp_path: Path) -> Iterator[Callable[..., LiveJob]]:
    jobs: list[LiveJob] = []

    def make(*, ranks: int = 2, num_nodes: int = 1, **options: Any) -> LiveJob:
        jobs.append(LiveJob(gang_request(tmp_path, ranks=ranks, num_nodes=num_nodes, options=options)))
        return jobs[-1]

    yield make
    for job in jobs:
        job.sweep()


def stacks(job: LiveJob, incident: Incident, rank: int) -> str:
    return job.storage.read(job.attempt().stack(epoch=incident.epoch, rank=rank)).decode()


def test_a_rank_that_is_stopped_holds_the_gil_or_waits_for_itself_is_named_with_its_stack(gang: Callable[..., LiveJob]) -> None:
    """A deadlocked rank's peers wait for it; that they are silent too makes them no suspects."""
    faults = [(1, 12, "stop"), (0, 17, "gil"), (1, 23, "deadlock")]
    job = gang(steps=25, faults=[{"rank": rank, "step": step, "kind": kind} for rank, step, kind in faults])
    record = job.run()
    assert record.exit_code is ExitCode.DONE
    assert [incident.rank for incident in record.incidents] == [1, 0, 1]
    for incident, (rank, step, kind) in zip(record.incidents, faults, strict=True):
        assert (incident.cause, incident.exit_status, incident.decision) == (Cause.HANG, -signal.SIGKILL, "restart")
        assert 4.0 < incident.detected_after_s <= IN_TIME_S
        assert incident.recovered_after_s >= 0.0
        assert incident.committed_step == step // 5 * 5
        assert f"rank {rank}: silent for" in incident.evidence[0]
        assert f"in step {step}" in incident.evidence[0]
        assert any("strike (" in line and "gang_job.py" in line for line in incident.evidence), "where it hangs"
        assert ("its process is stopped" in incident.evidence[0]) == (kind == "stop")
        assert "in strike" in stacks(job, incident, rank) or "strike (" in stacks(job, incident, rank)
        assert "_meet" in stacks(job, incident, 1 - rank), "the other one waits for it"
    wait_until(lambda: job.family() == [])


def test_ranks_of_two_nodes_hang_together_and_the_one_to_blame_is_named(gang: Callable[..., LiveJob]) -> None:
    """Node 0's own rank waits, and is silent as well."""
    job = gang(ranks=1, num_nodes=2, steps=30, faults=[{"rank": 1, "step": 12, "kind": "deadlock"}])
    record = job.run()
    assert record.exit_code is ExitCode.DONE
    (incident,) = record.incidents
    assert (incident.rank, incident.cause) == (1, Cause.HANG)
    assert "rank 1: silent for" in incident.evidence[0]
    wait_until(lambda: job.family() == [])  # the stack is node 1's to publish, and node 0 leaves the exit record without waiting for that
    assert "strike" in stacks(job, incident, 1)


def test_a_straggler_is_told_and_nothing_else_happens(gang: Callable[..., LiveJob]) -> None:
    job = gang(ranks=3, steps=60, commit_every=20, busy_s={"0": 0.03, "1": 0.09, "2": 0.03})
    record = job.run()
    assert (record.exit_code, record.incidents) == (ExitCode.DONE, ())
    notice = read_notices(job.storage, job.attempt())[0]
    assert (notice.kind, notice.rank, notice.epoch) == (NoticeKind.STRAGGLER, 1, 0)
    assert notice.step >= 20
    assert notice.figures["factor"] == pytest.approx(3.0)
    assert notice.message.startswith("rank 1 is slow, mostly in forward: 0.09 s a step")
