"""Cancellation of a run that another process works on: everything through storage."""

import time
from pathlib import Path
from typing import Any

import pytest

from cluster.attempt import claim_attempt, read_exit
from cluster.layout import ArtifactLayout
from flows.cancellation import request_cancel, wait_until_stopped
from schemas.attempt import CancelRequest, Cause, ExitRecord
from schemas.canonical import canonical_json
from schemas.journal import EventKind, RunFile
from schemas.stage import Stage
from schemas.view import RunState
from tasks.runs import Run
from tests.chaos.live_training import tiny_config
from tests.fakes.job_request import ARTIFACT, gang_request
from tests.fakes.scripted_launcher import ScriptedLauncher

RUN_ID = "demo-20261122t020000-7f3a"
LAYOUT = ArtifactLayout(ARTIFACT)
ENDED = ExitRecord(key="k", exit_code=0, cause=Cause.FINISHED, message="", epoch=0, incidents=(), ended_at=1.0)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run whose training had one attempt that ended and has one that works."""
    from cluster.storage import FileStorage

    run = Run(FileStorage(tmp_path / "data"), RUN_ID)
    fields: dict[str, Any] = {"run_id": RUN_ID, "recipe": "r.yaml", "overrides": (), "from_stage": None, "project_dir": "/p", "state_dir": "/s"}
    run.storage.create_exclusive(run.layout.config, canonical_json(RunFile(**fields, config={}, created_at=0.0, argv=())))
    run.append(EventKind.STAGE_STARTED, stage=Stage.TRAIN, artifact_key=ARTIFACT)
    for number, text in ((0, b"old 0\n"), (1, b"line 0\nline 1\n")):
        attempt = LAYOUT.attempt("", number)
        spec = gang_request(tmp_path).model_copy(update={"attempt": number})
        run.storage.create_exclusive(attempt.spec, canonical_json(spec))
        run.storage.create_exclusive(attempt.log_segment(epoch=number, rank=0, sequence=0), text)
        run.storage.create_exclusive(attempt.log_segment(epoch=number, rank=1, sequence=0), b"other rank\n")
        claim_attempt(run.storage, attempt, key=spec.key, submission="first")
    run.storage.create_exclusive(LAYOUT.attempt("", 0).exit, canonical_json(ENDED))
    return run


def test_only_what_still_works_is_asked_to_stop_and_once_is_enough(run: Run) -> None:
    assert request_cancel(run, reason="test") == (LAYOUT.attempt("", 1).key,)
    assert request_cancel(run, reason="again") == (LAYOUT.attempt("", 1).key,)
    request = CancelRequest.model_validate_json(run.storage.read(LAYOUT.attempt("", 1).cancel))
    assert request.reason == "test"
    assert not run.storage.exists(LAYOUT.attempt("", 0).cancel)


def test_the_control_process_is_asked_before_any_job_and_also_between_jobs(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between jobs, while the corpus is judged or a model is registered, nobody else can be asked."""
    created: list[str] = []
    create = run.storage.create_exclusive

    def recorded(key: str, data: bytes) -> None:
        created.append(key)
        create(key, data)

    monkeypatch.setattr(run.storage, "create_exclusive", recorded)
    request_cancel(run, reason="test")
    assert created == [run.layout.cancel_wish(0), LAYOUT.attempt("", 1).cancel]
    run.storage.create_exclusive(LAYOUT.attempt("", 1).exit, canonical_json(ENDED))
    began = time.time()
    assert request_cancel(run, reason="no job works") == ()
    assert run.stop_asked(began)


def test_a_job_that_has_not_begun_leaves_its_queue_and_never_will(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It may wait for days, and nobody controls it: the next run starts another."""
    launcher = ScriptedLauncher([])
    monkeypatch.setattr("flows.cancellation.launcher_for", lambda config: launcher)
    waiting = LAYOUT.attempt("", 2)
    spec = gang_request(tmp_path, config=tiny_config().model_dump(mode="json")).model_copy(update={"attempt": 2, "key": "waits"})
    run.storage.create_exclusive(waiting.spec, canonical_json(spec))
    assert request_cancel(run, reason="test") == (LAYOUT.attempt("", 1).key, waiting.key)
    assert launcher.cancelled == ["waits"]
    record = read_exit(run.storage, waiting)
    assert record is not None
    assert (record.cause, record.message) == (Cause.CANCELLED, "cancelled before it began")
    assert not claim_attempt(run.storage, waiting, key="waits", submission="late"), "a job that starts all the same finds it taken"


def test_a_run_that_nobody_works_on_has_stopped(run: Run) -> None:
    assert wait_until_stopped(run, timeout_s=0.0).state is RunState.INTERRUPTED
