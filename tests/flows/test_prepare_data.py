"""The first stages alone, in order, on one run."""

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest

from cluster.environment import checkout
from schemas.artifact import ArtifactRef
from schemas.journal import RunHandle
from schemas.stage import Stage

RUN = RunHandle(run_id="demo-20261122t020000-7f3a", storage_root="/data", state_dir="/state")


def ref(stage: Stage) -> ArtifactRef:
    return ArtifactRef(stage=stage, key=f"{stage.value}/demo-0123456789ab", fingerprint="0" * 64, content_hash="a" * 64)


def test_it_validates_makes_a_tokenizer_and_tokenizes(monkeypatch: pytest.MonkeyPatch) -> None:
    from flows import prepare_data as story

    asked: dict[str, Any] = {}
    done: list[tuple[Stage, tuple[Any, ...]]] = []

    def doing(stage: Stage) -> Callable[..., ArtifactRef]:
        def act(*arguments: Any) -> ArtifactRef:
            done.append((stage, arguments))
            return ref(stage)

        return act

    def open_or_create(recipe: str, **options: Any) -> RunHandle:
        asked.update(options, recipe=recipe)
        return RUN

    monkeypatch.setattr(story, "open_or_create", open_or_create)
    monkeypatch.setattr(story, "controlled", lambda run: nullcontext())
    stages = (("validate", Stage.VALIDATE), ("prepare", Stage.PREPARE), ("make_tokenizer", Stage.TOKENIZER), ("tokenize", Stage.TOKENIZE))
    for name, stage in stages:
        monkeypatch.setattr(story, name, doing(stage))
    assert story.prepare_data.fn("r.yaml", overrides=("a=b",)) == ref(Stage.TOKENIZE)
    assert asked == {"recipe": "r.yaml", "overrides": ("a=b",), "from_stage": None, "run_id": None, "storage_root": None}
    assert done == [
        (Stage.VALIDATE, (RUN,)),
        (Stage.PREPARE, (RUN, ref(Stage.VALIDATE))),
        (Stage.TOKENIZER, (RUN, ref(Stage.PREPARE))),
        (Stage.TOKENIZE, (RUN, ref(Stage.PREPARE), ref(Stage.TOKENIZER))),
    ]


def test_it_is_called_like_the_whole_pipeline() -> None:
    from inspect import signature

    from flows.prepare_data import prepare_data
    from flows.pretrain import pretrain

    of_plans = {"on_change"}  # it makes what is missing, and never trains
    assert signature(prepare_data.fn).parameters.keys() == signature(pretrain.fn).parameters.keys() - of_plans


@pytest.mark.slow  # imports Prefect anew
def test_a_flow_that_is_called_from_python_reports_to_nobody() -> None:
    asks = "import flows.prepare_data; from prefect.settings import get_current_settings as now; print(now().server.analytics_enabled)"
    told = {"PREFECT_SERVER_ANALYTICS_ENABLED", "DO_NOT_TRACK"}
    environment = {name: value for name, value in os.environ.items() if name not in told}
    done = subprocess.run([sys.executable, "-c", asks], cwd=checkout(), env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "False", done.stderr
