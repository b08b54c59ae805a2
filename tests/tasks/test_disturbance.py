"""Who is killed, and who is not: what a rank tells of itself is seconds old when it is read."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from cluster.storage import FileStorage, Storage
from schemas.errors import UnreachableError
from schemas.progress import RankPhase, RankProgress
from tasks import disturbance
from tasks.disturbance import Kill, is_still, kill_rank


@pytest.fixture
def process() -> Iterator["subprocess.Popen[bytes]"]:
    """A process that waits to be killed."""
    child = subprocess.Popen((sys.executable, "-c", "import time; time.sleep(600)"))
    yield child
    child.kill()
    child.wait()


def progress(pid: int, *, rank: int = 1, at: float | None = None, step: int = 7, committed_step: int = -1) -> RankProgress:
    at = time.time() + 1 if at is None else at
    return RankProgress(rank=rank, pid=pid, phase=RankPhase.STEPPING, step=step, committed_step=committed_step, total_steps=9, at=at)


class Looks:
    """Stands for the scratch folders that are found: the next answer at each look, errors raised; after the last one the wait is cancelled."""

    def __init__(self, *answers: RankProgress | Exception | None, beside: tuple[RankProgress, ...] = ()) -> None:
        """Args: answers: what the rank that is looked for says. beside: what the others say, always."""
        self.left, self.beside = list(answers), beside
        self.cancelled = threading.Event()

    def __call__(self, _storage: Storage, _key: str, *, epoch: int) -> SimpleNamespace | None:
        assert epoch == 0
        if not self.left:
            self.cancelled.set()
            return None
        answer = self.left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return None if answer is None else SimpleNamespace(progress=lambda: (*self.beside, answer))


def kill(looks: Looks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, when: Callable[[RankProgress], bool] = disturbance.at_once) -> Kill | None:
    for pause in ("_LOOK_S", "_POLL_S"):
        monkeypatch.setattr(disturbance, pause, 0.0)
    monkeypatch.setattr(disturbance, "_WATCH_S", 0.05)
    monkeypatch.setattr(disturbance, "_scratch", looks)
    return kill_rank(FileStorage(tmp_path), artifact_key=lambda: "train/x", rank=1, at_step=5, epoch=0, cancelled=looks.cancelled, when=when)


def test_a_rank_that_has_come_so_far_is_killed(process: "subprocess.Popen[bytes]", tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = Looks(None, progress(process.pid, step=4), progress(process.pid))
    assert kill(looks, tmp_path, monkeypatch) == Kill(rank=1, step=7, pid=process.pid)
    assert process.wait(timeout=10) == -9


def test_the_other_ranks_are_left_alone(process: "subprocess.Popen[bytes]", tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen((sys.executable, "-c", "import time; time.sleep(600)")) as other:
        looks = Looks(progress(process.pid), beside=(progress(other.pid, rank=0), progress(other.pid, rank=2)))
        assert kill(looks, tmp_path, monkeypatch) == Kill(rank=1, step=7, pid=process.pid)
        assert other.poll() is None
        other.kill()


def test_it_is_killed_when_the_condition_holds(process: "subprocess.Popen[bytes]", tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = Looks(progress(process.pid, step=6), progress(process.pid, step=8, committed_step=6))
    assert kill(looks, tmp_path, monkeypatch, when=lambda told: told.committed_step >= 0) == Kill(rank=1, step=8, pid=process.pid)


def test_another_process_with_its_pid_is_left_alone(process: "subprocess.Popen[bytes]", tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = psutil.Process(process.pid).create_time() - 5.0  # the rank spoke, ended, and its pid was given away
    assert kill(Looks(progress(process.pid, at=before)), tmp_path, monkeypatch) is None
    assert process.poll() is None


def test_a_rank_that_ended_is_looked_for_again(process: "subprocess.Popen[bytes]", tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have ended before the look, or between the look and the kill; its storage may not answer for a moment."""
    ended = subprocess.Popen((sys.executable, "-c", ""))
    ended.wait()
    monkeypatch.setattr(disturbance, "is_still", lambda progress: True)
    looks = Looks(progress(ended.pid), FileNotFoundError("superseded"), UnreachableError("storage"), progress(process.pid))
    assert kill(looks, tmp_path, monkeypatch) == Kill(rank=1, step=7, pid=process.pid)


def test_a_pid_belongs_to_who_started_before_the_word_was_said(process: "subprocess.Popen[bytes]") -> None:
    started = psutil.Process(process.pid).create_time()
    assert is_still(progress(process.pid, at=started + 1.5))
    assert not is_still(progress(process.pid, at=started - 1.5))
    process.kill()
    process.wait()
    assert not is_still(progress(process.pid))
