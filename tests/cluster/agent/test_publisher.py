"""What the publisher carries to storage, and what it keeps back."""

import errno
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.agent import publisher as publisher_module
from cluster.agent.publisher import Publisher
from cluster.agent.scratch import NodeScratch
from cluster.attempt import read_heartbeats, read_notices
from cluster.layout import ArtifactLayout, AttemptLayout
from cluster.storage import FileStorage, replace_local
from schemas.progress import Heartbeat, Notice, NoticeKind, RankPhase, RankProgress
from tests.fakes.live_job import wait_until

ARTIFACT = ArtifactLayout("train/x-0123456789ab")
ATTEMPT = ARTIFACT.attempt("", 0)


class Moody(FileStorage):
    """A storage that can be told to refuse writes."""

    refuse = False

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.refused = threading.Event()
        self.after_first: dict[str, Callable[[], None]] = {}
        """Key → what happens once it is written, before the writer hears of it."""

    def create_exclusive(self, key: str, data: bytes) -> None:
        if self.refuse:
            self.refused.set()
            raise OSError(errno.EIO, "Input/output error")
        super().create_exclusive(key, data)
        self.after_first.pop(key, lambda: None)()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher_module, "HEARTBEAT_EVERY_S", 0.02)
    monkeypatch.setattr(publisher_module, "TICK_S", 0.01)


@pytest.fixture
def storage(tmp_path: Path) -> Moody:
    return Moody(tmp_path / "data")


@pytest.fixture
def publisher(storage: Moody) -> Iterator[Publisher]:
    publisher = Publisher(storage, artifact=ARTIFACT, attempt=ATTEMPT, key="k", node_rank=0)
    publisher.start()
    yield publisher
    storage.refuse = False
    publisher.stop(files={})


@pytest.fixture
def scratch(tmp_path: Path) -> NodeScratch:
    scratch = NodeScratch(tmp_path / "scratch")
    scratch.epoch(2).folder.mkdir(parents=True)
    return scratch


def reads(storage: FileStorage, key: str) -> Callable[[], bool]:
    return lambda: storage.exists(key)


def segments(storage: FileStorage, folder: str) -> bytes:
    return b"".join(storage.read(f"{folder}/{name}") for name in storage.names(folder))


def beats(storage: FileStorage) -> tuple[Heartbeat, ...]:
    """The newest heartbeat of each node, asked for until there is one: between listing and reading newer ones may have replaced it."""
    found = list[Heartbeat]()
    wait_until(lambda: bool(found.extend(read_heartbeats(storage, ATTEMPT)) or found))
    return tuple(found)


def progress(*, rank: int, step: int) -> RankProgress:
    return RankProgress(rank=rank, pid=1, phase=RankPhase.STEPPING, step=step, committed_step=-1, total_steps=9, at=1.0)


def notice(*, at: float, rank: int) -> Notice:
    return Notice(at=at, kind=NoticeKind.STRAGGLER, epoch=2, rank=rank, step=7, message="slow", figures={"factor": 2.0})


def test_logs_are_published_as_they_grow(publisher: Publisher, storage: Moody, scratch: NodeScratch) -> None:
    publisher.follow(2, scratch.epoch(2))
    scratch.epoch(2).log(1).write_bytes(b"one\ntw")
    wait_until(reads(storage, ATTEMPT.log_segment(epoch=2, rank=1, sequence=0)))
    with scratch.epoch(2).log(1).open("ab") as file:
        file.write(b"o\n")
    wait_until(lambda: segments(storage, ATTEMPT.logs) == b"one\ntwo\n")


def test_metrics_wait_for_the_end_of_their_line_and_a_torn_last_line_is_dropped(publisher: Publisher, storage: Moody, scratch: NodeScratch) -> None:
    publisher.follow(2, scratch.epoch(2))
    (scratch.epoch(2).folder / "metrics-r0000.jsonl").write_bytes(b'{"a": 1}\n{"b"')
    wait_until(reads(storage, ARTIFACT.metric_segment(epoch=2, rank=0, sequence=0)))
    publisher.finish(2)
    wait_until(lambda: not scratch.epoch(2).folder.exists())
    assert segments(storage, ARTIFACT.metrics) == b'{"a": 1}\n'


def test_notices_of_ranks_and_of_the_agent_are_objects_in_order_of_time(publisher: Publisher, storage: Moody, scratch: NodeScratch) -> None:
    publisher.follow(2, scratch.epoch(2))
    own, ranks = notice(at=2.0, rank=-1), notice(at=1.0, rank=3)
    publisher.notify(own)
    scratch.epoch(2).notice(3).write_bytes(b"no notice\n" + ranks.model_dump_json().encode() + b'\n{"at": 3')
    wait_until(lambda: len(read_notices(storage, ATTEMPT)) == 2)
    publisher.finish(2)
    wait_until(lambda: not scratch.epoch(2).folder.exists())
    assert read_notices(storage, ATTEMPT) == (ranks, own)


def test_a_job_that_says_too_much_is_heard_no_more(publisher: Publisher, storage: Moody, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher_module, "_MOST_NOTICES", 3)
    for moment in range(5):
        publisher.notify(notice(at=float(moment), rank=0))
    publisher.publish(ATTEMPT.incident(0), b"{}")
    wait_until(reads(storage, ATTEMPT.incident(0)))
    assert [found.at for found in read_notices(storage, ATTEMPT)] == [0.0, 1.0, 2.0]


def test_an_ended_epoch_is_published_whole_before_its_files_go(publisher: Publisher, storage: Moody, scratch: NodeScratch) -> None:
    scratch.epoch(2).log(0).write_bytes(b"x" * (3 << 20))
    publisher.follow(2, scratch.epoch(2))
    publisher.finish(2)
    wait_until(lambda: not scratch.epoch(2).folder.exists())
    assert len(segments(storage, ATTEMPT.logs)) == 3 << 20


def test_what_is_written_while_an_epoch_is_published_and_ends_is_published_too(publisher: Publisher, storage: Moody, scratch: NodeScratch) -> None:
    def end() -> None:
        with scratch.epoch(2).log(0).open("ab") as file:  # it has been read in this round
            file.write(b"last\n")
        publisher.finish(2)

    storage.after_first[ATTEMPT.log_segment(epoch=2, rank=1, sequence=0)] = end
    scratch.epoch(2).log(0).write_bytes(b"one\n")
    scratch.epoch(2).log(1).write_bytes(b"two\n")
    publisher.follow(2, scratch.epoch(2))
    wait_until(lambda: not scratch.epoch(2).folder.exists())
    assert storage.read(ATTEMPT.log_segment(epoch=2, rank=0, sequence=1)) == b"last\n"


def test_what_is_written_before_an_unclear_answer_is_cleared_up_is_not_lost(publisher: Publisher, storage: Moody, scratch: NodeScratch) -> None:
    def fall_silent() -> None:
        with scratch.epoch(2).log(0).open("ab") as file:
            file.write(b"two\n")
        raise OSError(errno.EIO, "Input/output error")

    storage.after_first[ATTEMPT.log_segment(epoch=2, rank=0, sequence=0)] = fall_silent
    scratch.epoch(2).log(0).write_bytes(b"one\n")
    publisher.follow(2, scratch.epoch(2))
    publisher.finish(2)
    wait_until(lambda: not scratch.epoch(2).folder.exists())
    assert segments(storage, ATTEMPT.logs) == b"one\ntwo\n"


def test_heartbeats_carry_progress_and_only_the_newest_are_kept(publisher: Publisher, storage: Moody, scratch: NodeScratch) -> None:
    publisher.items_done = 3  # first: the heartbeat that is the first to tell of the rank tells of it, too
    publisher.follow(2, scratch.epoch(2))
    replace_local(scratch.epoch(2).folder / "progress-000001.json", progress(rank=1, step=4).model_dump_json().encode())
    wait_until(lambda: any(beat.ranks for beat in read_heartbeats(storage, ATTEMPT)))
    [beat] = beats(storage)
    assert (beat.epoch, beat.items_done, beat.ranks) == (2, 3, (progress(rank=1, step=4),))
    assert beat.usage is not None
    assert beat.usage.memory_total_bytes > 0
    wait_until(lambda: beats(storage)[0].sequence >= 4)
    assert len(storage.names(ATTEMPT.heartbeats)) <= 4


def test_a_storage_that_refuses_for_a_while_gets_everything_later(publisher: Publisher, storage: Moody, scratch: NodeScratch) -> None:
    storage.refuse = True
    publisher.follow(2, scratch.epoch(2))
    scratch.epoch(2).log(0).write_bytes(b"one\n")
    publisher.publish(ATTEMPT.incident(0), b"{}")
    publisher.finish(2)
    storage.refused.wait(30.0)
    storage.refuse = False
    wait_until(lambda: segments(storage, ATTEMPT.logs) == b"one\n" and storage.exists(ATTEMPT.incident(0)))


def test_hears_the_wish_to_cancel_and_the_word_that_it_was_declared_lost(publisher: Publisher, storage: Moody) -> None:
    assert not publisher.cancelled.is_set()
    storage.create_exclusive(ATTEMPT.cancel, b"{}")
    wait_until(publisher.cancelled.is_set)
    assert not publisher.declared_lost.is_set()
    storage.create_exclusive(ATTEMPT.exit, b"{}")
    wait_until(publisher.declared_lost.is_set)


def test_sequences_go_on_where_an_earlier_agent_of_the_node_stopped(storage: Moody) -> None:
    storage.create_exclusive(AttemptLayout(ATTEMPT.key).heartbeat(0, 41), json.dumps({}).encode())
    publisher = Publisher(storage, artifact=ARTIFACT, attempt=ATTEMPT, key="k", node_rank=0)
    publisher.start()
    publisher.stop(files={})
    assert read_heartbeats(storage, ATTEMPT)[0].sequence >= 42


def test_the_nodes_own_logs_are_kept_at_the_end(storage: Moody, tmp_path: Path) -> None:
    log = tmp_path / "agent.log"
    log.write_text("all is well\n")
    publisher = Publisher(storage, artifact=ARTIFACT, attempt=ATTEMPT, key="k", node_rank=0)
    publisher.start()
    publisher.stop(files={log: "agent", tmp_path / "missing.log": "zygote"})
    assert storage.read(ATTEMPT.node_log("agent", node_rank=0)) == b"all is well\n"
