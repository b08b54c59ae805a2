"""What nodes wait for each other, and for how long."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.agent import peers as module
from cluster.agent.peers import NodeReport, Peers
from cluster.layout import ArtifactLayout
from cluster.storage import FileStorage
from schemas.attempt import Cause
from schemas.canonical import canonical_json
from schemas.progress import Heartbeat
from tests.fakes.job_request import ARTIFACT, gang_request

LOST_AFTER_S, GRACE_S = 60.0, 5.0


class Clock:
    """Stands for the module's clock: only `sleep` moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def peers(tmp_path: Path) -> Peers:
    """Node 0 of two, the other of which gave one sign of life."""
    spec = gang_request(tmp_path, num_nodes=2, lost_after_s=LOST_AFTER_S, grace_s=GRACE_S)
    storage, layout = FileStorage(tmp_path / "data"), ArtifactLayout(ARTIFACT)
    peers = Peers(storage=storage, artifact=layout, attempt=layout.attempt("", 0), spec=spec, node_rank=0)
    beat = Heartbeat(key=spec.key, node_rank=1, host="b", agent_pid=1, epoch=0, sequence=0, at=1.0, ranks=())
    storage.create_exclusive(peers.attempt.heartbeat(node_rank=1, sequence=0), canonical_json(beat))
    return peers


def report(outcome: str, **fields: Any) -> NodeReport:
    return NodeReport.model_validate({"node_rank": 0, "epoch": 0, "outcome": outcome, "cause": Cause.PREEMPTION, "at": 1.0, **fields})


def seconds_of(clock: Clock, act: Callable[[], object]) -> float:
    began = clock.now
    act()
    return clock.now - began


def test_asked_to_stop_a_node_waits_for_a_lost_one_no_longer_than_the_grace(peers: Peers, clock: Clock) -> None:
    """A scheduler kills it soon after, and its exit record must be written by then."""
    own = report("stopped")
    assert seconds_of(clock, lambda: peers.collect(own, slot=0, settle_s=3.0)) <= GRACE_S + 3.0 + 1.0
    assert peers.collect(own, slot=0, settle_s=3.0) == (own,)


def test_done_a_node_waits_for_the_other_until_that_is_lost(peers: Peers, clock: Clock) -> None:
    (found,) = peers.collect(report("finished"), slot=0, settle_s=3.0)
    assert (found.outcome, found.message) == ("failed", "node 1 is lost")
    assert clock.now - 1000.0 > LOST_AFTER_S


def test_a_job_that_was_suspended_finds_nobody_lost_when_it_goes_on(peers: Peers, clock: Clock) -> None:
    assert peers.trouble(0) is None
    clock.now += 10 * LOST_AFTER_S
    assert peers.trouble(0) is None
    for _ in range(200):
        clock.sleep(0.6)
        if (trouble := peers.trouble(0)) is not None:
            break
    assert trouble is not None, "but its silence since then counts"
    assert trouble.message == "node 1 is lost"


def speak(peers: Peers, sequence: int) -> None:
    beat = Heartbeat(key=peers.spec.key, node_rank=1, host="b", agent_pid=1, epoch=0, sequence=sequence, at=1.0, ranks=())
    peers.storage.create_exclusive(peers.attempt.heartbeat(node_rank=1, sequence=sequence), canonical_json(beat))


def test_a_failure_that_echoes_another_is_that_of_the_node_that_fell_silent(peers: Peers, clock: Clock) -> None:
    (found,) = peers.collect(report("failed", cause=Cause.KILLED, echo=True), slot=0, settle_s=3.0)
    assert (found.cause, found.message, found.echo) == (Cause.NODE, "node 1 is lost", False)
    assert clock.now - 1000.0 > LOST_AFTER_S


def test_a_node_that_speaks_again_has_not_made_the_failure(peers: Peers, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its storage was slow. It had three seconds to tell its own failure, and longer."""
    spoken = iter(range(1, 1000))

    def sleep(seconds: float) -> None:
        clock.now += seconds
        if clock.now - 1000.0 > LOST_AFTER_S / 2:
            speak(peers, next(spoken))

    monkeypatch.setattr(clock, "sleep", sleep)
    (found,) = peers.collect(report("failed", cause=Cause.KILLED, echo=True), slot=0, settle_s=3.0)
    assert found.cause is Cause.KILLED
    assert LOST_AFTER_S / 2 < clock.now - 1000.0 < LOST_AFTER_S / 2 + 1.0


def test_a_failure_of_its_own_does_not_wait_for_a_silent_node(peers: Peers, clock: Clock) -> None:
    (found,) = peers.collect(report("failed", cause=Cause.KILLED), slot=0, settle_s=3.0)
    assert (found.cause, clock.now) == (Cause.KILLED, 1000.0)


def test_asked_to_stop_meanwhile_a_node_tells_what_it_knows(peers: Peers, clock: Clock) -> None:
    """Slurm ends a job that has lost a node, and kills the agents that are left soon after."""
    peers.asked_to_stop = lambda: clock.now > 1010.0
    (found,) = peers.collect(report("failed", cause=Cause.KILLED, echo=True), slot=0, settle_s=3.0)
    assert (found.cause, found.evidence) == (Cause.NODE, ("no heartbeat of node 1 for 10 s",))
    assert clock.now < 1011.0
