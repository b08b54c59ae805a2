"""Agents that are not started together begin together: nothing begins before all are there, and only one submission does."""

import threading
from pathlib import Path

import pytest

from cluster.agent import gathering
from cluster.agent.gathering import join
from cluster.agent.node import Wish
from cluster.attempt import claim_attempt, read_claim
from cluster.layout import ArtifactLayout
from cluster.storage import FileStorage
from schemas.attempt import Cause
from tests.fakes.job_request import gang_request
from tests.fakes.live_job import wait_until


class Stop:
    """Whether the agent shall stop."""

    wish: Wish | None = None
    reason = "stopped by SIGTERM"


class Gathering:
    """Agents of an attempt on three nodes, each in a thread."""

    def __init__(self, tmp_path: Path) -> None:
        self.storage = FileStorage(tmp_path / "data")
        self.spec = gang_request(tmp_path, num_nodes=3, key="k")
        self.attempt = ArtifactLayout(self.spec.artifact_key).attempt("", 0)
        self.stop, self.threads = Stop(), []
        self.got: dict[tuple[str, int], bool] = {}

    def arrive(self, node_rank: int, *, submission: str = "one") -> None:
        def run() -> None:
            whose = {"spec": self.spec, "node_rank": node_rank, "submission": submission}
            self.got[submission, node_rank] = join(self.storage, self.attempt, stop=self.stop, **whose)  # type: ignore[arg-type]

        self.threads.append(threading.Thread(target=run))
        self.threads[-1].start()

    def is_there(self, node_rank: int, *, submission: str = "one") -> bool:
        return self.storage.exists(self.attempt.present(node_rank, submission=submission))

    def end(self) -> dict[tuple[str, int], bool]:
        for thread in self.threads:
            thread.join(timeout=20.0)
            assert not thread.is_alive()
        return self.got


@pytest.fixture
def agents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Gathering:
    monkeypatch.setattr(gathering, "_POLL_S", 0.005)
    return Gathering(tmp_path)


def test_nobody_claims_before_all_are_there_in_whatever_order_they_come(agents: Gathering) -> None:
    for node_rank in (0, 2):
        agents.arrive(node_rank)
        wait_until(lambda node_rank=node_rank: agents.is_there(node_rank))  # type: ignore[misc]
        assert read_claim(agents.storage, agents.attempt) is None
    agents.arrive(1)
    assert agents.end() == {("one", 0): True, ("one", 1): True, ("one", 2): True}


def test_agents_of_another_submission_are_not_counted_and_stand_back(agents: Gathering) -> None:
    agents.arrive(1, submission="two")
    agents.arrive(2, submission="two")
    wait_until(lambda: agents.is_there(2, submission="two"))
    agents.arrive(0)
    agents.arrive(1)
    wait_until(lambda: agents.is_there(1))
    assert read_claim(agents.storage, agents.attempt) is None
    agents.arrive(2)
    got = agents.end()
    assert {who for who, has in got.items() if has} == {("one", 0), ("one", 1), ("one", 2)}


def test_whoever_is_asked_to_stop_while_it_waits_has_begun_nothing(agents: Gathering) -> None:
    agents.arrive(0)
    agents.arrive(1)
    wait_until(lambda: agents.is_there(1))
    agents.stop.wish = Wish(Cause.PREEMPTION, "stopped by SIGTERM")
    assert agents.end() == {("one", 0): False, ("one", 1): False}
    assert read_claim(agents.storage, agents.attempt) is None


def test_an_attempt_that_is_withdrawn_while_they_wait_is_not_theirs(agents: Gathering) -> None:
    agents.arrive(0)
    agents.arrive(1)
    wait_until(lambda: agents.is_there(0))
    assert claim_attempt(agents.storage, agents.attempt, key="k", submission="supervisor:queue")
    assert agents.end() == {("one", 0): False, ("one", 1): False}
