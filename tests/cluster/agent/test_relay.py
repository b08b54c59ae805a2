"""Checkpoints on object storage: a local commit becomes true for all once its files are there, and what is withdrawn here goes there."""

import secrets
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.agent.offers import Offers
from cluster.agent.peers import Peers
from cluster.agent.relay import CheckpointRelay
from cluster.attempt import committed
from cluster.epoch import take_epoch
from cluster.layout import ArtifactLayout, step_name
from cluster.mirror import Mirror
from cluster.patience import PatientStorage
from cluster.s3_storage import S3Storage
from cluster.storage import FileStorage, file_entry
from schemas.act import Act, ActKind
from schemas.attempt import EpochRecord
from schemas.canonical import canonical_json
from schemas.checkpoint import CommitRecord, QuarantineRecord
from schemas.errors import UnreachableError
from tests.fakes.job_request import gang_request
from tests.fakes.live_job import wait_until
from tests.fakes.s3_faults import troubled
from tests.fakes.s3_server import BUCKET, S3Server

pytestmark = pytest.mark.slow

LAYOUT = ArtifactLayout("train/tiny-0123456789ab")


class Start:
    """One attempt on a node, whose ranks commit when they are told to."""

    def __init__(self, storage: S3Storage, cache: Path, *, spare: int = 1) -> None:
        self.storage = PatientStorage(storage, patience_s=20.0)
        self.mirror = Mirror.open(storage, folder=cache, most_bytes=10_000_000, patiently=self.storage.patiently)
        self.key = secrets.token_hex(4)
        attempt = LAYOUT.attempt("", 0)
        spec = gang_request(cache.parent, key=self.key)
        peers = Peers(storage=self.storage, artifact=LAYOUT, attempt=attempt, spec=spec, node_rank=0)
        offers = Offers(self.storage, attempt, peers)
        self.relay = CheckpointRelay(self.mirror, storage=self.storage, layout=LAYOUT, key=self.key, spare_commits=spare, offers=offers)
        self.local = FileStorage(self.mirror.root)
        self.epoch = -1
        self.ended = False

    def begin(self) -> None:
        self.epoch = take_epoch(self.storage, LAYOUT, attempt=0, key=self.key, world_size=1, rendezvous="", reason="test").epoch
        self.relay.begin()

    def commit(self, step: int, content: str = "") -> CommitRecord:
        """Writes and commits a checkpoint as ranks do."""
        folder = f"checkpoints/{step_name(step)}.e{self.epoch:06d}"
        place = self.mirror.root / LAYOUT.key / folder
        place.mkdir(parents=True)
        for name in ("rank-0000.bin", "state.json"):
            (place / name).write_text(content or f"{name} of step {step} of epoch {self.epoch}")
        files = tuple(file_entry(path, relative_to=place) for path in sorted(place.iterdir()))
        commit = CommitRecord(step=step, epoch=self.epoch, folder=folder, files=files, world_size=1, committed_at=0.0).sealed()
        self.local.create_exclusive(LAYOUT.commit(step), commit.to_bytes())
        return commit

    def remove(self, step: int) -> None:
        """Removes a checkpoint as retention does."""
        commit = CommitRecord.from_bytes(self.local.read(LAYOUT.commit(step)))
        self.local.delete(LAYOUT.commit(step))
        self.local.delete(f"{LAYOUT.key}/{commit.folder}")

    def quarantine(self, step: int) -> None:
        record = QuarantineRecord(step=step, found_in_epoch=self.epoch, findings=("damaged",), commit="")
        self.local.create_exclusive(f"{LAYOUT.key}/quarantine/{step_name(step)}.e{self.epoch:06d}.json", canonical_json(record))
        self.local.delete(LAYOUT.commit(step))

    def has_data(self, step: int) -> bool:
        commit = CommitRecord.from_bytes(self.local.read(LAYOUT.commit(step)))
        return all((self.mirror.root / LAYOUT.key / commit.folder / file.path).is_file() for file in commit.files)

    def end(self) -> None:
        self.relay.settle()
        self.mirror.close()
        self.ended = True


class Gate:
    """Holds back calls of a method until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: Mirror | S3Storage, method: str, *, names: str) -> None:
        """Args: names: what the key of a call that waits contains."""
        self.reached, self.opened = threading.Event(), threading.Event()
        self._names, self._call = names, getattr(owner, method)
        monkeypatch.setattr(owner, method, self._pass)

    def _pass(self, *args: Any, **options: Any) -> Any:
        if any(self._names in value for value in args if isinstance(value, str)):
            self.reached.set()
            assert self.opened.wait(60.0)
        return self._call(*args, **options)


def remove_files(folder: Path) -> None:
    """Removes all files below a folder, and leaves the folders."""
    for path in folder.rglob("*"):
        if path.is_file():
            path.unlink()


@pytest.fixture
def storage(s3_bucket: S3Server) -> S3Storage:
    return S3Storage(f"s3://{BUCKET}/relay-{secrets.token_hex(4)}")


@pytest.fixture
def start(storage: S3Storage, tmp_path: Path) -> Iterator[Callable[..., Start]]:
    """Begins an attempt, on a machine with or without a cache."""
    starts: list[Start] = []

    def start(*, cold: bool = False, **options: Any) -> Start:
        if cold:
            shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        starts.append(Start(storage, tmp_path / "cache", **options))
        starts[-1].begin()
        return starts[-1]

    yield start
    for each in starts:
        if not each.ended:
            each.relay.settle()


@pytest.mark.parametrize("cold", [False, True], ids=["same machine", "another machine"])
def test_a_commit_is_true_for_the_next_attempt_wherever_it_runs(start: Callable[..., Start], storage: S3Storage, cold: bool) -> None:
    first = start()
    commit = first.commit(5)
    wait_until(lambda: committed(storage, LAYOUT) == (5,))
    for file in commit.files:
        assert storage.hash(f"{LAYOUT.key}/{commit.folder}/{file.path}") == file.xxh3
    first.commit(10)
    first.end()
    assert committed(storage, LAYOUT) == (5, 10), "the last one is carried before the attempt ends"
    second = start(cold=cold, spare=0)
    assert committed(second.local, LAYOUT) == (5, 10)
    assert (second.has_data(10), second.has_data(5)) == (True, False)


@pytest.mark.exhaustive
def test_what_retention_removes_goes_in_storage_too(start: Callable[..., Start], storage: S3Storage) -> None:
    first = start()
    old = first.commit(5)
    first.commit(10)
    wait_until(lambda: committed(storage, LAYOUT) == (5, 10))
    first.remove(5)
    wait_until(lambda: committed(storage, LAYOUT) == (10,))
    first.end()
    assert storage.names(f"{LAYOUT.key}/{old.folder}") == ()


def test_data_of_which_storage_lost_the_commit_first_go_once_retention_has_removed_them(start: Callable[..., Start], storage: S3Storage) -> None:
    """Retention removes a commit, then its data, and a round of the relay may fall between the two."""
    first = start()
    old = first.commit(5)
    first.commit(10)
    wait_until(lambda: committed(storage, LAYOUT) == (5, 10))
    first.local.delete(LAYOUT.commit(5))
    wait_until(lambda: committed(storage, LAYOUT) == (10,))
    assert storage.names(f"{LAYOUT.key}/{old.folder}") != (), "what is here is there"
    first.local.delete(f"{LAYOUT.key}/{old.folder}")
    wait_until(lambda: storage.names(f"{LAYOUT.key}/{old.folder}") == ())
    first.end()


def test_the_only_commit_of_storage_stays_until_a_newer_one_is_there(
    start: Callable[..., Start], storage: S3Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Retention is faster than the upload: a node that is lost meanwhile must not take the training back to step 0."""
    first = start()
    old = first.commit(5)
    wait_until(lambda: committed(storage, LAYOUT) == (5,))
    gate = Gate(monkeypatch, first.mirror, "send", names=step_name(10))
    with first.relay._rounds.lock:  # or a round may fall between the two
        first.commit(10)
        first.remove(5)
    wait_until(gate.reached.is_set)
    assert committed(storage, LAYOUT) == (5,)
    assert storage.names(f"{LAYOUT.key}/{old.folder}") != ()
    gate.opened.set()
    wait_until(lambda: committed(storage, LAYOUT) == (10,))
    first.end()
    assert storage.names(f"{LAYOUT.key}/{old.folder}") == ()


def after_damage_in_storage(start: Callable[..., Start], storage: S3Storage) -> tuple[Start, CommitRecord]:
    """Returns a start that knows of one commit, of step 5, of which a file is gone in storage, and that commit."""
    first = start()
    damaged = first.commit(5)
    first.end()
    storage.delete(f"{LAYOUT.key}/{damaged.folder}/rank-0000.bin")
    return start(cold=True), damaged


def test_a_step_that_was_made_again_after_damage_stays_until_a_newer_one_is_there(
    start: Callable[..., Start], storage: S3Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The marker of its damaged predecessor says nothing about it."""
    second, damaged = after_damage_in_storage(start, storage)
    second.quarantine(5)
    wait_until(lambda: committed(storage, LAYOUT) == ())
    again = second.commit(5)
    wait_until(lambda: committed(storage, LAYOUT) == (5,))
    gate = Gate(monkeypatch, second.mirror, "send", names=step_name(10))
    with second.relay._rounds.lock:
        second.commit(10)
        second.remove(5)
    wait_until(gate.reached.is_set)
    assert committed(storage, LAYOUT) == (5,)
    gate.opened.set()
    wait_until(lambda: committed(storage, LAYOUT) == (10,))
    second.end()
    assert storage.names(f"{LAYOUT.key}/{again.folder}") == ()
    assert storage.names(f"{LAYOUT.key}/{damaged.folder}") != (), "evidence stays"


def test_a_damaged_commit_goes_at_once_also_where_a_newer_one_is_on_its_way(
    start: Callable[..., Start], storage: S3Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    second, _ = after_damage_in_storage(start, storage)
    gate = Gate(monkeypatch, second.mirror, "send", names=step_name(10))
    with second.relay._rounds.lock:
        second.commit(10)
        second.quarantine(5)
    wait_until(gate.reached.is_set)
    assert committed(storage, LAYOUT) == ()
    gate.opened.set()
    wait_until(lambda: committed(storage, LAYOUT) == (10,))


def test_a_checkpoint_that_retention_removes_while_it_is_sent_is_committed_all_the_same(
    start: Callable[..., Start], storage: S3Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where uploads always take longer than retention keeps, storage would never get a commit."""
    first = start()
    monkeypatch.setattr("cluster.mirror._FILES_AT_A_TIME", 1)
    upload, newer = Gate(monkeypatch, first.mirror.storage, "upload", names="rank-0000"), Gate(monkeypatch, first.mirror, "send", names=step_name(15))
    commit = first.commit(10)
    wait_until(upload.reached.is_set)
    first.commit(15)
    first.remove(10)
    upload.opened.set()
    wait_until(newer.reached.is_set)
    assert committed(storage, LAYOUT) == (10,)
    for file in commit.files:
        assert storage.hash(f"{LAYOUT.key}/{commit.folder}/{file.path}") == file.xxh3
    newer.opened.set()
    wait_until(lambda: committed(storage, LAYOUT) == (15,))
    assert not list(first.mirror.root.glob(".sending-*")), "what held the files is gone"


def test_a_checkpoint_that_was_removed_before_its_upload_began_is_given_up_aloud(
    start: Callable[..., Start], storage: S3Storage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first = start()
    gate = Gate(monkeypatch, first.mirror, "send", names=step_name(15))
    with first.relay._rounds.lock:
        first.commit(10)
        first.commit(15)
    wait_until(gate.reached.is_set)
    first.remove(10)
    gate.opened.set()
    wait_until(lambda: "step 10 is not committed in storage: it was removed here before it was sent" in caplog.text)
    first.end()
    assert committed(storage, LAYOUT) == (15,)


def test_a_checkpoint_that_was_sent_is_committed_although_retention_removes_it_before_storage_answers(
    start: Callable[..., Start], storage: S3Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = start()
    create, tried, created, go_on = first.mirror.create, threading.Event(), list[str](), threading.Event()

    def late(name: str, data: bytes) -> bool:
        if name == LAYOUT.commit(10) and not tried.is_set():
            tried.set()
            assert go_on.wait(60.0)
            raise UnreachableError("storage is away", why="test", mend="wait")
        created.append(name)
        return create(name, data)

    monkeypatch.setattr(first.mirror, "create", late)
    first.commit(10)
    wait_until(tried.is_set)
    first.commit(15)
    first.remove(10)
    go_on.set()
    wait_until(lambda: committed(storage, LAYOUT) == (15,) and LAYOUT.commit(10) in created)


def without_answer(monkeypatch: pytest.MonkeyPatch, mirror: Mirror, name: str) -> threading.Event:
    """Storage creates an object, and its answers are lost; returns what is set once it was asked to."""
    create, created = mirror.create, threading.Event()

    def lost(key: str, data: bytes) -> bool:
        if key != name:
            return create(key, data)
        create(key, data)
        created.set()
        raise UnreachableError("storage is away", why="test", mend="wait")

    monkeypatch.setattr(mirror, "create", lost)
    return created


def test_a_checkpoint_that_is_given_up_goes_with_the_commit_whose_answer_was_lost(
    start: Callable[..., Start], storage: S3Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No commit may name data that are gone."""
    first = start()
    created = without_answer(monkeypatch, first.mirror, LAYOUT.commit(10))
    old = first.commit(10)
    wait_until(created.is_set)
    with first.relay._rounds.lock:
        first.commit(15)
        first.remove(10)
    wait_until(lambda: storage.names(f"{LAYOUT.key}/{old.folder}") == ())
    assert committed(storage, LAYOUT) == (15,)


def test_an_attempt_that_was_taken_for_dead_gives_nothing_up(
    start: Callable[..., Start], storage: S3Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    forgotten = start()
    created = without_answer(monkeypatch, forgotten.mirror, LAYOUT.commit(10))
    commit = forgotten.commit(10)
    wait_until(created.is_set)
    with forgotten.relay._rounds.lock:
        start()
        forgotten.remove(10)
    forgotten.end()
    assert committed(storage, LAYOUT) == (10,)
    assert len(storage.names(f"{LAYOUT.key}/{commit.folder}")) == 2
    assert not forgotten.relay._pending


def test_a_later_start_is_not_fenced_by_what_a_round_read_before_it_and_does_not_wait_for_that_round(
    start: Callable[..., Start], storage: S3Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = start()
    first.commit(5)
    first.commit(10)
    wait_until(lambda: committed(storage, LAYOUT) == (5, 10))
    start()
    read, has_read, go_on = first.relay._newest_start, threading.Event(), threading.Event()

    def late() -> EpochRecord:
        newest = read()
        has_read.set()
        assert go_on.wait(60.0)
        return newest

    monkeypatch.setattr(first.relay, "_newest_start", late)
    first.remove(5)
    wait_until(has_read.is_set)
    first.begin()
    go_on.set()
    first.commit(15)
    wait_until(lambda: 15 in committed(storage, LAYOUT))


def test_a_checkpoint_that_is_damaged_in_storage_is_passed_over_and_withdrawn_where_ranks_withdraw_it(
    start: Callable[..., Start], storage: S3Storage
) -> None:
    first = start()
    first.commit(5)
    damaged = first.commit(10)
    first.end()
    name = f"{LAYOUT.key}/{damaged.folder}/rank-0000.bin"
    storage.delete(name)
    storage.create_exclusive(name, b"damaged")
    second = start(cold=True, spare=0)
    assert (second.has_data(5), second.has_data(10)) == (True, False)
    second.quarantine(10)
    wait_until(lambda: committed(storage, LAYOUT) == (5,))
    again = second.commit(10)
    wait_until(lambda: committed(storage, LAYOUT) == (5, 10))
    assert CommitRecord.from_bytes(storage.read(LAYOUT.commit(10))).folder == again.folder
    assert storage.names(f"{LAYOUT.key}/quarantine") == ("step-00000010.e000001.json",)
    assert storage.exists(name), "evidence stays"


@pytest.mark.exhaustive
def test_what_was_damaged_on_the_node_alone_stays_in_storage(start: Callable[..., Start], storage: S3Storage) -> None:
    first = start()
    good = first.commit(5)
    wait_until(lambda: committed(storage, LAYOUT) == (5,))
    first.quarantine(5)
    first.end()
    assert committed(storage, LAYOUT) == (5,)
    assert CommitRecord.from_bytes(storage.read(LAYOUT.commit(5))) == good


def test_an_attempt_that_was_taken_for_dead_commits_nothing(start: Callable[..., Start], storage: S3Storage) -> None:
    forgotten, _newer = start(), start()
    forgotten.commit(5)
    forgotten.end()
    assert committed(storage, LAYOUT) == ()


def test_an_attempt_that_was_taken_for_dead_removes_nothing(start: Callable[..., Start], storage: S3Storage) -> None:
    """The next one goes on from what storage has."""
    forgotten = start()
    commits = [forgotten.commit(step) for step in (5, 10, 15)]
    wait_until(lambda: committed(storage, LAYOUT) == (5, 10, 15))
    start()
    forgotten.remove(5)
    forgotten.local.delete(LAYOUT.commit(15))  # as ranks do that go back
    forgotten.end()
    assert committed(storage, LAYOUT) == (5, 10, 15)
    for commit in commits:
        assert len(storage.names(f"{LAYOUT.key}/{commit.folder}")) == 2


def test_an_attempt_that_is_taken_for_dead_while_it_sends_removes_nothing_afterwards(
    start: Callable[..., Start], storage: S3Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    forgotten = start()
    forgotten.commit(5)
    forgotten.commit(10)
    wait_until(lambda: committed(storage, LAYOUT) == (5, 10))
    gate = Gate(monkeypatch, forgotten.mirror, "send", names=step_name(15))
    with forgotten.relay._rounds.lock:
        forgotten.commit(15)
        forgotten.remove(5)
    wait_until(gate.reached.is_set)
    start()
    gate.opened.set()
    forgotten.end()
    assert committed(storage, LAYOUT) == (5, 10)


def test_a_mirror_that_something_else_removed_takes_nothing_from_storage(
    storage: S3Storage, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = Start(storage, tmp_path / "cache")
    first.begin()
    commits = [first.commit(step) for step in (5, 10)]
    wait_until(lambda: committed(storage, LAYOUT) == (5, 10))
    with first.relay._rounds.lock:  # or a round may find half of it
        shutil.rmtree(first.mirror.root)
    wait_until(lambda: caplog.text.count("/commits is gone") >= 2)
    with pytest.raises(UnreachableError, match="/commits is gone"):
        first.end()
    assert committed(storage, LAYOUT) == (5, 10)
    for commit in commits:
        assert len(storage.names(f"{LAYOUT.key}/{commit.folder}")) == 2


def test_commits_that_something_else_removed_from_their_folder_stay_in_storage_until_a_newer_one_is_there(
    start: Callable[..., Start], storage: S3Storage
) -> None:
    """Cleaners of old files leave folders in place."""
    first = start()
    commits = [first.commit(step) for step in (5, 10)]
    wait_until(lambda: committed(storage, LAYOUT) == (5, 10))
    with first.relay._rounds.lock:
        remove_files(first.mirror.root)
        first.relay._forward()
    assert committed(storage, LAYOUT) == (5, 10)
    for commit in commits:
        assert len(storage.names(f"{LAYOUT.key}/{commit.folder}")) == 2
    first.commit(15)
    wait_until(lambda: committed(storage, LAYOUT) == (15,))
    first.end()


def test_the_only_commits_go_at_once_where_a_rewind_left_them_behind(start: Callable[..., Start], storage: S3Storage) -> None:
    first = start()
    first.commit(5)
    wait_until(lambda: committed(storage, LAYOUT) == (5,))
    act = Act(kind=ActKind.REWIND, epoch=first.epoch, step=7, detail="test", at=0.0, back_to_step=0)
    with first.relay._rounds.lock:
        first.local.create_exclusive(LAYOUT.act(0), act.sealed().to_bytes())
        first.local.delete(LAYOUT.commit(5))
    wait_until(lambda: committed(storage, LAYOUT) == ())


@pytest.mark.parametrize("remove", [shutil.rmtree, remove_files], ids=["folders, too", "files alone"])
def test_a_later_start_on_a_node_that_lost_its_mirror_finds_what_storage_has(
    start: Callable[..., Start], storage: S3Storage, remove: Callable[[Path], None]
) -> None:
    first = start()
    first.commit(5)
    wait_until(lambda: committed(storage, LAYOUT) == (5,))
    with first.relay._rounds.lock:
        remove(first.mirror.root)
    first.begin()
    assert committed(first.local, LAYOUT) == (5,)
    assert first.has_data(5)


@pytest.mark.exhaustive
def test_what_killed_uploads_left_is_removed_by_the_next_attempt(start: Callable[..., Start], storage: S3Storage) -> None:
    first = start()
    first.end()
    half = f"{LAYOUT.checkpoints}/{step_name(5)}.e000000"
    storage.create_exclusive(f"{half}/rank-0000.bin", b"half")
    start()
    assert storage.names(LAYOUT.checkpoints) == ()


@pytest.mark.exhaustive
def test_acts_of_ranks_and_of_the_agent_are_the_same_here_and_there(start: Callable[..., Start], storage: S3Storage) -> None:
    def act(step: int) -> bytes:
        return Act(kind=ActKind.SKIPPED_UPDATE, epoch=0, step=step, detail="test", at=float(step)).sealed().to_bytes()

    first = start()
    first.local.create_exclusive(LAYOUT.act(0), act(1))
    wait_until(lambda: storage.exists(LAYOUT.act(0)))
    storage.create_exclusive(LAYOUT.act(1), act(2))  # by the agent, between two starts
    first.relay.begin()
    first.local.create_exclusive(LAYOUT.act(2), act(3))
    first.end()
    assert [storage.read(LAYOUT.act(number)) for number in range(3)] == [act(1), act(2), act(3)]


@pytest.mark.exhaustive
def test_checkpoints_wait_on_the_node_while_storage_is_away_and_follow_later(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with troubled(s3_server.endpoint) as (endpoint, trouble):
        for name, value in s3_server.environment(endpoint=endpoint).items():
            monkeypatch.setenv(name, value)
        storage = S3Storage(f"s3://{BUCKET}/relay-{secrets.token_hex(4)}", sleep=lambda _seconds: None)
        first = Start(storage, tmp_path / "cache")
        first.begin()
        trouble.share = 1.0
        first.commit(5)
        wait_until(lambda: len(trouble.struck) > 20)
        trouble.share = 0.05
        first.commit(10)
        first.end()
        trouble.share = 0.0
        assert committed(storage, LAYOUT) == (5, 10)
