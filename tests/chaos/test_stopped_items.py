"""Items of real stages that are stopped in the midst of their work: noticed, run again, and what they make is what it would have been."""

import contextlib
import importlib
import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.agent.stacks import process_facts
from cluster.trailing import QUIET_LIMIT_S
from schemas.artifact import ArtifactRecord
from schemas.recipe import load_recipe
from schemas.stage import Stage
from tasks.runs import Run, create_run, open_run
from tasks.validate import judge as judging
from tasks.validate.checks import Verdict
from tasks.wiring import Listener, bench_of, find_or_make, ignore_view
from tests.fakes.tiny_pipeline import Project, make_project

PATIENCE_S = 240.0
"""Of all stages together, on a machine that is busy with other things, too."""
_UNFINISHED = re.compile(r"^\.tmp-e\d+-(\d+)-")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """Two groups of text that take a while. Nothing stands for a stage but Great Expectations, whose import takes seconds."""

    def judge(*_: Any, docs_dir: Path, **__: Any) -> judging.Judgement:
        (docs_dir / "index.html").write_text("judged")
        return judging.Judgement(Verdict.PASS, 1, ())

    monkeypatch.setattr(judging, "judge", judge)
    monkeypatch.setattr(judging, "preload", lambda: None)
    sources = {"corpus.sources": [{"path": "parts", "name": "numbers"}], "corpus.group_bytes": 10_000_000}
    project = make_project(tmp_path / "project", changes=sources)
    (project.folder / "parts").mkdir()
    for part in range(2):
        rows = (json.dumps({"text": f"{part}.{row}: " + " ".join(f"word{row * word % 9973}" for word in range(60))}) for row in range(18_000))
        (project.folder / "parts" / f"part-{part}.jsonl").write_text("\n".join(rows))
    return project


def make(project: Project, root: Path, stages: tuple[Stage, ...]) -> tuple[list[ArtifactRecord], Run]:
    """Makes stages in a store of their own, by real jobs; returns their records and the run."""
    loaded = load_recipe(project.recipe, (f"storage.root={root}",))
    handle = create_run(loaded.config, project_dir=loaded.project_dir, recipe=str(loaded.path))
    deadline = time.monotonic() + PATIENCE_S
    bench = bench_of(handle, listener=Listener(note=lambda _: None, view=ignore_view))
    bench = replace(bench, stop_requested=lambda: time.monotonic() > deadline)  # what is not noticed would hang for ever
    return [find_or_make(stage, bench=bench, build=importlib.import_module(f"tasks.{stage.value}.build").build) for stage in stages], open_run(handle)


@contextlib.contextmanager
def stopping_one(root: Path, folder: str) -> Iterator[list[int]]:
    """Stops, once, a process that is writing a file into an artifact's folder; yields a list that then holds its pid."""
    stopped, over = list[int](), threading.Event()

    def watch() -> None:
        while not stopped and not over.wait(0.002):
            for path in root.glob(f"*/*/{folder}/.tmp-*"):
                match = _UNFINISHED.match(path.name)
                if match is not None and not stopped and _stopped(int(match[1]), path):
                    stopped.append(int(match[1]))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield stopped
    finally:
        over.set()
        thread.join()


def _stopped(pid: int, writing: Path) -> bool:
    """Stops a process; returns whether it had not finished its file by then. One that had goes on."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
        deadline = time.monotonic() + PATIENCE_S
        while (facts := process_facts(pid)) is not None and time.monotonic() < deadline:
            if facts.state.frozen:
                if writing.exists():
                    return True
                os.kill(pid, signal.SIGCONT)
                return False
    return False


def left_unfinished(root: Path) -> list[str]:
    return [path.name for path in root.rglob(".tmp-*")]


@pytest.mark.parametrize(
    ("stages", "folder"),
    [
        pytest.param((Stage.VALIDATE,), "accepted", marks=pytest.mark.slow),
        pytest.param((Stage.VALIDATE, Stage.TOKENIZER, Stage.TOKENIZE), "shards", marks=pytest.mark.exhaustive),
    ],
)
def test_an_item_that_is_stopped_in_the_middle_changes_nothing_but_the_time(
    project: Project, tmp_path: Path, stages: tuple[Stage, ...], folder: str
) -> None:
    calm, _ = make(project, tmp_path / "calm", stages)
    with stopping_one(tmp_path / "struck", folder) as stopped:
        struck, run = make(project, tmp_path / "struck", stages)
    assert len(stopped) == 1, "an item was stopped in the middle"
    assert [(record.content_hash, record.files) for record in struck] == [(record.content_hash, record.files) for record in calm]
    assert left_unfinished(tmp_path / "struck") == []
    told = [event for event in run.events() if event.kind == "incident"]
    assert [(event.stage, event.figures["cause"], event.figures["decision"]) for event in told] == [(stages[-1], "hang", "restart")]
    assert re.match(r"item \d \(g\d{4}\): hang; restart", told[0].message)
    assert told[0].figures["detected_after_s"] < QUIET_LIMIT_S, "because it was stopped, and not because it was silent for long"
