"""Bad numbers: told from good ones, and dropped by DeepSpeed at every ZeRO stage without a trace. Whole trainings: tests/chaos/test_numbers.py."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from schemas.config import RunConfig
from tasks.train.numbers import FEWEST_LOSSES, num_skipped_before, trouble_with

MakeGang = Callable[[str], Any]
MakeConfig = Callable[..., RunConfig]
PROGRAMS = str(Path(__file__).with_name("numeric_programs.py"))
USUAL = tuple(2.0 + 0.01 * number for number in range(FEWEST_LOSSES))


@pytest.mark.parametrize(
    ("loss", "recent", "factor", "said"),
    [
        (math.nan, (), None, "is not finite"),
        (math.inf, USUAL, 2.0, "is not finite"),
        (2.1, USUAL, 2.0, ""),
        (9.0, USUAL, None, ""),
        (9.0, USUAL, 2.0, "is 9, more than 2 times the usual 2.075"),
        (4.1, USUAL, 2.0, ""),
        (9.0, USUAL[1:], 2.0, ""),
    ],
)
def test_what_is_wrong_with_a_loss(loss: float, recent: tuple[float, ...], factor: float | None, said: str) -> None:
    assert trouble_with(loss, recent=recent, spike_factor=factor) == said


@pytest.mark.parametrize(("step", "skipped", "count"), [(5, {1, 3, 4}, 2), (5, {1, 3}, 0), (2, {0, 1}, 2), (0, set(), 0)])
def test_how_many_were_skipped_in_a_row(step: int, skipped: set[int], count: int) -> None:
    assert num_skipped_before(step, frozenset(skipped)) == count


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "precision"),
    [(0, "fp32"), (0, "bf16"), (1, "fp32"), (1, "bf16"), (2, "fp32"), (2, "bf16"), (3, "fp32"), (3, "bf16")],
)
def test_dropped_gradients_leave_no_trace(gang: MakeGang, make_config: MakeConfig, stage: int, precision: str) -> None:
    """Neither in weights and moments, nor in the update after them; DeepSpeed finds gradients by itself whose norm is not finite."""
    trained = gang("trained")
    config = make_config(training__zero_stage=stage, training__precision=precision)
    trained.run(config, program=f"{PROGRAMS}:drop")
    told = [json.loads(path.read_bytes()) for path in sorted(trained.artifact_dir.glob("told-*.json"))]
    assert len(told) == 2
    for rank in told:
        assert rank["after skip"] == rank["at first"]
        assert rank["applied with bad gradients"] is False
        assert rank["after bad gradients"] == rank["at first"]
        assert rank["applied"] is True
        assert rank["after an update"] != rank["at first"]
    undisturbed = gang("undisturbed")
    undisturbed.run(config, program=f"{PROGRAMS}:update")
    expected = [json.loads(path.read_bytes())["after an update"] for path in sorted(undisturbed.artifact_dir.glob("told-*.json"))]
    assert [rank["after an update"] for rank in told] == expected


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_copies_that_differ_between_ranks_are_named(gang: MakeGang, make_config: MakeConfig, stage: int) -> None:
    trained = gang("trained")
    trained.run(make_config(training__zero_stage=stage), program=f"{PROGRAMS}:disagree")
    told = [json.loads(path.read_bytes()) for path in sorted(trained.artifact_dir.glob("told-*.json"))]
    assert all(rank["before"] == "" for rank in told)
    assert all("the ranks, after update 4: differs between ranks: model.norm.weight" in rank["after"] for rank in told)
