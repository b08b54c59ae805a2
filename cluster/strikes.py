"""Nodes that are better avoided, from what the attempts of an artifact's job left.

A strike against a node is an incident that its hardware is the likely cause of: it was lost, or it changed numbers in memory. One is bad luck;
several within a day are a reason to ask for other nodes. Strikes expire, so that a node that was repaired comes back.

Which node was lost is told by heartbeats: it fell silent before the others. Clocks of nodes are taken to agree within a few seconds.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cluster.attempt import list_attempts, read_exit, read_heartbeats, read_spec, read_verdict
from cluster.layout import ArtifactLayout
from cluster.storage import Storage
from schemas.attempt import Cause, ExitRecord, Incident
from schemas.progress import Heartbeat

STRIKES = 2
"""So many make a node one to avoid."""
EXPIRY_S = 24 * 3600.0
"""After so long a strike is forgotten."""
_SILENT_S = 3.0
"""A node whose last heartbeat came so much earlier than that of another node of the attempt was the one that was lost."""
_CHANGED_BY_ITSELF = "CorruptStateError"
"""What a rank prints when its memory or its arithmetic cannot be trusted (`schemas.errors`)."""


@dataclass(frozen=True)
class Strike:
    """One incident against one node."""

    host: str
    """Name of the node, as it calls itself."""
    at: float
    """Seconds since the Unix epoch."""


def strikes_of(record: ExitRecord, beats: Sequence[Heartbeat], *, ranks_per_node: int, end: Cause | None = None) -> tuple[Strike, ...]:
    """Returns the strikes of one attempt. Pure.

    Args:
        record: how it ended, with its incidents.
        beats: the last heartbeat of each of its nodes.
        ranks_per_node: as in its spec.
        end: why the launcher ended it, where it says so: to the agents that are left, the loss of another node is a signal to stop.
    """
    hosts = {beat.node_rank: beat.host for beat in beats}
    found = []
    for number, incident in enumerate(record.incidents, start=1):
        is_loss = incident.cause is Cause.NODE or (end is Cause.NODE and number == len(record.incidents))
        for node in _lost(beats) if is_loss and incident.rank < 0 else _untrusted(incident, ranks_per_node=ranks_per_node):
            if node in hosts:
                found.append(Strike(hosts[node], incident.at))
    return tuple(found)


def nodes_to_avoid(strikes: Iterable[Strike], *, now: float) -> tuple[str, ...]:
    """Returns the nodes with too many strikes that have not expired, by name. Pure.

    Args:
        strikes: of all attempts.
        now: seconds since the Unix epoch.
    """
    counts = Counter(strike.host for strike in strikes if now - strike.at < EXPIRY_S)
    return tuple(sorted(host for host, count in counts.items() if count >= STRIKES))


def read_strikes(storage: Storage, layout: ArtifactLayout, *, step_name: str) -> tuple[Strike, ...]:
    """Returns the strikes of all attempts of a job that have ended."""
    strikes: list[Strike] = []
    for number in list_attempts(storage, layout, step_name=step_name):
        attempt = layout.attempt(step_name, number)
        record, verdict = read_exit(storage, attempt), read_verdict(storage, attempt)
        if record is not None and record.incidents:
            ranks = read_spec(storage, attempt).ranks_per_node
            end = verdict.cause if verdict is not None else None
            strikes += strikes_of(record, read_heartbeats(storage, attempt), ranks_per_node=ranks, end=end)
    return tuple(strikes)


def _lost(beats: Sequence[Heartbeat]) -> tuple[int, ...]:
    """Returns the nodes that fell silent before the others; the only node, when there is one; none, when all ended together."""
    if len(beats) == 1:
        return (beats[0].node_rank,)
    last = max((beat.at for beat in beats), default=0.0)
    return tuple(beat.node_rank for beat in beats if last - beat.at > _SILENT_S)


def _untrusted(incident: Incident, *, ranks_per_node: int) -> tuple[int, ...]:
    """Returns the node of a rank whose numbers changed by themselves."""
    corrupt = incident.cause is Cause.NUMERIC and any(_CHANGED_BY_ITSELF in line for line in incident.evidence)
    return (incident.rank // ranks_per_node,) if corrupt and incident.rank >= 0 else ()
