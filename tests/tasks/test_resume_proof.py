"""The proof itself: what it leaves in the recipe's storage, what kills cost, and how it stops."""

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from cluster.attempt import claim_attempt
from cluster.layout import ArtifactLayout
from cluster.storage import FileStorage
from schemas.artifact import ArtifactRecord
from schemas.attempt import Cause, ExitRecord
from schemas.canonical import canonical_json
from schemas.config import RunConfig
from schemas.errors import InterruptedRunError
from schemas.execution_config import RestartConfig
from schemas.journal import EventKind
from schemas.stage import Stage
from tasks import scratch_training, wiring
from tasks.resume_proof import prove_resume, with_kills
from tasks.runs import Run, list_runs
from tasks.scratch_training import Audience, Origin
from tasks.work import Bench, Draft, Work
from tests.fakes.in_process_work import config_with
from tests.fakes.job_request import gang_request

ENDED = ExitRecord(key="k", exit_code=75, cause=Cause.CANCELLED, message="cancelled", epoch=0, incidents=(), ended_at=1.0)
TRAINED = "train/test-0123456789ab"


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunConfig]:
    """A recipe whose preparing stages write next to nothing."""
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("text")
    for stage in ("validate", "tokenizer", "tokenize"):
        monkeypatch.setattr(f"tasks.{stage}.build.build", small_build)
    yield config_with(
        corpus={"sources": [str(tmp_path / "text")]},
        storage={"root": str(tmp_path / "data")},
        state=str(tmp_path / "state"),
        restart={"max_failures": 3},
    )
    wiring.stop_requested.clear()


def small_build(work: Work) -> Draft:
    return Draft(files=(work.publish_json("made.json", {"stage": work.stage.value}),), summary={})


def scratch_of(config: RunConfig) -> list[Path]:
    folder = Path(config.state) / "verify-resume"
    return list(folder.iterdir()) if folder.exists() else []


def begin_attempt(bench: Bench, *, ended: bool, claimed: bool = True) -> None:
    """Leaves an attempt of the training in the bench's storage; this very process stands for its agent."""
    attempt = ArtifactLayout(TRAINED).attempt("", 0)
    bench.storage.create_exclusive(attempt.spec, canonical_json(gang_request(bench.state_dir)))
    if claimed:
        claim_attempt(bench.storage, attempt, key="k", submission="s")
    if ended:
        bench.storage.create_exclusive(attempt.exit, canonical_json(ENDED))


def prove(config: RunConfig, *, notes: list[str] | None = None, watch: Callable[[Run], AbstractContextManager[None]] | None = None) -> None:
    audience = Audience(note=(notes if notes is not None else []).append, watch=watch or (lambda run: nullcontext()))
    origin = Origin(config, project_dir=Path(config.state).parent, recipe="r.yaml")
    prove_resume(origin, kills=1, seed=0, audience=audience)


def interrupted(*_: Any, bench: Bench, **__: Any) -> ArtifactRecord:
    begin_attempt(bench, ended=True)
    raise InterruptedRunError("train failed: cancelled", mend="headrace resume goes on")


def test_the_recipe_s_storage_gets_artifacts_and_no_run(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """`status` and `resume last` must not meet what a proof does."""
    monkeypatch.setattr(scratch_training, "find_or_make", interrupted)
    seen: list[list[tuple[EventKind, Stage | None]]] = []

    def watch(run: Run) -> AbstractContextManager[None]:
        seen.append([(event.kind, event.stage) for event in run.events()])
        return nullcontext()

    for _ in range(2):
        with pytest.raises(InterruptedRunError):
            prove(config, watch=watch)
    storage = FileStorage(Path(config.storage.root))
    assert list_runs(storage) == ()
    stages = (Stage.VALIDATE, Stage.TOKENIZER, Stage.TOKENIZE)
    assert all(len(storage.names(stage.value)) == 1 for stage in stages)
    first, second = seen[1], seen[3]  # the trainings are watched after the preparation
    assert first == [(kind, stage) for stage in stages for kind in (EventKind.STAGE_STARTED, EventKind.STAGE_FINISHED)]
    assert second == [(EventKind.STAGE_REUSED, stage) for stage in stages]


def test_a_signal_asks_the_training_to_stop_and_the_scratch_goes_once_it_has(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(*arguments: Any, bench: Bench, **named: Any) -> ArtifactRecord:
        os.kill(os.getpid(), signal.SIGINT)
        deadline = time.monotonic() + 10
        while not bench.stop_requested():
            assert time.monotonic() < deadline, "nobody asked"
        return interrupted(bench=bench)

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(scratch_training, "find_or_make", train)
    with pytest.raises(InterruptedRunError) as caught:
        prove(config)
    assert "resume" not in caught.value.mend, "there is no run to resume"
    assert signal.getsignal(signal.SIGINT) is before
    assert scratch_of(config) == []


@pytest.mark.parametrize("claimed", [True, False], ids=["a live agent", "an agent that is about to start"])
def test_scratch_is_never_removed_under_a_live_agent(config: RunConfig, monkeypatch: pytest.MonkeyPatch, claimed: bool) -> None:
    def leave(*_: Any, bench: Bench, **__: Any) -> ArtifactRecord:
        begin_attempt(bench, ended=False, claimed=claimed)
        raise KeyboardInterrupt

    monkeypatch.setattr(scratch_training, "find_or_make", leave)
    notes: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        prove(config, notes=notes)
    (scratch,) = scratch_of(config)
    assert (scratch / "calm" / TRAINED / "attempts").is_dir()
    assert str(scratch) in notes[-1]
    shutil.rmtree(scratch)


def test_kills_alone_never_use_up_a_budget() -> None:
    restart = RestartConfig(max_failures=3, max_interruptions=4, max_attempts_without_progress=2)
    raised = with_kills(restart, 5)
    assert (raised.max_failures, raised.max_interruptions, raised.max_attempts_without_progress) == (8, 9, 7)
    assert raised.backoff_s == restart.backoff_s
