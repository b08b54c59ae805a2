"""What the nodes of one attempt tell each other, through storage: how an epoch ended on each of them.

Node 0 leads: it takes epochs, decides, and writes the exit record. The others start ranks for each new epoch of their attempt.
"""

import re
import time
from dataclasses import dataclass, field
from typing import Literal

from cluster.epoch import newest_epoch, read_epoch
from cluster.layout import ArtifactLayout, AttemptLayout
from cluster.restart import Finding
from cluster.storage import AlreadyExistsError, Storage
from schemas.canonical import canonical_json
from schemas.exit_code import ExitCode
from schemas.frozen import Frozen
from schemas.job import Cause, EpochRecord, Heartbeat, Incident, JobSpec

_REPORT = re.compile(r"^e(\d+)-n(\d+)\.json$")
_BEAT = re.compile(r"^n(\d+)-(\d+)\.json$")


class NodeReport(Frozen):
    """How an epoch (of a gang) or the work (of an array) ended on one node."""

    node_rank: int
    """The node."""
    epoch: int
    """The epoch."""
    outcome: Literal["finished", "failed", "stopped"]
    """`stopped`: asked to, by people or by what happened on another node."""
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
    """Whether it only answers to what happened on another node."""
    step: int = -1
    """Newest step that a rank of this node had reached."""
    committed_step: int = -1
    """Newest committed step that this node knows."""
    at: float
    """When it ended, seconds since the Unix epoch."""
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
    _seen: dict[int, tuple[int, float]] = field(default_factory=dict)
    """Node → newest heartbeat's sequence, and when it was first seen here (monotonic)."""

    @property
    def alone(self) -> bool:
        """Whether the attempt has one node."""
        return self.spec.num_nodes == 1

    def tell(self, report: NodeReport) -> None:
        """Leaves this node's report for the others."""
        if self.alone:
            return
        try:
            self.storage.create_exclusive(self.attempt.node_report(epoch=report.epoch, node_rank=self.node_rank), canonical_json(report))
        except AlreadyExistsError as error:
            raise AssertionError(f"node {self.node_rank} reports epoch {report.epoch} twice") from error

    def reports(self, epoch: int) -> tuple[NodeReport, ...]:
        """Returns the other nodes' reports on an epoch, in order of time."""
        if self.alone:
            return ()
        keys = []
        for name in self.storage.names(self.attempt.nodes):
            match = _REPORT.match(name)
            if match and int(match[1]) == epoch and int(match[2]) != self.node_rank:
                keys.append(f"{self.attempt.nodes}/{name}")
        return tuple(sorted((NodeReport.model_validate_json(self.storage.read(key)) for key in keys), key=lambda report: report.at))

    def lost(self) -> int | None:
        """Returns a node whose heartbeats, as seen from here, have not changed for `lost_after_s`; None: all are well."""
        if self.alone:
            return None
        newest = dict.fromkeys(set(range(self.spec.num_nodes)) - {self.node_rank}, -1)
        for name in self.storage.names(self.attempt.heartbeats):
            match = _BEAT.match(name)
            if match and int(match[1]) in newest:
                newest[int(match[1])] = max(newest[int(match[1])], int(match[2]))
        now = time.monotonic()
        for node, sequence in sorted(newest.items()):
            if self._seen.get(node, (None, 0.0))[0] != sequence:
                self._seen[node] = (sequence, now)
            elif now - self._seen[node][1] > self.spec.lost_after_s:
                return node
        return None

    def heartbeat(self, node: int) -> Heartbeat | None:
        """Returns a node's newest heartbeat."""
        names = [name for name in self.storage.names(self.attempt.heartbeats) if name.startswith(f"n{node:04d}-")]
        try:
            return Heartbeat.model_validate_json(self.storage.read(f"{self.attempt.heartbeats}/{names[-1]}")) if names else None
        except FileNotFoundError:  # replaced by a newer one meanwhile
            return None

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
