"""What the elastic proof decides: which sizes are possible, when segments end, and what counts as shown."""

from itertools import pairwise
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.config import RunConfig
from schemas.errors import ConfigError
from schemas.ledger import GoodputLedger, Spent
from schemas.progress import RankPhase, RankProgress
from schemas.recipe_config import Precision
from schemas.stage import Stage
from tasks.elastic_plan import at_world, is_between_saves, micro_batch_for, save_interval, segment_ends
from tasks.elastic_proof import ElasticProof
from tasks.elastic_training import Transition
from tests.fakes.in_process_work import config_with

IDS = "0123456789abcdef" * 2
LEDGER = GoodputLedger(
    since=0.0,
    until=10.0,
    complete=True,
    wall_s=10.0,
    away_s=0.0,
    seconds=dict.fromkeys(Spent, 1.0),
    goodput=0.1,
    steps=100,
    steps_redone=4,
    attempts=2,
    restarts=1,
    mtbf_s=1800.0,
)


def recipe(global_batch_size: int, micro_batch_size: int, *, ranks: int = 1) -> RunConfig:
    training = {"steps": 100, "global_batch_size": global_batch_size, "micro_batch_size": micro_batch_size}
    return config_with(training=training, cluster={"ranks_per_node": ranks})


def transition(**changes: Any) -> Transition:
    fields: dict[str, Any] = {"was": 2, "now": 1, "killed_rank": 1, "killed_at": 57, "resumed_from": 50, "committed_state": "a", "loaded_state": "a"}
    return Transition(**fields | {"loss_before": 3.0, "loss_after": 3.000001} | changes)


def proof(**changes: Any) -> ElasticProof:
    fields: dict[str, Any] = {
        "world_sizes": (2, 1),
        "steps": 100,
        "micro_batch_size": 2,
        "precision": Precision.FP32,
        "has_dropout": False,
        "transitions": (transition(),),
        "prescribed_ids": IDS,
        "calm_ids": IDS,
        "resized_ids": IDS,
        "validation_loss": 2.51,
        "calm_validation_losses": (2.5, 2.53, 2.52),
        "ledger": LEDGER,
        "scratch": "",
    }
    return ElasticProof(**fields | changes)


@pytest.mark.parametrize(
    ("batch", "micro", "sizes", "expected"), [(12, 4, (2, 1, 3, 2), 2), (8, 4, (2, 1, 2), 4), (8, 4, (1, 8), 1), (24, 6, (2, 4), 6)]
)
def test_one_micro_batch_fits_all_sizes(batch: int, micro: int, sizes: tuple[int, ...], expected: int) -> None:
    assert micro_batch_for(recipe(batch, micro), sizes) == expected


@given(st.sampled_from([(8, 4, 2), (12, 4, 1), (24, 6, 4), (30, 5, 3)]), st.lists(st.integers(1, 12), min_size=2, max_size=4))
def test_every_size_is_feasible_or_the_nearest_recipe_is_named(given_recipe: tuple[int, int, int], sizes: list[int]) -> None:
    batch, micro, ranks = given_recipe
    if any(one == other for one, other in pairwise(sizes)):
        return
    try:
        size = micro_batch_for(recipe(batch, micro, ranks=ranks), sizes)
    except ConfigError as error:
        assert any(batch % world_size for world_size in sizes)
        settings = dict(setting.split("=") for setting in error.problems[0].nearest.removeprefix("--set ").split(" --set "))
        named = recipe(int(settings["training.global_batch_size"]), int(settings.get("training.micro_batch_size", micro)), ranks=ranks)
        assert micro_batch_for(named, sizes) <= micro, "what is named is valid, and fits"
        return
    assert micro % size == 0
    assert set(sizes) <= set(recipe(batch, size).training.feasible_world_sizes)


def test_an_infeasible_size_is_refused_with_what_is_feasible() -> None:
    with pytest.raises(ConfigError) as caught:
        micro_batch_for(recipe(8, 4, ranks=2), (2, 1, 3, 2))
    (problem,) = caught.value.problems
    assert "3 ranks; feasible: 1, 2, 4, 8" in problem.message
    assert problem.nearest == "--set training.global_batch_size=6 --set training.micro_batch_size=1"


@pytest.mark.parametrize("sizes", [(2,), (2, 2), (2, 1, 1)])
def test_a_list_without_changes_is_refused(sizes: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="at least two sizes"):
        micro_batch_for(recipe(8, 4), sizes)


@given(st.integers(2, 6), st.integers(0, 1000), st.integers(48, 100_000))
def test_segments_end_in_order_and_leave_room(num_segments: int, seed: int, steps: int) -> None:
    ends = segment_ends(steps, num_segments, rng=Random(seed))
    assert len(ends) == num_segments - 1
    assert ends == segment_ends(steps, num_segments, rng=Random(seed))
    assert all(other - one >= 4 for one, other in pairwise((0, *ends, steps)))


def test_too_few_steps_are_refused() -> None:
    with pytest.raises(ConfigError, match="too few for 4 segments"):
        segment_ends(31, 4, rng=Random(0))


@pytest.mark.parametrize(
    ("step", "committed_step", "due"),
    [(65, 60, True), (69, 60, True), (64, 60, False), (60, 60, False), (75, 60, True), (55, 40, False), (95, 80, True)],
)
def test_ranks_are_killed_between_two_saves_once_the_segment_has_committed(step: int, committed_step: int, due: bool) -> None:
    progress = RankProgress(rank=0, pid=1, phase=RankPhase.STEPPING, step=step, committed_step=committed_step, total_steps=100, at=0.0)
    assert is_between_saves(progress, begun_at=50, every_steps=10) is due


@pytest.mark.parametrize(("recipe", "steps", "expected"), [(50, 1700, 50), (500, 1700, 85), ("auto", 1700, 85), (50, 40, 4), (1, 1700, 4)])
def test_every_segment_has_checkpoints_and_steps_between_them(recipe: Any, steps: int, expected: int) -> None:
    assert save_interval(recipe, steps=steps, num_segments=4) == expected


def test_the_number_of_ranks_is_not_identity() -> None:
    config = config_with(cluster={"nodes": 2, "ranks_per_node": 1, "stages": {"train": {"queue": "gpu"}}})
    other = at_world(config, 3)
    assert (other.ranks(Stage.TRAIN), other.cluster.resources(Stage.TRAIN).queue) == (3, "gpu")
    assert other.identity(Stage.TRAIN) == config.identity(Stage.TRAIN)


def test_what_is_as_claimed_has_no_findings() -> None:
    assert proof().findings == ()


@pytest.mark.parametrize(
    ("changes", "finding"),
    [
        ({"transitions": (transition(loaded_state="b"),)}, "state a was committed, b was loaded"),
        ({"transitions": (transition(loaded_state=""),)}, "nothing was loaded"),
        ({"transitions": (transition(loss_after=3.001),)}, "first loss is 3.0 before and 3.001 after; 1e-05 relative"),
        ({"transitions": (transition(loss_before=None),)}, "first loss is None before"),
        ({"resized_ids": "f" * 32}, "sequences used: prescribed"),
        ({"calm_ids": "f" * 32, "resized_ids": "f" * 32}, "sequences used: prescribed"),
        ({"validation_loss": 2.54}, "validation loss: 0.0400 from the undisturbed one; different seeds are 0.0300 apart"),
    ],
)
def test_whatever_is_not_as_claimed_is_named(changes: dict[str, Any], finding: str) -> None:
    (found,) = proof(**changes).findings
    assert finding in found


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": Precision.BF16, "transitions": (transition(loss_after=3.002),)},
        {"has_dropout": True, "transitions": (transition(loss_after=3.5),)},
        {"validation_loss": 2.48},
        {"validation_loss": None, "calm_validation_losses": ()},
    ],
    ids=["bf16 is coarser", "dropout draws other numbers", "better than all seeds, but near", "no validation split"],
)
def test_what_may_differ_is_no_finding(changes: dict[str, Any]) -> None:
    assert proof(**changes).findings == ()
