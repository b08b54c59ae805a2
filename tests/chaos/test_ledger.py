"""The account of a real training: every second is booked, every step that was done again is counted, and it is kept."""

import pytest

from schemas.ledger import GoodputLedger, Spent
from tasks.train.bookkeeping import read_ledger
from tasks.train.ledger import PARTS
from tests.chaos.conftest import MakeTraining
from tests.chaos.injector import Faults
from tests.chaos.live_training import LiveTraining

pytestmark = pytest.mark.slow


def test_kills_show_in_the_ledger_as_what_they_cost(make_training: MakeTraining, calm_hash: str) -> None:
    training = make_training(tracking__log_every_steps=3, tracking__validate_every_steps=20)
    draft = training.run(Faults().kill(rank=1, at_step=13).kill(rank=0, at_step=29))
    assert draft.content_hash == calm_hash
    ledger = read_ledger(training.storage, training.layout, now=0.0)
    assert ledger is not None
    first, second = training.incidents()
    assert (ledger.complete, ledger.steps, ledger.restarts, ledger.attempts, ledger.acts) == (True, 40, 2, 1, ())
    assert ledger.steps_redone == (first.step - first.committed_step) + (second.step - second.committed_step)
    assert sum(ledger.seconds.values()) == pytest.approx(ledger.wall_s) == pytest.approx(ledger.until - ledger.since)
    assert ledger.until == pytest.approx(training.exit_record().ended_at)
    assert {what for what, seconds in ledger.seconds.items() if seconds > 0.0} == set(Spent) - {Spent.HANG_DETECTION}
    assert draft.summary["goodput"] == ledger.goodput == ledger.seconds[Spent.USEFUL] / ledger.wall_s
    (kept,) = (training.artifact_dir / "goodput").iterdir()
    assert kept.name == "e000002.json"
    assert GoodputLedger.model_validate_json(kept.read_bytes()) == ledger
    _judge_counters(training)


def _judge_counters(training: LiveTraining) -> None:
    """Each start counts from its own first step, all its parts are known to the ledger, and they make up the time between its points."""
    starts = [[point for point in training.points() if point.epoch == epoch.epoch] for epoch in training.epochs()]
    assert [points[0].from_step for points in starts] == [0, *(incident.committed_step for incident in training.incidents())]
    assert {part for points in starts for part in points[-1].seconds} == set(PARTS)
    for points in starts:
        counted = sum(points[-1].seconds.values()) - sum(points[0].seconds.values())
        assert counted == pytest.approx(points[-1].at - points[0].at, rel=0.3, abs=0.1), "what measures parts and what stamps points agree"
