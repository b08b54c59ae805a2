"""How fast a model trained here: which training counts, and what a token of it cost."""

from pathlib import Path
from typing import Any

import pytest

from cluster.layout import ArtifactLayout
from schemas.config import RunConfig
from schemas.plan import Action, PlannedStage
from schemas.sizing import training_size
from schemas.stage import Stage
from tasks.cost_of_training import cost_so_far, planned_cost
from tasks.pace import measured_pace
from tests.fakes.in_process_work import config_with
from tests.fakes.job_request import ARTIFACT
from tests.fakes.training_journal import TrainingJournal

CONFIG = config_with(tokenization={"sequence_length": 100}, model={"config": {"model_type": "llama", "hidden_size": 64}})
TOKENS_PER_STEP = 800


def like(config: RunConfig, **sections: Any) -> RunConfig:
    return RunConfig.model_validate(config.model_dump(mode="json") | sections)


@pytest.fixture
def journal(tmp_path: Path) -> TrainingJournal:
    return TrainingJournal(tmp_path)


def train(journal: TrainingJournal, config: RunConfig = CONFIG, *, key: str = ARTIFACT, at: float = 100.0, steps: int = 50, **changes: Any) -> None:
    """A training of one second a step on two ranks, that has stopped."""
    journal.layout = ArtifactLayout(key)
    journal.attempt(0, at=at, ended_at=at + 12.0 + steps, goes_on=True, artifact_key=key, config=config.model_dump(mode="json"), **changes)
    journal.epoch(0, at=at + 2.0)
    if steps:
        journal.points(0, begin=at + 10.0, steps=range(1, steps + 1))


def test_a_pace_is_device_seconds_per_token_of_the_steps_alone(journal: TrainingJournal) -> None:
    assert measured_pace(journal.storage, CONFIG) is None
    train(journal)
    pace = measured_pace(journal.storage, CONFIG)
    assert pace is not None
    assert (pace.artifact_key, pace.device_s_per_token) == (ARTIFACT, pytest.approx(2 * 1.0 / TOKENS_PER_STEP))


@pytest.mark.parametrize(
    "asked",
    [
        like(CONFIG, model={"config": {"model_type": "llama", "hidden_size": 128}}),
        like(CONFIG, tokenization={"sequence_length": 200}),
        like(CONFIG, training=CONFIG.model_dump(mode="json")["training"] | {"precision": "fp32"}),
        like(CONFIG, cluster={"gpus_per_node": 1}),
    ],
    ids=["another model", "longer sequences", "another precision", "other devices"],
)
def test_what_was_measured_on_something_else_tells_nothing(journal: TrainingJournal, asked: RunConfig) -> None:
    train(journal)
    assert measured_pace(journal.storage, asked) is None


def test_a_batch_of_another_size_scales(journal: TrainingJournal) -> None:
    train(journal)
    larger = like(CONFIG, training=CONFIG.model_dump(mode="json")["training"] | {"global_batch_size": 64})
    assert measured_pace(journal.storage, larger) == measured_pace(journal.storage, CONFIG)


def test_the_training_itself_tells_most_then_a_named_one_then_the_newest(journal: TrainingJournal) -> None:
    other_model = like(CONFIG, model={"pretrained": "/models/a"})
    for at, key, config in (
        (1000.0, "train/a-000000000000", CONFIG),
        (3000.0, "train/b-000000000000", CONFIG),
        (2000.0, "train/c-000000000000", other_model),
    ):
        train(journal, config, key=key, at=at)
    train(journal, key="train/d-000000000000", at=4000.0, steps=0)

    def by(**options: str) -> str:
        pace = measured_pace(journal.storage, CONFIG, **options)
        assert pace is not None
        return pace.artifact_key

    assert by() == "train/b-000000000000"
    assert by(key="train/a-000000000000") == "train/a-000000000000"
    assert by(alike="train/c-000000000000") == "train/c-000000000000"
    assert by(key="train/d-000000000000", alike="train/c-000000000000") == "train/c-000000000000", "it has made no step yet"


# ---- what follows from it ---------------------------------------------------------------------------------------------

BUDGETED = like(CONFIG, budget={"gpu_hours": 2.0}, cluster={"price_per_gpu_hour": 3.0})


def planned(action: Action, key: str = ARTIFACT) -> PlannedStage:
    return PlannedStage(stage=Stage.TRAIN, action=action, key=key, fingerprint="", reasons=())


def test_a_plan_costs_the_steps_that_are_left_and_what_was_used_already(journal: TrainingJournal) -> None:
    size = training_size(BUDGETED)
    assert size.total_steps == 200
    train(journal)
    cost = planned_cost(BUDGETED, storage=journal.storage, stage=planned(Action.BUILD, key=""), size=size)
    assert cost is not None
    assert (cost.device, cost.used_hours, cost.paced_by) == ("rank", 0.0, ARTIFACT)
    assert cost.left_hours == pytest.approx(200 * 2 / 3600)
    assert cost.cost_total == pytest.approx(3.0 * 200 * 2 / 3600)
    journal.storage.create_exclusive(journal.layout.commit(50), b"{}")
    going_on = planned_cost(BUDGETED, storage=journal.storage, stage=planned(Action.CONTINUE), size=size)
    assert going_on is not None
    assert going_on.left_hours == pytest.approx(150 * 2 / 3600)
    assert going_on.used_hours == pytest.approx(2 * 60 / 3600)


def test_a_plan_whose_steps_are_not_known_yet_or_that_was_never_measured_costs_nobody_knows_what(journal: TrainingJournal) -> None:
    size = training_size(BUDGETED)
    unmeasured = planned_cost(BUDGETED, storage=journal.storage, stage=planned(Action.BUILD), size=size)
    train(journal)
    endless = planned_cost(BUDGETED, storage=journal.storage, stage=planned(Action.BUILD), size=size.model_copy(update={"total_steps": None}))
    for cost in (unmeasured, endless):
        assert cost is not None
        assert (cost.total_hours, cost.cost_total) == (None, None)
        assert "is not known" in cost.objection
    assert planned_cost(BUDGETED, storage=journal.storage, stage=planned(Action.REUSE), size=size) is None


def test_what_a_training_took_is_counted_by_its_newest_jobs_budget_and_price(journal: TrainingJournal) -> None:
    assert cost_so_far(journal.storage, journal.layout) is None
    train(journal, BUDGETED, device_s_allowed=7200.0)
    cost = cost_so_far(journal.storage, journal.layout, left_s=90.0)
    assert cost is not None
    assert (cost.budget_hours, cost.price_per_hour) == (2.0, 3.0)
    assert cost.used_hours == pytest.approx(2 * 60 / 3600)
    assert cost.left_hours == pytest.approx(2 * 90 / 3600)
    assert cost.cost_used == pytest.approx(0.1)
