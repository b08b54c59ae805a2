"""What idle nodes take of each other's shares, through storage alone: several of them, no processes, and a clock that a test moves."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cluster.agent.array_watch import Running
from cluster.agent.helping import Helping
from cluster.agent.node import Node
from cluster.agent.peers import Peers
from cluster.agent.scratch import EpochScratch
from cluster.layout import ArtifactLayout
from cluster.storage import FileStorage
from cluster.trailing import ItemPace
from cluster.work_share import order
from schemas.canonical import canonical_json
from schemas.job import ItemRecord, WorkPlan
from schemas.progress import ArrayProgress, Heartbeat, ItemInWork
from tests.fakes.job_request import array_request

ITEMS = 6


class Nodes:
    """Nodes of one array, of which each has its part in the others' shares."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        self.spec = array_request(tmp_path, items=ITEMS, num_nodes=3)
        self.storage, self.layout = FileStorage(tmp_path / "data"), ArtifactLayout(self.spec.artifact_key)
        self.attempt = self.layout.attempt("scan", 0)
        self.items = order(WorkPlan.model_validate_json(self.storage.read(self.layout.plan("scan"))).items)
        self.pace = ItemPace(finished=[(100, 2.0)] * 5)
        self.sequence = 0

    def node(self, node_rank: int) -> Helping:
        own: dict[str, Any] = {"storage": self.storage, "artifact": self.layout, "attempt": self.attempt, "spec": self.spec, "node_rank": node_rank}
        return Helping(cast(Node, SimpleNamespace(**own)), Peers(**own), self.items, self.pace)

    def beat(self, node_rank: int, *in_work: ItemInWork) -> None:
        self.sequence += 1
        progress = ArrayProgress(bytes_done=0.0, files_done=0.0, bytes_per_s=0.0, files_per_s=0.0, in_work=in_work)
        told: dict[str, Any] = {"key": "k", "node_rank": node_rank, "host": "h", "agent_pid": 1, "epoch": 0, "at": 0.0, "ranks": ()}
        beat = Heartbeat(sequence=self.sequence, array=progress, **told)
        self.storage.create_exclusive(self.attempt.heartbeat(node_rank, self.sequence), canonical_json(beat))

    def finish(self, *indices: int, epoch: int = 0) -> None:
        for index in indices:
            record = ItemRecord(index=index, epoch=epoch, files=(), output={})
            self.storage.create_exclusive(self.layout.item("scan", index), canonical_json(record))

    def idle(self, helping: Helping, *, seconds: float = 7.0, places: int = 1) -> list[int]:
        """Looks every second; returns what it takes."""
        taken: list[int] = []
        for _ in range(round(seconds)):
            self.now += 1.0
            found = helping.look(own=taken, places=places - len(taken)) if len(taken) < places else ()
            taken += [help_.item.index for help_ in found]
        return taken


@pytest.fixture
def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Nodes:
    return Nodes(tmp_path, monkeypatch)


def in_work(index: int, running_s: float = 1.0) -> ItemInWork:
    return ItemInWork(index=index, running_s=running_s, done_bytes=0)


def test_two_idle_nodes_take_different_items_and_their_owner_knows(nodes: Nodes) -> None:
    nodes.finish(0, 1)
    nodes.beat(2, in_work(5))
    first, second = nodes.node(0), nodes.node(1)
    assert nodes.idle(first) == [2]
    nodes.beat(0, in_work(2))
    nodes.beat(2, in_work(5))
    assert nodes.idle(second) == [3]
    owner = nodes.node(2)
    assert [owner.is_taken(item) for item in nodes.items] == [False, False, True, True, False, False], "in order of starting: 5 … 0"


def test_nothing_is_taken_in_the_first_moments(nodes: Nodes) -> None:
    assert nodes.idle(nodes.node(0), seconds=4) == []


def test_a_busy_node_takes_nothing(nodes: Nodes) -> None:
    assert nodes.idle(nodes.node(0), seconds=60, places=0) == []


def test_what_trails_elsewhere_is_run_again_once(nodes: Nodes) -> None:
    nodes.finish(0, 1, 2, 3, 4)
    nodes.beat(2, in_work(5, running_s=31.0))
    assert nodes.idle(nodes.node(0)) == [5]
    nodes.beat(0, in_work(5))
    nodes.beat(2, in_work(5, running_s=40.0))
    assert nodes.idle(nodes.node(1), seconds=9) == []


def test_what_a_silent_node_had_in_work_counts_as_begun_by_nobody(nodes: Nodes) -> None:
    nodes.finish(0, 1, 2, 3, 4)
    nodes.beat(2, in_work(5))
    helper = nodes.node(0)
    assert nodes.idle(helper, seconds=9) == []
    assert nodes.idle(helper, seconds=9) == [5]


def test_a_take_whose_node_does_not_work_on_it_is_taken_over(nodes: Nodes) -> None:
    nodes.finish(0, 1, 2, 3, 4)
    nodes.beat(2)
    assert nodes.idle(nodes.node(0)) == [5]
    other = nodes.node(1)
    assert nodes.idle(other, seconds=5) == [], "it may not have told yet"
    assert nodes.idle(other) == [5]


def test_a_run_is_overtaken_by_another_ones_record_and_not_by_its_own(nodes: Nodes, tmp_path: Path) -> None:
    helper = nodes.node(0)
    running = Running(next(item for item in nodes.items if item.index == 5), epoch=1, scratch=EpochScratch(tmp_path), began=nodes.now)
    assert not helper.is_overtaken(running)
    nodes.finish(5, epoch=4)
    nodes.idle(helper)
    assert helper.is_overtaken(running)
    assert not helper.is_overtaken(Running(running.item, epoch=4, scratch=running.scratch, began=nodes.now))
