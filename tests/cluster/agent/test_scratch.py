"""The node-local folder."""

import signal
from pathlib import Path

import pytest

from cluster.agent.scratch import EpochScratch
from cluster.restart import Ending, classify
from schemas.attempt import Cause
from schemas.progress import RankPhase, RankProgress


def test_files_are_found_by_rank(tmp_path: Path) -> None:
    scratch = EpochScratch(tmp_path)
    for name in ("log-000002.txt", "log-000000.txt", "metrics-r0001.jsonl", "log-x.txt", "task.json"):
        (tmp_path / name).touch()
    assert list(scratch.logs()) == [0, 2]
    assert list(scratch.metrics()) == [1]
    assert EpochScratch(tmp_path / "none").logs() == {}


def test_a_folder_that_is_removed_between_two_looks_holds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent removes it when its job ends; others read it."""
    scratch = EpochScratch(tmp_path / "removed")
    monkeypatch.setattr(Path, "is_dir", lambda _: True)
    assert scratch.progress() == ()
    assert scratch.logs() == {}


def test_progress_passes_over_what_makes_no_sense(tmp_path: Path) -> None:
    told = RankProgress(rank=3, pid=1, phase=RankPhase.STEPPING, step=2, committed_step=-1, total_steps=9, at=1.0)
    (tmp_path / "progress-000003.json").write_text(told.model_dump_json())
    (tmp_path / "progress-000004.json").write_text('{"rank": 4')
    scratch = EpochScratch(tmp_path)
    assert scratch.progress() == (told,)
    scratch.remove_progress(3)
    assert scratch.progress() == ()


def test_the_tail_of_a_long_log(tmp_path: Path) -> None:
    scratch = EpochScratch(tmp_path)
    scratch.log(0).write_bytes(b"".join(b"line %d\n" % number for number in range(50_000)) + b"\xff\n\n\n")
    assert scratch.tail(0, lines=2) == ("line 49999", "\ufffd")
    assert scratch.tail(1, lines=2) == ()


def test_of_an_abort_the_reason_is_kept_not_the_end_of_the_stack(tmp_path: Path) -> None:
    scratch = EpochScratch(tmp_path)
    reason = "  what():  [pair.cc:537] Read error [127.0.0.1]:4711: Connection reset by peer"
    stack = [f'  File "loop.py", line {number} in step' for number in range(60)]
    report = [
        "terminate called after throwing an instance of 'gloo::EnforceNotMet'",
        reason,
        "Fatal Python error: Aborted",
        "",
        "Thread 0x1:",
        *stack,
    ]
    scratch.log(0).write_text("\n".join([*(f"step {number}" for number in range(50)), *report, "Extension modules: numpy, torch (total: 2)"]))
    tail = scratch.tail(0, lines=20)
    assert len(tail) == 20
    assert reason in tail
    assert not any(line.startswith("Extension modules:") for line in tail)
    finding = classify(Ending(name="rank 0", exit_status=-signal.SIGABRT, tail=tail))
    assert (finding.cause, finding.echo) == (Cause.NODE, True)
