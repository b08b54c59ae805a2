"""Following a run: what people see of each event, at a terminal and elsewhere."""

import contextlib
import io
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.storage import FileStorage
from flows import follow
from schemas.journal import Event, EventKind
from schemas.progress import Heartbeat, RankPhase, RankProgress
from schemas.stage import Stage
from schemas.view import JobProgress
from tasks.runs import Run
from tests.fakes.live_job import PATIENCE_S, wait_until

INCIDENT = {"rank": 1, "step": 80, "committed_step": 76, "cause": "killed", "decision": "restart", "reason": "", "recovered_after_s": 1.9}


def job(**change: Any) -> JobProgress:
    fields: dict[str, Any] = {"job": "job", "attempt": 0, "alive": True, "epoch": 0, "step": 10, "committed_step": -1, "total_steps": 100}
    fields |= {"items_done": 0, "items_total": 0, "heartbeats": (), "incidents": (), "figures": {}, "eta_s": -1.0}
    return JobProgress(**(fields | change))


@pytest.mark.parametrize(
    ("kind", "figures", "line"),
    [
        (EventKind.STAGE_FINISHED, {"seconds": 3.14, "steps": 600}, "train          3.1 s  600 steps"),
        (EventKind.STAGE_FINISHED, {}, "train          0.0 s"),
        (EventKind.STAGE_REUSED, {"steps": 600}, "train     found       600 steps"),
        (EventKind.STAGE_FAILED, {"exit_code": 1}, "train     failed"),
        (EventKind.STAGE_FAILED, {"exit_code": 75}, "train     stopped"),
        (EventKind.NOTE, {}, "train     said"),
        (EventKind.INCIDENT, INCIDENT, "train     rank 1 killed at step 80, running again after 1.9 s, 4 steps redone"),
        (EventKind.RUN_FAILED, {}, ""),
    ],
)
def test_event_lines(kind: EventKind, figures: dict[str, Any], line: str) -> None:
    assert follow.event_line(Event(sequence=0, at=0.0, kind=kind, stage=Stage.TRAIN, message="said", figures=figures)) == line


def test_job_lines() -> None:
    assert follow.job_line(job(items_done=2, items_total=5, job="scan")) == "scan: 2 of 5 items"
    assert follow.job_line(job(figures={"loss": 2.5}, eta_s=30.0)) == "step 10/100, loss 2.500, 30.0 s to go"
    progress = RankProgress(rank=0, pid=1, phase=RankPhase.COMPILING, step=0, committed_step=-1, total_steps=0, at=0.0)
    loading = progress.model_copy(update={"rank": 1, "phase": RankPhase.LOADING})
    beat = Heartbeat(key="k", node_rank=0, host="h", agent_pid=1, epoch=0, sequence=0, at=0.0, ranks=(progress, loading))
    assert follow.job_line(job(step=0, heartbeats=(beat,))) == "loading"  # the one furthest behind


def test_the_time_to_go_follows_the_pace_that_was_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter((0.0, 10.0, 20.0, 21.0, 31.0))
    monkeypatch.setattr(follow.time, "monotonic", lambda: next(now))
    seen: deque[tuple[float, int]] = deque(maxlen=60)
    etas = [getattr(follow.with_eta(job(step=step), seen), "eta_s", None) for step in (10, 20, 30, 25, 35)]
    assert etas == [-1.0, 80.0, 70.0, -1.0, 65.0]  # a restart from a checkpoint starts the measurement again


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(follow, "_POLL_S", 0.02)
    return Run(FileStorage(tmp_path), "demo-20261122t020000-7f3a")


@contextlib.contextmanager
def shown(run: Run, stream: io.StringIO) -> Iterator[None]:
    """Follows as long as the body, then waits for the end of the display: `following` itself waits ten polls, an instant here."""
    before = set(threading.enumerate())
    with follow.following(run, stream=stream):
        (display,) = (thread for thread in threading.enumerate() if thread.name == "follow" and thread not in before)
        yield
    display.join(timeout=PATIENCE_S)
    assert not display.is_alive()


def play(run: Run) -> None:
    run.append(EventKind.RUN_STARTED, "demo-7f3a")
    run.append(EventKind.STAGE_STARTED, stage=Stage.VALIDATE, artifact_key="validate/demo-0123456789ab")
    run.append(EventKind.NOTE, "3 records read", stage=Stage.VALIDATE)
    time.sleep(0.1)
    run.append(EventKind.STAGE_FINISHED, stage=Stage.VALIDATE, figures={"seconds": 1.0, "accepted": 3})


def test_elsewhere_every_event_is_a_line(run: Run) -> None:
    run.append(EventKind.NOTE, "from before", stage=Stage.VALIDATE)
    stream = io.StringIO()
    with shown(run, stream):
        play(run)
    assert stream.getvalue().splitlines() == ["run demo-7f3a", "validate  3 records read", "validate       1.0 s  3 documents"]


def test_at_a_terminal_the_same_lines_stand_above_the_bar(run: Run) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    with shown(run, stream):
        play(run)
    text = stream.getvalue()
    for line in ("run demo-7f3a", "validate  3 records read", "validate       1.0 s  3 documents"):
        assert line in text


def test_a_job_speaks_now_and_then(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "_LINE_EVERY_S", 0.05)
    monkeypatch.setattr(follow, "job_progress", lambda *_args, **_options: job())
    stream = io.StringIO()
    with follow.following(run, stream=stream):
        run.append(EventKind.STAGE_STARTED, stage=Stage.TRAIN, artifact_key="train/demo-0123456789ab")
        wait_until(lambda: "          step 10/100" in stream.getvalue().splitlines())


def test_storage_that_fails_for_a_moment_does_not_end_the_display(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    stream, failures = io.StringIO(), [OSError("stale handle")]
    events = run.events

    def flaky(*, after: int = -1) -> tuple[Event, ...]:
        if failures and after >= 0:
            raise failures.pop()
        return events(after=after)

    monkeypatch.setattr(run, "events", flaky)
    with shown(run, stream):
        play(run)
        wait_until(lambda: not failures)
    assert "3 documents" in stream.getvalue()
