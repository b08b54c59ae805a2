"""A run's folder: wishes that it stops."""

import time
from pathlib import Path

import pytest

from cluster.storage import FileStorage, Storage
from schemas.attempt import CancelRequest
from tasks.runs import Run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(FileStorage(tmp_path), "demo-20261122t020000-7f3a")


def test_a_wish_counts_for_who_controls_the_run_now_and_for_nobody_after(run: Run) -> None:
    began = time.time()
    assert not run.stop_asked(began)
    run.ask_to_stop("headrace cancel")
    assert run.stop_asked(began)
    resumed = time.time() + 0.001
    assert not run.stop_asked(resumed), "the wish was for the process before"
    time.sleep(0.002)
    run.ask_to_stop("headrace cancel")
    assert run.stop_asked(resumed)


def test_every_wish_is_kept_and_none_replaces_another(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run.ask_to_stop("first")
    monkeypatch.setattr(run.storage, "names", lambda prefix: ())  # another process writes between the look and the write
    run.ask_to_stop("second")
    monkeypatch.undo()
    folder = run.layout.cancel_wishes
    assert list(run.storage.names(folder)) == ["0000.json", "0001.json"]
    assert [reason(run.storage, f"{folder}/{name}") for name in run.storage.names(folder)] == ["first", "second"]


def reason(storage: Storage, key: str) -> str:
    return CancelRequest.model_validate_json(storage.read(key)).reason
