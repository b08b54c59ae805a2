"""A training's journal in storage, written by hand: attempts, epochs, points. What the ledger is read from."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.layout import ArtifactLayout
from cluster.storage import FileStorage
from schemas.attempt import AttemptVerdict, Cause, Claim, EpochRecord, ExitRecord, Incident
from schemas.canonical import canonical_json
from schemas.exit_code import ExitCode
from schemas.progress import Heartbeat, MetricPoint
from tests.fakes.job_request import ARTIFACT, gang_request


class TrainingJournal:
    """Writes what a training of one second a step leaves."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.storage = FileStorage(folder / "data")
        self.layout = ArtifactLayout(ARTIFACT)

    def attempt(
        self,
        number: int = 0,
        *,
        at: float,
        ended_at: float | None = None,
        incidents: Sequence[Incident] = (),
        goes_on: bool = False,
        spent: bool = False,
        **spec_changes: Any,
    ) -> None:
        """An attempt that was wished for at `at`, claimed two seconds later, and told of itself until its end. `spent`: that of its budget."""
        own = {"attempt": number, "key": f"k{number}", "intended_at": at}
        spec = gang_request(self._folder).model_copy(update=own | spec_changes)
        place = self.layout.attempt("", number)
        self._put(place.spec, spec)
        self._put(
            place.claim,
            Claim(key=spec.key, host="h", pid=1, pid_started=1.0, process_table="t", submission="s", claimed_at=at + 2.0),
        )
        seen = at + 2.0 if ended_at is None else ended_at
        self._put(place.heartbeat(0, 0), Heartbeat(key=spec.key, node_rank=0, host="h", agent_pid=1, epoch=0, sequence=0, at=seen, ranks=()))
        for index, incident in enumerate(incidents):
            self._put(place.incident(index), incident)
        if ended_at is not None:
            done = not goes_on
            record = ExitRecord(
                key=spec.key,
                exit_code=ExitCode.POLICY if spent else ExitCode.DONE if done else ExitCode.INTERRUPTED,
                cause=Cause.BUDGET if spent else Cause.FINISHED if done else Cause.PREEMPTION,
                message="",
                epoch=0,
                incidents=tuple(incidents),
                ended_at=ended_at,
            )
            self._put(place.exit, record)
            if spent:
                return
            self._put(place.verdict, AttemptVerdict(decision="restart" if goes_on else "stop", reason="", at=ended_at))

    def epoch(self, number: int, *, at: float, attempt: int = 0) -> None:
        """A start of ranks."""
        self._put(
            self.layout.epoch(number),
            EpochRecord(epoch=number, attempt=attempt, key="k", world_size=2, rendezvous="", started_at=at, reason="first start"),
        )

    def points(self, epoch: int, *, begin: float, steps: range, sequence: int = 0, from_step: int = 0) -> None:
        """A segment of metrics: a point for each of `steps`, the first of which followed `from_step`."""
        made = [
            MetricPoint(
                step=step,
                at=begin + step - from_step,
                epoch=epoch,
                values={"loss": 1.0},
                seconds={"forward_s": 0.5 * (step - from_step), "data_s": 0.5 * (step - from_step)},
                from_step=from_step,
            )
            for step in steps
        ]
        text = "".join(point.model_dump_json() + "\n" for point in made)
        self.storage.create_exclusive(self.layout.metric_segment(epoch=epoch, rank=0, sequence=sequence), text.encode())

    def _put(self, key: str, value: Any) -> None:
        self.storage.create_exclusive(key, canonical_json(value))


def incident(epoch: int, *, at: float, step: int, committed_step: int) -> Incident:
    """A rank that was killed."""
    return Incident(
        epoch=epoch,
        at=at,
        cause=Cause.KILLED,
        rank=1,
        step=step,
        committed_step=committed_step,
        exit_status=-9,
        evidence=(),
        decision="restart",
        reason="",
    )
