"""The first stages of a run, made as a run makes them: real jobs, a store and pointers, without Prefect."""

import importlib
from pathlib import Path
from typing import Any

import pytest

from schemas.artifact import ArtifactRecord
from schemas.recipe import load_recipe
from schemas.stage import Stage
from tasks.runs import create_run
from tasks.validate import judge as judging
from tasks.validate.checks import Verdict
from tasks.wiring import Listener, bench_of, find_or_make, ignore_view
from tests.fakes.tiny_pipeline import Project


def make_stages(project: Project, *assignments: str, until: Stage) -> list[ArtifactRecord]:
    """Makes the stages of a new run up to one, and returns their records. `assignments`: overrides of the recipe."""
    loaded = load_recipe(project.recipe, assignments)
    handle = create_run(loaded.config, project_dir=loaded.project_dir, recipe=str(loaded.path), overrides=tuple(assignments))
    bench = bench_of(handle, listener=Listener(note=lambda _: None, view=ignore_view))
    stages = loaded.config.stages[: loaded.config.stages.index(until) + 1]
    return [find_or_make(stage, bench=bench, build=importlib.import_module(f"tasks.{stage.value}.build").build) for stage in stages]


def judge_leniently(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands for Great Expectations, whose import takes seconds, where a test is about the scan."""

    def judge(*_: Any, docs_dir: Path, **__: Any) -> judging.Judgement:
        (docs_dir / "index.html").write_text("judged")
        return judging.Judgement(Verdict.PASS, 1, ())

    monkeypatch.setattr(judging, "judge", judge)
    monkeypatch.setattr(judging, "preload", lambda: None)
