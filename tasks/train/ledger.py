"""The goodput ledger: what every second of a training's wall time was spent on. PURE: the journal's facts in, sums out.

Time runs along one line: wish for a job, claim, start of ranks, steps, incident, next start, …, end. A cursor moves along it and
books what it passes, so nothing is booked twice and nothing is left out; where clocks of machines disagree, the cursor waits.

A step counts in the last start that did it. What earlier starts did beyond the checkpoint that a later one went on from is `redone`.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from cluster.failure_rate import Exposure, failures_among, mtbf_s
from schemas.attempt import Cause, EpochRecord, Incident
from schemas.ledger import GoodputLedger, Spent
from schemas.progress import MetricPoint

PARTS: Mapping[str, Spent] = {
    "data_s": Spent.DATA,
    "forward_s": Spent.USEFUL,
    "backward_s": Spent.USEFUL,
    "agree_s": Spent.USEFUL,
    "optimizer_s": Spent.USEFUL,
    "checkpoint_s": Spent.CHECKPOINT,
    "validation_s": Spent.EVALUATION,
    "other_s": Spent.OTHER,
}
"""Parts of a step, as the step's clock names them. One that is not here is booked as `other`, where it shows."""

_NOTICED_AFTER_S = 15.0
"""A supervisor looks every quarter of a second: an end that nobody noted for so long had nobody who looked."""
_SILENT_S = 5.0
"""Agents beat every second: one that is silent for so long before its end was declared had ended before."""
_UNNOTICED = frozenset({Cause.HANG, Cause.NODE})
"""Ends that are noticed by silence, not by a process's exit."""


@dataclass(frozen=True)
class AttemptTimes:
    """What the journal tells of one attempt. Times are seconds since the Unix epoch."""

    number: int
    """0-based."""
    intended_at: float
    """When it was wished for."""
    claimed_at: float | None = None
    """When its agent began; None: it never did."""
    seen_at: float = 0.0
    """The agent's last heartbeat; 0: none."""
    ended_at: float | None = None
    """When its exit record was written; None: it runs."""
    looked_at: float | None = None
    """When somebody decided what follows; None: nobody has yet."""
    goes_on: bool = False
    """Whether the next attempt followed by itself."""
    lost_after_s: float = 300.0
    """Silence that counts as loss."""
    incidents: tuple[Incident, ...] = ()
    """Oldest first."""


@dataclass(frozen=True)
class EpochTimes:
    """What the journal tells of one start of ranks."""

    record: EpochRecord
    """Its beginning."""
    points: tuple[MetricPoint, ...] = ()
    """Rank 0's points with counters, ascending. A choice will do: the last one, and those next to the last step that counts."""

    @property
    def start(self) -> MetricPoint | None:
        """The moment when the first step began, as a point without counts; None when there are no points."""
        if not self.points:
            return None
        first = self.points[0]
        return first.model_copy(update={"step": first.from_step, "at": first.at - sum(first.seconds.values()), "seconds": {}})

    def at_step(self, step: float) -> MetricPoint | None:
        """Returns the point at a step, between two points by proportion; at the ends, the ends."""
        start = self.start
        if start is None:
            return None
        line = (start, *self.points)
        right = bisect_right([point.step for point in line], step)
        if right == 0 or right == len(line):
            return line[min(right, len(line) - 1)]
        before, after = line[right - 1], line[right]
        share = (step - before.step) / (after.step - before.step)
        seconds = {part: before.seconds.get(part, 0.0) * (1 - share) + total * share for part, total in after.seconds.items()}
        return before.model_copy(update={"step": int(step), "at": before.at + (after.at - before.at) * share, "seconds": seconds})


def counted_steps(epochs: Sequence[EpochTimes], incidents: Mapping[int, Incident]) -> dict[int, int]:
    """Returns, for each epoch with points, the newest of its steps that counts.

    Args:
        epochs: ascending.
        incidents: by epoch. Where no later start tells from which step it went on, the commit that stood then does.
    """
    counted: dict[int, int] = {}
    bound: int | None = None
    for epoch in reversed(epochs):
        if not epoch.points:
            continue
        last, number = epoch.points[-1], epoch.record.epoch
        here = last.step if bound is None else min(last.step, bound)
        if bound is None and number in incidents:
            here = min(here, incidents[number].committed_step)
        counted[number] = max(last.from_step, here)
        bound = last.from_step if bound is None else min(bound, last.from_step)
    return counted


def account(attempts: Sequence[AttemptTimes], epochs: Sequence[EpochTimes], *, now: float) -> GoodputLedger:
    """Returns the ledger of a training artifact.

    Args:
        attempts: ascending, at least one.
        epochs: ascending.
        now: seconds since the Unix epoch; ends what has not ended.
    """
    incidents = {incident.epoch: incident for attempt in attempts for incident in attempt.incidents}
    counted = counted_steps(epochs, incidents)
    line = _Line(attempts[0].intended_at)
    for earlier, attempt in pairwise((None, *attempts)):
        assert attempt is not None
        if earlier is not None:
            _book_pause(line, earlier, attempt)
        own = [epoch for epoch in epochs if epoch.record.attempt == attempt.number]
        _book_attempt(line, attempt, own, counted=counted, incidents=incidents, now=now)
    return _ledger(line, attempts=attempts, epochs=epochs, counted=counted, incidents=incidents)


@dataclass
class _Line:
    """The cursor, and what was booked up to it."""

    since: float
    cursor: float = 0.0
    away_s: float = 0.0
    seconds: dict[Spent, float] = field(default_factory=lambda: dict.fromkeys(Spent, 0.0))

    def __post_init__(self) -> None:
        self.cursor = self.since

    def spend(self, until: float, what: Spent) -> None:
        """Books the time up to `until`."""
        self.seconds[what] += max(0.0, until - self.cursor)
        self.cursor = max(self.cursor, until)

    def spend_parts(self, until: float, parts: Mapping[str, float]) -> None:
        """Books the time up to `until` by a step clock's counters; what they do not explain is `other`."""
        passed, total = max(0.0, until - self.cursor), sum(parts.values())
        scale = min(1.0, passed / total) if total > 0 else 0.0
        for part, seconds in parts.items():
            self.seconds[PARTS.get(part, Spent.OTHER)] += seconds * scale
        self.seconds[Spent.OTHER] += passed - total * scale
        self.cursor = max(self.cursor, until)

    def leave(self, until: float) -> None:
        """Passes over time in which nobody wanted anything, or nobody looked."""
        self.away_s += max(0.0, until - self.cursor)
        self.cursor = max(self.cursor, until)


def _book_pause(line: _Line, earlier: AttemptTimes, later: AttemptTimes) -> None:
    """Books the time between two attempts."""
    if not earlier.goes_on:
        line.leave(later.intended_at)
    elif earlier.looked_at is not None and earlier.looked_at - line.cursor > _NOTICED_AFTER_S:
        line.leave(earlier.looked_at)
    line.spend(later.intended_at, Spent.RECOVERY)


def _book_attempt(
    line: _Line, attempt: AttemptTimes, epochs: Sequence[EpochTimes], *, counted: Mapping[int, int], incidents: Mapping[int, Incident], now: float
) -> None:
    end = now if attempt.ended_at is None else attempt.ended_at
    if attempt.claimed_at is None:
        line.spend(end, Spent.QUEUE)
        return
    line.spend(attempt.claimed_at, Spent.QUEUE)
    for position, epoch in enumerate(epochs):
        starting = Spent.RECOVERY if position else Spent.START_UP
        line.spend(epoch.record.started_at, starting)
        number = epoch.record.epoch
        if (start := epoch.start) is not None:
            line.spend(start.at, starting)
            kept = epoch.at_step(counted[number])
            assert kept is not None
            line.spend_parts(kept.at, kept.seconds)
            line.spend(epoch.points[-1].at, Spent.REDONE)
        if number in incidents:
            _book_cut(line, epoch, attempt=attempt, incident=incidents[number], before=Spent.REDONE if epoch.points else starting)
        elif position + 1 < len(epochs):
            line.spend(epochs[position + 1].record.started_at, Spent.RECOVERY)
        elif attempt.ended_at is None and not epoch.points:
            line.spend(end, starting)
    if attempt.ended_at is None:
        if not epochs:
            line.spend(end, Spent.START_UP)
        return
    cut = bool(epochs) and epochs[-1].record.epoch in incidents
    line.spend(end, Spent.RECOVERY if cut else Spent.OTHER if epochs else Spent.START_UP)


def _book_cut(line: _Line, epoch: EpochTimes, *, attempt: AttemptTimes, incident: Incident, before: Spent) -> None:
    """Books the time from the last word of an epoch until its end was noticed."""
    if attempt.seen_at and incident.at - attempt.seen_at > _SILENT_S:  # the agent itself was gone, and said no more
        line.spend(attempt.seen_at, before)
        line.spend(min(incident.at, attempt.seen_at + attempt.lost_after_s + _NOTICED_AFTER_S), Spent.HANG_DETECTION)
        line.leave(incident.at)
        return
    if incident.detected_after_s > 0:
        line.spend(incident.at - incident.detected_after_s, before)
        line.spend(incident.at, Spent.HANG_DETECTION)
        return
    if incident.cause in _UNNOTICED:
        steps = max(0, incident.step - epoch.points[-1].step) + 1 if epoch.points else 0
        line.spend(min(incident.at, line.cursor + steps * _step_s(epoch)), before)
        line.spend(incident.at, Spent.HANG_DETECTION)
        return
    line.spend(incident.at, before)


def _step_s(epoch: EpochTimes) -> float:
    """Returns the mean seconds of an epoch's steps; 0 when it made none."""
    start = epoch.start
    if start is None or epoch.points[-1].step == start.step:
        return 0.0
    last = epoch.points[-1]
    return (last.at - start.at) / (last.step - start.step)


def _ledger(
    line: _Line,
    *,
    attempts: Sequence[AttemptTimes],
    epochs: Sequence[EpochTimes],
    counted: Mapping[int, int],
    incidents: Mapping[int, Incident],
) -> GoodputLedger:
    made, redone = 0, 0
    for epoch in epochs:
        if epoch.points:
            number, last = epoch.record.epoch, epoch.points[-1]
            reached = max(last.step, incidents[number].step) if number in incidents else last.step
            made += counted[number] - last.from_step
            redone += reached - counted[number]
    wall_s = sum(line.seconds.values())
    exposed = wall_s - line.seconds[Spent.QUEUE]
    return GoodputLedger(
        since=line.since,
        until=line.cursor,
        complete=all(attempt.ended_at is not None for attempt in attempts),
        wall_s=wall_s,
        away_s=line.away_s,
        seconds=line.seconds,
        goodput=line.seconds[Spent.USEFUL] / wall_s if wall_s > 0 else 0.0,
        steps=made,
        steps_redone=redone,
        attempts=len(attempts),
        restarts=max(0, len(epochs) - 1),
        mtbf_s=mtbf_s(Exposure(exposed, failures_among(incidents.values()))),
    )
