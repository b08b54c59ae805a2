"""A real training that has a budget: it stops in time by itself, keeps its newest checkpoint, and goes on under a larger budget."""

from pathlib import Path

import pytest

from cluster.attempt import list_attempts, newest_commit
from cluster.budget import used_device_s
from schemas.config import RunConfig
from schemas.errors import PolicyStopError
from schemas.exit_code import ExitCode
from tests.chaos.live_training import LiveTraining, tiny_config

pytestmark = pytest.mark.exhaustive

SHARE_S = 2 * 60.0
"""Device-seconds: a minute of two ranks, in most of which they train, on a busy machine, too."""


def budgeted(shares: int) -> RunConfig:
    """A training that no test waits for. Until a save was measured the grace stands for it, so it is short."""
    cluster = {"ranks_per_node": 2, "threads_per_rank": 1, "lost_after_s": 20.0, "grace_s": 3.0}
    return tiny_config(training__steps=1_000_000, checkpoint={"every_steps": 20}, cluster=cluster, budget={"gpu_hours": shares * SHARE_S / 3600})


def test_a_training_stops_for_its_budget_and_goes_on_under_a_larger_one(tmp_path: Path) -> None:
    training = LiveTraining(tmp_path, config=budgeted(1))
    stopped = training.error()
    assert isinstance(stopped, PolicyStopError)
    assert stopped.what.startswith("train stopped: the budget is used up: ")
    first = newest_commit(training.storage, training.layout)
    assert first > 0
    assert used_device_s(training.storage, training.layout) < SHARE_S

    refused = training.error()
    assert refused.exit_code is ExitCode.POLICY
    assert list_attempts(training.storage, training.layout, step_name="") == (0,), "nothing was submitted for it"

    larger = LiveTraining(tmp_path, config=budgeted(2))
    assert larger.error().exit_code is ExitCode.POLICY
    assert list_attempts(larger.storage, larger.layout, step_name="") == (0, 1)
    assert newest_commit(larger.storage, larger.layout) > first
    assert SHARE_S < used_device_s(larger.storage, larger.layout) < 2 * SHARE_S
