"""What a flow run does with its plan before it works: nothing, ask people, or begin a run."""

import logging
import shlex
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from prefect.client.schemas.objects import State, StateType

from cluster.lease import Lease
from cluster.storage import FileStorage
from flows import scheduling
from schemas.cost import training_cost
from schemas.errors import ConfigError
from schemas.journal import RunHandle
from schemas.plan import Action, OnChange, Plan, PlannedStage
from schemas.recipe import LoadedRecipe, load_recipe
from schemas.sizing import training_size
from schemas.stage import Stage, stages_of
from tasks.runs import create_run, open_run
from tests.fakes.finished_records import finish, promote
from tests.fakes.golden import assert_golden

RUN = RunHandle(run_id="demo-20261122t020000-7f3a", storage_root="/data", state_dir="/state")


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What Prefect and the store of runs are told."""
    told: dict[str, Any] = {"lines": [], "artifacts": {}, "run": None}
    logger = SimpleNamespace(info=lambda text, *values: told["lines"].append(text % values))
    monkeypatch.setattr(scheduling, "get_run_logger", lambda: logger)
    monkeypatch.setattr(scheduling, "create_markdown_artifact", lambda *, markdown, key: told["artifacts"].update({key: markdown}))
    monkeypatch.setattr(scheduling, "runtime", SimpleNamespace(deployment=SimpleNamespace(name=None), flow_run=SimpleNamespace(tags=[])))

    def new_run(loaded: LoadedRecipe, **_: Any) -> RunHandle:
        told["run"] = loaded
        return RUN

    monkeypatch.setattr(scheduling, "new_run", new_run)
    return told


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[..., Path]:
    """Writes a recipe and its text."""

    def write(**sections: Any) -> Path:
        (tmp_path / "text").mkdir(exist_ok=True)
        (tmp_path / "text" / "a.txt").write_text("text")
        base = {
            "name": "demo",
            "corpus": {"sources": ["text"]},
            "model": {"config": {"model_type": "llama"}},
            "training": {"steps": 200, "global_batch_size": 8, "micro_batch_size": 4},
            "storage": {"root": "data"},
            "state": "state",
        }
        (tmp_path / "my.yaml").write_text(yaml.safe_dump(base | sections))
        return tmp_path / "my.yaml"

    return write


def plan_first(path: Path, on_change: OnChange = OnChange.RETRAIN, *overrides: str) -> RunHandle | State[Any]:
    return scheduling.plan_first(str(path), overrides=overrides, from_stage=None, on_change=on_change)


def test_the_plan_is_shown_and_the_run_begins(told: dict[str, Any], recipe: Callable[..., Path]) -> None:
    path = recipe()
    assert plan_first(path, OnChange.RETRAIN, "training.seed=3") == RUN
    (shown,) = told["lines"]
    assert shown.startswith(f"demo: artifacts in {path.parent}/data\n")
    assert "validate   build" in shown
    assert told["run"].overrides == ("training.seed=3",)
    assert told["artifacts"] == {}


def test_nothing_changed_is_completed_without_a_run(told: dict[str, Any], recipe: Callable[..., Path]) -> None:
    path = recipe()
    records = finish(load_recipe(path).config, summaries={Stage.REGISTER: {"model_name": "demo"}})
    for on_change in OnChange:
        state = plan_first(path, on_change)
        assert isinstance(state, State)
        assert (state.type, state.name) == (StateType.COMPLETED, "Completed")
        assert state.message == "nothing to do: models:/demo@champion, version 1, is made from exactly this"
        assert state.data == records[Stage.REGISTER].ref()
    assert (told["run"], told["artifacts"], told["lines"]) == (None, {}, [])


def test_a_scheduled_run_is_skipped_while_an_earlier_one_of_its_recipe_is_at_work(
    told: dict[str, Any], recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = recipe()
    begun = create_run(load_recipe(path).config, project_dir=path.parent, recipe=str(path))
    run = open_run(begun)
    with Lease.take(run.storage, run.layout.control):
        assert plan_first(path) == RUN, "people may begin another, which waits where it must"
        monkeypatch.setattr(scheduling.runtime, "flow_run", SimpleNamespace(tags=["auto-scheduled"]))
        state = plan_first(path, OnChange.PROPOSE)
        assert isinstance(state, State)
        assert (state.type, state.name) == (StateType.COMPLETED, "Skipped")
        assert state.message == f"skipped: {begun.run_name} is running; look: headrace status {begun.run_id}"
        assert told["artifacts"] == {}
        assert plan_first(path, OnChange.RETRAIN, "name=demo-other") == RUN
    assert plan_first(path) == RUN, "it is at work no more"


def test_a_proposal_runs_nothing_and_says_how_it_is_accepted(told: dict[str, Any], recipe: Callable[..., Path]) -> None:
    path = recipe()
    state = plan_first(path, OnChange.PROPOSE, "training.seed=3")
    assert isinstance(state, State)
    accept = f"headrace run {path} --set training.seed=3"
    assert (state.type, state.name) == (StateType.COMPLETED, "Proposed")
    assert state.message == f"proposed: something has changed; accept: {accept}"
    assert told["run"] is None
    assert accept in told["artifacts"]["plan"]
    assert "validate   build" in told["artifacts"]["plan"]
    assert not (path.parent / "data" / "runs").exists()


@pytest.mark.parametrize("on_change", OnChange)
def test_what_nobody_can_tell_is_proposed_where_there_is_a_budget(told: dict[str, Any], recipe: Callable[..., Path], on_change: OnChange) -> None:
    state = plan_first(recipe(budget={"gpu_hours": 4}), on_change)
    assert isinstance(state, State)
    assert str(state.message).startswith("proposed: what training would take is not known, and budget.gpu_hours allows 4; accept: headrace run ")
    assert told["run"] is None


def test_a_cluster_without_a_way_to_it_is_refused_before_anything_is_planned(told: dict[str, Any], recipe: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match=r"cluster\.kubernetes\.kubeconfig"):
        plan_first(recipe(cluster={"kind": "kubernetes", "image": "x", "kubernetes": {"kubeconfig": "/no/such/file"}}))
    assert told["lines"] == []


# ---- from the champion ------------------------------------------------------------------------------------------------


def test_without_a_champion_training_starts_from_the_beginning_and_that_is_said(told: dict[str, Any], recipe: Callable[..., Path]) -> None:
    assert plan_first(recipe(), OnChange.CONTINUE) == RUN
    assert told["lines"][0] == "demo has no champion yet: training starts from the beginning"
    assert told["run"].config.model.pretrained is None


def give_weights(folder: Path) -> None:
    """What the plan looks at of an exported model; its tokenizer is asked for its vocabulary elsewhere."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llama", "vocab_size": 32768, "max_position_embeddings": 4096}')
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "tokenizer.json").write_text("{}")


def test_training_starts_from_the_champion_until_nothing_has_changed(
    told: dict[str, Any], recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.planning.check_tokenizer", lambda config: None)
    path = recipe(registration={"model_name": "test"})
    config = load_recipe(path).config
    first = finish(config)
    promote(config, version=1)
    model = path.parent / "data" / first[Stage.EXPORT].key / "model"
    give_weights(model)

    (path.parent / "text" / "b.txt").write_text("more text")
    assert plan_first(path, OnChange.CONTINUE) == RUN
    begun = told["run"].config
    assert (begun.model.config, begun.model.pretrained, begun.tokenizer.path) == (None, str(model), str(model))
    assert told["lines"][0] == "training starts from models:/test/1"

    second = finish(begun, run_id="second", made="2", summaries={Stage.REGISTER: {"version": 2}})
    assert second[Stage.TRAIN].outside["pretrained"], "the champion's content is part of what it is"
    assert FileStorage(path.parent / "data").exists(f"{second[Stage.TRAIN].key}/record.json")
    for champion in (1, 2):  # whether or not it passed its gate
        if champion == 2:
            promote(config, version=2, number=1)
            give_weights(path.parent / "data" / second[Stage.EXPORT].key / "model")
        told["run"] = None
        state = plan_first(path, OnChange.CONTINUE)
        assert isinstance(state, State)
        assert str(state.message).startswith("nothing to do: models:/test@champion, version 2")
        assert told["run"] is None


# ---- how it is accepted -----------------------------------------------------------------------------------------------


def plan(*, total_h: float | None, budget_h: float | None, path: Path) -> Plan:
    config = load_recipe(path).config
    left_s = None if total_h is None else 3600.0 * total_h
    cost = training_cost(gpus=True, used_s=0.0, left_s=left_s, budget_s=None if budget_h is None else 3600.0 * budget_h, price_per_hour=None)
    stages = tuple(
        PlannedStage(stage=stage, action=Action.BUILD, key="", fingerprint="", reasons=("not made yet",)) for stage in stages_of(prepared=False)
    )
    return Plan(name="demo", storage_root="/data", stages=stages, size=training_size(config), cost=cost)


@pytest.mark.parametrize(
    ("total_h", "budget_h", "enough"),
    [(12.0, 8.0, 15.0), (0.0123, 0.01, 0.015), (1234.0, 8.0, 1500.0), (None, 8.0, None), (4.0, 8.0, None), (4.0, None, None)],
)
def test_a_budget_that_is_proposed_leaves_some_room(
    total_h: float | None, budget_h: float | None, enough: float | None, recipe: Callable[..., Path]
) -> None:
    found = scheduling._enough(plan(total_h=total_h, budget_h=budget_h, path=recipe()))
    assert found == (None if enough is None else pytest.approx(enough))


def test_accepting_raises_the_budget_that_is_exceeded(told: dict[str, Any], recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = recipe(budget={"gpu_hours": 8})
    monkeypatch.setattr(scheduling, "plan_checked", lambda *_, **__: plan(total_h=12.0, budget_h=8.0, path=path))
    flow_run = SimpleNamespace(flow_name="pretrain", tags=[], parameters={"overrides": ["budget.gpu_hours=8", "training.seed=3"]})
    monkeypatch.setattr(scheduling, "runtime", SimpleNamespace(deployment=SimpleNamespace(name="nightly"), flow_run=flow_run))
    plan_first(path, OnChange.RETRAIN, "budget.gpu_hours=8", "training.seed=3")
    proposal = told["artifacts"]["plan"]
    assert f"headrace run {path} --set training.seed=3 --set budget.gpu_hours=15\n" in proposal
    (command,) = [line for line in proposal.splitlines() if line.startswith("prefect ")]
    assert shlex.split(command) == [
        *("prefect", "deployment", "run", "pretrain/nightly"),
        *("--param", "on_change=retrain"),
        *("--param", 'overrides=["training.seed=3", "budget.gpu_hours=15"]'),
    ]


def test_a_deployments_proposal_may_be_accepted_either_way(
    told: dict[str, Any], recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    flow_run = SimpleNamespace(flow_name="pretrain", tags=[], parameters={})
    monkeypatch.setattr(scheduling, "runtime", SimpleNamespace(deployment=SimpleNamespace(name="nightly"), flow_run=flow_run))
    plan_first(recipe(), OnChange.PROPOSE)
    commands = [line for line in told["artifacts"]["plan"].splitlines() if line.startswith("prefect ")]
    assert commands == [f"prefect deployment run pretrain/nightly --param on_change={way}" for way in ("retrain", "continue")]


def test_the_text_of_a_proposal(recipe: Callable[..., Path]) -> None:
    loaded = load_recipe(recipe())
    commands = ("headrace run my.yaml", "prefect deployment run pretrain/demo --param on_change=retrain")
    text = scheduling.proposal(loaded, why="something has changed", screen=["demo: artifacts in /data", "", "  validate  build"], commands=commands)
    assert_golden("proposal.md", text)


def test_a_logger_is_called_as_a_logger_is(
    recipe: Callable[..., Path], told: dict[str, Any], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan holds percent signs."""
    monkeypatch.setattr(scheduling, "get_run_logger", lambda: logging.getLogger("test"))
    with caplog.at_level(logging.INFO):
        plan_first(recipe(name="demo"))
    assert "validate" in caplog.text
