"""What the nodes of one attempt tell each other, through storage: how an epoch ended on each of them.

Node 0 leads: it takes a gang's epochs, decides, and writes the exit record. The others start ranks for each new epoch of their attempt.
"""

import math
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

from cluster.attempt import claimant, read_claim, read_heartbeats
from cluster.epoch import newest_epoch, read_epoch
from cluster.layout import ArtifactLayout, AttemptLayout
from cluster.process import is_dead
from cluster.restart import Finding
from cluster.storage import Storage
from schemas.attempt import Cause, EpochRecord, Incident
from schemas.canonical import canonical_json
from schemas.exit_code import ExitCode
from schemas.frozen import Frozen
from schemas.job import JobSpec
from schemas.progress import Heartbeat, RankProgress, RankPulse

_REPORT = re.compile(r"^e(\d+)-n(\d+)\.json$")
_LOOK_EVERY_S = 0.5
_WAIT_S = 0.2
_MOST_TICK_S = 5.0
"""Longest time between two looks that counts."""
_QUIET_S = 2.0
"""Heartbeats come every second. A node without one for so long may be lost: too early to say so, but what waits for it has its reason."""


class NodeReport(Frozen):
    """How an epoch (of a gang) or the work (of an array) ended on one node."""

    node_rank: int
    """The node."""
    epoch: int
    """Its newest epoch."""
    outcome: Literal["finished", "failed", "stopped"]
    """`stopped`: asked to, by people or by the scheduler."""
    cause: Cause
    """Why."""
    rank: int = -1
    """The first rank (or item) that failed; -1: none of this node."""
    exit_status: int = 0
    """Its exit status; negative: killed by that signal."""
    evidence: tuple[str, ...] = ()
    """What led to the cause."""
    message: str = ""
    """For people."""
    stop_code: ExitCode | None = None
    """Set when no restart can mend it."""
    echo: bool = False
    """Whether it only answers to what happened elsewhere."""
    step: int = -1
    """Newest step that a rank of this node had reached."""
    committed_step: int = -1
    """Newest committed step that this node knows."""
    at: float
    """When it ended, seconds since the Unix epoch."""
    detected_after_s: float = 0.0
    """Seconds without a sign of life before it was noticed: of a hang."""
    working_since: float | None = None
    """When the last of this node's ranks got past its start, seconds since the Unix epoch; None: not all did."""
    incidents: tuple[Incident, ...] = ()
    """Of an array: what this node answered by itself."""

    def finding(self) -> Finding:
        """Returns the report as the finding that decisions are made of."""
        return Finding(cause=self.cause, evidence=self.evidence, message=self.message, stop_code=self.stop_code, echo=self.echo)


@dataclass
class Peers:
    """The other nodes of an attempt. With one node there are none, and storage is not asked."""

    storage: Storage
    artifact: ArtifactLayout
    attempt: AttemptLayout
    spec: JobSpec
    node_rank: int
    asked_to_stop: Callable[[], bool] = lambda: False
    """Whether this node shall end soon."""
    quiet: bool = False
    """Whether, at the last look, a node that has not told how it ended gave no sign: what waits here perhaps waits for that one."""
    _seen: dict[int, tuple[int, float]] = field(default_factory=dict)
    """Node → newest heartbeat's sequence, and when it was first seen here (`_watched`)."""
    _looked_at: float = 0.0
    _watched_s: float = 0.0
    _watched_at: float | None = None

    @property
    def alone(self) -> bool:
        """Whether the attempt has one node."""
        return self.spec.num_nodes == 1

    def tell(self, report: NodeReport, *, slot: int) -> None:
        """Leaves this node's report for the others. `slot`: the epoch for a gang, 0 for an array."""
        if not self.alone:
            self.storage.create_exclusive(self.attempt.node_report(epoch=slot, node_rank=self.node_rank), canonical_json(report))

    def reports(self, slot: int) -> tuple[NodeReport, ...]:
        """Returns the other nodes' reports, in order of time."""
        if self.alone:
            return ()
        keys = []
        for name in self.storage.names(self.attempt.nodes):
            match = _REPORT.match(name)
            if match and int(match[1]) == slot and int(match[2]) != self.node_rank:
                keys.append(f"{self.attempt.nodes}/{name}")
        return tuple(sorted((NodeReport.model_validate_json(self.storage.read(key)) for key in keys), key=lambda report: report.at))

    def trouble(self, slot: int) -> Finding | None:
        """Returns why this node must end its work although nothing failed on it: another node's failure, or its silence. Cheap to ask often."""
        if self.alone or time.monotonic() < self._looked_at + _LOOK_EVERY_S:
            return None
        self._looked_at = time.monotonic()
        claim = read_claim(self.storage, self.attempt)
        if claim is not None and is_dead(claimant(claim)):
            return Finding(Cause.NODE, (f"the agent of node 0 (pid {claim.pid}) has ended",), "node 0 is lost", ExitCode.INTERRUPTED)
        for report in self.reports(slot):
            if report.outcome == "failed":
                return Finding(report.cause, report.evidence, report.message, report.stop_code, echo=True)
        return self._silence(ended={report.node_rank for report in self.reports(slot)})

    def collect(self, own: NodeReport, *, slot: int, settle_s: float, most_s: float = math.inf) -> tuple[NodeReport, ...]:
        """Returns all nodes' reports, this one's first. Waits for the others at most `most_s`; after a failure only `settle_s`, for the first cause.

        A failure that only echoes another's, while a node gives no sign, is that node's: it is waited for until it speaks, or counts as lost.
        Asked to stop, all nodes end within the grace: who has not told by then is gone, and this one has no time left to wait.
        """
        deadline = time.monotonic() + settle_s
        given_up = deadline + self.spec.grace_s if own.outcome == "stopped" else time.monotonic() + most_s
        while True:
            reports = (own, *self.reports(slot))
            failed = [report for report in reports if report.outcome == "failed"]
            if len(reports) >= self.spec.num_nodes or any(not report.echo for report in failed) or time.monotonic() > given_up:
                return reports
            settled = bool(failed) and time.monotonic() > deadline
            lost = self._silence(ended={report.node_rank for report in reports}, at_once=settled and self.asked_to_stop())
            if settled and lost is None and not self.quiet:
                return reports
            if lost is not None:
                told = {"cause": lost.cause, "evidence": lost.evidence, "message": lost.message, "stop_code": lost.stop_code}
                update = {**told, "outcome": "failed", "rank": -1, "exit_status": 0, "echo": False}
                return (own.model_copy(update=update), *reports[1:])
            time.sleep(_WAIT_S)

    def progress(self, epoch: int) -> tuple[RankProgress, ...]:
        """Returns what the other nodes' ranks of an epoch last said of themselves."""
        return tuple(rank for beat in self._beats(epoch) for rank in beat.ranks)

    def pulses(self, epoch: int) -> tuple[RankPulse, ...]:
        """Returns the last signs of life of the other nodes' ranks of an epoch, as old as their heartbeats."""
        return tuple(pulse for beat in self._beats(epoch) for pulse in beat.pulses)

    def next_epoch(self, after: int) -> EpochRecord | None:
        """Returns this attempt's newest epoch above `after`, or None while there is none."""
        number = newest_epoch(self.storage, self.artifact)
        while number > after:
            record = read_epoch(self.storage, self.artifact, number)
            if record.key == self.spec.key:
                return record
            number -= 1
        return None

    def over(self) -> bool:
        """Whether the attempt has its exit record."""
        return self.storage.exists(self.attempt.exit)

    def _beats(self, epoch: int) -> tuple[Heartbeat, ...]:
        """Returns the newest heartbeats of the other nodes that are in this epoch."""
        beats = () if self.alone else read_heartbeats(self.storage, self.attempt)
        return tuple(beat for beat in beats if beat.node_rank != self.node_rank and beat.epoch == epoch)

    def _watched(self) -> float:
        """Returns seconds of looking on: while this process, or its whole job, is suspended, others are not silent."""
        now = time.monotonic()
        if self._watched_at is not None:
            self._watched_s += min(now - self._watched_at, _MOST_TICK_S)
        self._watched_at = now
        return self._watched_s

    def beats_of_living(self, *, most_silent_s: float) -> tuple[Heartbeat, ...]:
        """Returns the newest heartbeats of the other nodes, without those that have been silent for longer."""
        beats = read_heartbeats(self.storage, self.attempt)
        silent_s = self._silent_s(beats)
        return tuple(beat for beat in beats if silent_s.get(beat.node_rank, most_silent_s) < most_silent_s)

    def silent_s(self) -> dict[int, float]:
        """Returns for how long each other node's heartbeats, as seen from here, have not changed. Seconds."""
        return self._silent_s(read_heartbeats(self.storage, self.attempt))

    def _silent_s(self, beats: Iterable[Heartbeat]) -> dict[int, float]:
        now = self._watched()
        newest = {beat.node_rank: beat.sequence for beat in beats}
        silent_s = dict[int, float]()
        for node in sorted(set(range(self.spec.num_nodes)) - {self.node_rank}):
            sequence = newest.get(node, -1)
            if self._seen.get(node, (None, 0.0))[0] != sequence:
                self._seen[node] = (sequence, now)
            silent_s[node] = now - self._seen[node][1]
        return silent_s

    def _silence(self, *, ended: set[int], at_once: bool = False) -> Finding | None:
        """Returns the loss of a node whose heartbeats have not changed for `lost_after_s`; `at_once`: of one that is quiet."""
        silent_s = {node: seconds for node, seconds in self.silent_s().items() if node not in ended}
        self.quiet = any(seconds > _QUIET_S for seconds in silent_s.values())
        most_s = _QUIET_S if at_once else self.spec.lost_after_s
        lost = next((node for node, seconds in silent_s.items() if seconds > most_s), None)
        if lost is None:
            return None
        return Finding(Cause.NODE, (f"no heartbeat of node {lost} for {silent_s[lost]:.0f} s",), f"node {lost} is lost", ExitCode.INTERRUPTED)
