"""What the control side hands to the tracker, and what it does when the tracker is down."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from schemas.errors import UnreachableError
from schemas.progress import MetricPoint
from tasks.forwarding import Forwarder
from tasks.tracking import SystemSample
from tests.fakes.job_request import ARTIFACT
from tests.fakes.training_journal import TrainingJournal


class Tracker:
    """Takes what it is given, unless it is down."""

    def __init__(self) -> None:
        self.down = False
        self.params: dict[str, str] = {}
        self.points: list[MetricPoint] = []
        self.figures: list[tuple[Mapping[str, float], float, int]] = []

    def log_params(self, params: Mapping[str, str]) -> None:
        if self.down:
            raise UnreachableError("MLflow could not be asked")
        self.params.update(params)

    def forwarded_step(self) -> int:
        if self.down:
            raise UnreachableError("MLflow could not be asked")
        return max((point.step for point in self.points), default=-1)

    def forward(self, points: Sequence[MetricPoint]) -> None:
        self.points += points

    def log_system(self, samples: Sequence[SystemSample]) -> None:
        assert samples == []

    def log_figures(self, figures: Mapping[str, float], *, at: float, step: int = 0) -> None:
        self.figures.append((figures, at, step))


def forwarder(tracker: Tracker, journal: TrainingJournal, notes: list[str]) -> Forwarder:
    return Forwarder(tracker, storage=journal.storage, artifact_key=ARTIFACT, params={"a": "1"}, every_s=60.0, note=notes.append)  # type: ignore[arg-type]


def trained(tmp_path: Path) -> TrainingJournal:
    journal = TrainingJournal(tmp_path)
    journal.attempt(0, at=100.0, ended_at=120.0)
    journal.epoch(0, at=104.0)
    journal.points(0, begin=110.0, steps=range(1, 11))
    return journal


def test_the_last_hand_over_holds_the_points_and_the_ledger(tmp_path: Path) -> None:
    tracker, notes = Tracker(), list[str]()
    forwarder(tracker, trained(tmp_path), notes).finish()
    assert [point.step for point in tracker.points] == list(range(1, 11))
    ((figures, at, step),) = tracker.figures
    assert (figures["goodput/useful_step_s"], figures["goodput/ratio"], at, step) == (5.0, 0.25, 120.0, 10)
    assert notes == []


def test_a_tracker_that_is_down_is_noted_once_and_told_all_when_it_is_back(tmp_path: Path) -> None:
    tracker, notes = Tracker(), list[str]()
    journal = trained(tmp_path)
    tracker.down = True
    held = forwarder(tracker, journal, notes)
    held.finish()
    held.finish()
    assert notes == ["tracking is down, metrics wait in storage: MLflow could not be asked"]
    tracker.down = False
    held.finish()
    assert notes[1:] == ["tracking is back; the metrics that waited are forwarded"]
    assert (tracker.params, len(tracker.points), len(tracker.figures)) == ({"a": "1"}, 10, 1)


def test_before_training_began_there_is_nothing_to_hand_over(tmp_path: Path) -> None:
    tracker = Tracker()
    forwarder(tracker, TrainingJournal(tmp_path), []).finish()
    assert (tracker.points, tracker.figures) == ([], [])
