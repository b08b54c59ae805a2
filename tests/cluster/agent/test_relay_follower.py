"""Checkpoints of several nodes on object storage: no disk has the whole of one, and nobody finds half of one."""

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.agent import offers as offering
from cluster.agent.offers import Offers
from cluster.agent.peers import Peers
from cluster.agent.relay import CheckpointRelay
from cluster.agent.relay_follower import CheckpointFollower
from cluster.attempt import committed
from cluster.epoch import take_epoch
from cluster.layout import ArtifactLayout, step_name
from cluster.mirror import Mirror
from cluster.patience import PatientStorage
from cluster.s3_storage import S3Storage
from cluster.storage import FileStorage, file_entry
from schemas.artifact import FileEntry
from schemas.canonical import canonical_json
from schemas.checkpoint import CommitRecord
from schemas.errors import UnreachableError
from schemas.progress import Heartbeat
from tests.fakes.job_request import gang_request
from tests.fakes.live_job import wait_until
from tests.fakes.s3_server import BUCKET, S3Server

pytestmark = pytest.mark.slow

LAYOUT = ArtifactLayout("train/tiny-0123456789ab")
ATTEMPT = LAYOUT.attempt("", 0)


class NodeOfTwo:
    """One of the two nodes of an attempt, with a disk of its own."""

    def __init__(self, storage: S3Storage, folder: Path, *, node_rank: int, key: str) -> None:
        self.storage, self.node_rank, self.key = PatientStorage(storage, patience_s=20.0), node_rank, key
        self.mirror = Mirror.open(storage, folder=folder / f"cache-{node_rank}", most_bytes=10_000_000, patiently=self.storage.patiently)
        self.local = FileStorage(self.mirror.root)
        spec = gang_request(folder, num_nodes=2, ranks=1, key=key)
        offers = Offers(self.storage, ATTEMPT, Peers(storage=self.storage, artifact=LAYOUT, attempt=ATTEMPT, spec=spec, node_rank=node_rank))
        relay = {"storage": self.storage, "layout": LAYOUT, "spare_commits": 1, "offers": offers}
        self.relay = CheckpointFollower(self.mirror, **relay) if node_rank else CheckpointRelay(self.mirror, key=key, **relay)
        self._beats = 0
        self._stopped = threading.Event()
        self._heart = threading.Thread(target=self._beat, daemon=True)
        self._heart.start()

    def write(self, step: int, *, epoch: int) -> FileEntry:
        """Writes this node's rank's file of a checkpoint."""
        folder = self._folder(step, epoch)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"rank-{self.node_rank:04d}.bin"
        path.write_text(f"rank {self.node_rank}, step {step}, epoch {epoch}")
        return file_entry(path, relative_to=folder)

    def lose(self, step: int, *, epoch: int) -> None:
        (self._folder(step, epoch) / f"rank-{self.node_rank:04d}.bin").unlink()

    def files(self, step: int, *, epoch: int) -> list[str]:
        folder = self._folder(step, epoch)
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []

    def die(self) -> None:
        """The machine is gone: no sign of life any more, nothing is sent."""
        self._stopped.set()
        self._heart.join()
        self.relay._rounds.end()

    def close(self) -> None:
        self._stopped.set()
        self._heart.join()
        self.mirror.close()

    def _folder(self, step: int, epoch: int) -> Path:
        return self.mirror.root / LAYOUT.checkpoint(step, epoch)

    def _beat(self) -> None:
        while not self._stopped.wait(0.2):
            beat = Heartbeat(key=self.key, node_rank=self.node_rank, host="here", agent_pid=1, epoch=0, sequence=self._beats, at=1.0, ranks=())
            self.storage.create_exclusive(ATTEMPT.heartbeat(self.node_rank, self._beats), canonical_json(beat))
            self._beats += 1


class Attempt:
    """Both nodes."""

    def __init__(self, storage: S3Storage, folder: Path) -> None:
        self.storage, self.key = storage, secrets.token_hex(4)
        self.nodes = [NodeOfTwo(storage, folder, node_rank=node_rank, key=self.key) for node_rank in range(2)]
        self.epoch = -1

    def begin(self) -> None:
        """Node 1 is there first, as may be."""
        self.epoch = take_epoch(self.storage, LAYOUT, attempt=0, key=self.key, world_size=2, rendezvous="", reason="test").epoch
        waiting = threading.Thread(target=self.nodes[1].relay.begin)
        waiting.start()
        self.nodes[0].relay.begin()
        waiting.join(timeout=30.0)
        assert not waiting.is_alive()

    def commit(self, step: int) -> CommitRecord:
        """Writes a checkpoint on both nodes, and commits it where rank 0 is."""
        files = tuple(node.write(step, epoch=self.epoch) for node in self.nodes)
        folder = f"checkpoints/{step_name(step)}.e{self.epoch:06d}"
        commit = CommitRecord(step=step, epoch=self.epoch, folder=folder, files=files, world_size=2, committed_at=0.0).sealed()
        self.nodes[0].local.create_exclusive(LAYOUT.commit(step), commit.to_bytes())
        return commit

    def end(self) -> None:
        """As agents end: node 0 says when, and node 1 serves it until then."""
        serving = threading.Thread(target=self.nodes[1].relay.settle)
        serving.start()
        self.nodes[0].relay.settle()
        if not self.storage.exists(ATTEMPT.exit):
            self.storage.create_exclusive(ATTEMPT.exit, b"{}")
        serving.join(timeout=30.0)
        assert not serving.is_alive()


@pytest.fixture
def storage(s3_bucket: S3Server) -> S3Storage:
    return S3Storage(f"s3://{BUCKET}/nodes-{secrets.token_hex(4)}")


@pytest.fixture
def attempt(storage: S3Storage, tmp_path: Path) -> Iterator[Attempt]:
    attempt = Attempt(storage, tmp_path)
    yield attempt
    for node in attempt.nodes:
        node.close()


def has(storage: S3Storage, *steps: int) -> Callable[[], bool]:
    return lambda: committed(storage, LAYOUT) == steps


def test_a_checkpoint_is_committed_once_every_node_has_sent_its_part_and_all_nodes_find_it(attempt: Attempt, storage: S3Storage) -> None:
    attempt.begin()
    commit = attempt.commit(5)
    wait_until(has(storage, 5))
    for entry in commit.files:
        assert storage.hash(f"{LAYOUT.key}/{commit.folder}/{entry.path}") == entry.xxh3
    attempt.commit(10)
    attempt.begin()  # at once, as after the death of a rank: what was committed by then is carried first
    assert committed(storage, LAYOUT) == (5, 10)
    for node in attempt.nodes:
        assert committed(node.local, LAYOUT) == (5, 10)
        assert node.files(10, epoch=0) == ["rank-0000.bin", "rank-0001.bin"]
    attempt.commit(15)
    attempt.end()
    assert committed(storage, LAYOUT) == (5, 10, 15), "the last one is carried before the attempt ends"
    assert storage.names(ATTEMPT.offers) == ()


@pytest.mark.exhaustive
def test_a_checkpoint_of_which_a_node_lost_its_part_is_not_committed_and_a_later_one_is(
    attempt: Attempt, storage: S3Storage, caplog: pytest.LogCaptureFixture
) -> None:
    attempt.begin()
    attempt.nodes[1].write(5, epoch=0)
    attempt.nodes[1].lose(5, epoch=0)
    commit = CommitRecord(
        step=5,
        epoch=0,
        folder=f"checkpoints/{step_name(5)}.e000000",
        files=(attempt.nodes[0].write(5, epoch=0), FileEntry(path="rank-0001.bin", size=1, xxh3="0" * 32)),
        world_size=2,
        committed_at=0.0,
    ).sealed()
    attempt.nodes[0].local.create_exclusive(LAYOUT.commit(5), commit.to_bytes())
    wait_until(lambda: "no node has rank-0001.bin" in caplog.text)
    attempt.commit(10)
    wait_until(has(storage, 10))
    attempt.end()
    assert committed(storage, LAYOUT) == (10,)


@pytest.mark.exhaustive
def test_what_a_lost_node_had_is_given_up_and_the_next_attempt_finds_what_was_committed(
    attempt: Attempt, storage: S3Storage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    attempt.begin()
    attempt.commit(5)
    wait_until(has(storage, 5))
    monkeypatch.setattr(offering, "QUIET_S", 1.5)  # only now: a busy machine may be silent for so long, too
    attempt.nodes[1].die()
    attempt.commit(10)
    attempt.nodes[0].relay.settle()
    assert committed(storage, LAYOUT) == (5,)
    assert "steps [10] are not committed in storage" in caplog.text


def test_a_node_whose_leader_is_silent_does_not_wait_for_ever(attempt: Attempt, storage: S3Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offering, "QUIET_S", 1.0)
    attempt.nodes[0].die()
    take_epoch(storage, LAYOUT, attempt=0, key=attempt.key, world_size=2, rendezvous="", reason="test")
    with pytest.raises(UnreachableError, match="node 0 does not say"):
        attempt.nodes[1].relay.begin()


def test_steps_that_are_made_again_are_kept_until_they_are_asked_for(attempt: Attempt, storage: S3Storage) -> None:
    attempt.begin()
    attempt.commit(5)
    wait_until(has(storage, 5))
    attempt.commit(10)
    wait_until(has(storage, 5, 10))
    leader = attempt.nodes[0].local
    leader.delete(LAYOUT.commit(10))  # as ranks do that go back
    wait_until(has(storage, 5))
    attempt.begin()
    assert attempt.nodes[1].files(5, epoch=0) == ["rank-0000.bin", "rank-0001.bin"]
    attempt.nodes[1].write(7, epoch=1)
    time.sleep(1.5)  # node 1 has looked around by then, and node 0 has not committed yet
    assert attempt.nodes[1].files(5, epoch=0) == ["rank-0000.bin", "rank-0001.bin"]
    attempt.commit(7)
    wait_until(has(storage, 5, 7))
    attempt.end()


def test_what_is_given_up_while_a_node_sends_its_part_leaves_nothing(attempt: Attempt, storage: S3Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Retention on node 0 is faster than node 1's upload."""
    attempt.begin()
    leader, follower = attempt.nodes[0].local, attempt.nodes[1].mirror
    sending, go_on, send = threading.Event(), threading.Event(), follower.send

    def late(folder: str, entries: tuple[FileEntry, ...]) -> None:
        sending.set()
        assert go_on.wait(30.0)
        send(folder, entries)

    monkeypatch.setattr(follower, "send", late)
    commit = attempt.commit(5)
    wait_until(sending.is_set)
    leader.delete(LAYOUT.commit(5))
    leader.delete(f"{LAYOUT.key}/{commit.folder}")
    wait_until(lambda: storage.names(ATTEMPT.offers) == ())
    time.sleep(0.5)  # what is there is removed after the offer; what comes then stays, unless its sender looks
    go_on.set()
    attempt.end()
    assert storage.names(f"{LAYOUT.key}/{commit.folder}") == ()


@pytest.mark.exhaustive
def test_what_retention_removes_goes_everywhere(attempt: Attempt, storage: S3Storage) -> None:
    attempt.begin()
    old = attempt.commit(5)
    wait_until(has(storage, 5))
    attempt.commit(10)
    wait_until(has(storage, 5, 10))
    leader = attempt.nodes[0].local
    leader.delete(LAYOUT.commit(5))
    leader.delete(f"{LAYOUT.key}/{old.folder}")
    wait_until(has(storage, 10))
    wait_until(lambda: attempt.nodes[1].files(5, epoch=0) == [])
    attempt.end()
    assert storage.names(f"{LAYOUT.key}/{old.folder}") == ()
