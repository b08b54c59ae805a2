"""Whether an attempt lives. PURE: what is known goes in, one of four answers comes out. "I could not ask" is not "it failed".

| exit record | launcher | process of the claim | claim or heartbeat | answer |
|---|---|---|---|---|
| there | any | any | any | `ended` |
| none | any | known to be dead | any | `gone` |
| none | pending, running | | any | `alive` |
| none | any | | fresh | `alive` |
| none | unknown | | old or none | `unknown` |
| none | ended | | old or none | `gone` |
| none | absent | | older than `lost_after`, or none for so long | `gone` |
| none | absent | | younger than that | `unknown` |

A known-dead process outweighs the launcher: its ranks died with it, and the other nodes of its attempt end by themselves.
The order of asking matters: launcher first, exit record last, so that a job that ends in between is seen as ended.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from cluster.launchers.protocol import JobState
from schemas.progress import Heartbeat

CLOCK_SKEW_S = 3600.0
"""Clocks of two machines are believed to agree within this."""

FRESH_S = 10.0
"""A heartbeat that changed within this many seconds proves life by itself."""


class Life(StrEnum):
    """What is known about an attempt's life."""

    ALIVE = "alive"
    UNKNOWN = "unknown"
    GONE = "gone"
    ENDED = "ended"


@dataclass(frozen=True)
class Signs:
    """What is known about an attempt."""

    job: JobState
    """What the launcher answered."""
    has_exit_record: bool
    """Whether the attempt left its exit record. Looked up last."""
    silent_s: float
    """Seconds since its claim or a heartbeat was new, as observed here; since it was submitted when there was neither."""
    has_started: bool
    """Whether there ever was one of them."""
    process_dead: bool = False
    """Whether the claiming agent is known to have ended: same process table, pid gone or recycled."""


def judge(signs: Signs, *, lost_after_s: float) -> Life:
    """Returns whether the attempt lives, by the table above."""
    if signs.has_exit_record:
        return Life.ENDED
    if signs.process_dead:
        return Life.GONE
    if signs.job in (JobState.PENDING, JobState.RUNNING):
        return Life.ALIVE
    if signs.has_started and signs.silent_s < FRESH_S:
        return Life.ALIVE
    if signs.job is JobState.UNKNOWN:
        return Life.UNKNOWN
    return Life.GONE if signs.job is JobState.ENDED or signs.silent_s > lost_after_s else Life.UNKNOWN


@dataclass
class Silence:
    """How long heartbeats have not changed, as observed from here. Another machine's clock is believed only beyond an hour's difference."""

    _seen: tuple[tuple[int, int], ...] | None = None
    _claimed: bool = False
    _since: float = 0.0
    _nodes: dict[int, tuple[int, float]] = field(default_factory=dict)
    """Node → its newest heartbeat, and when that was new here."""
    _first: float = math.inf
    """When the first one was seen."""

    def of_one_node_s(self, now: float, *, num_nodes: int) -> float:
        """Returns the seconds of silence of the node that has been silent for longest: of one that has never spoken, since the first has."""
        since = [since for _, since in self._nodes.values()]
        since += [self._first] if since and len(since) < num_nodes else []
        return max((now - moment for moment in since), default=0.0)

    def observe(self, beats: Sequence[Heartbeat], *, claimed: bool, now: float, wall: float, began_at: float) -> float:
        """Returns the seconds of silence.

        Args:
            beats: the newest heartbeat of each node.
            claimed: whether the attempt has a claim, the first sign of all.
            now: monotonic seconds.
            wall: seconds since the Unix epoch, by this machine's clock.
            began_at: when the attempt was submitted, seconds since the Unix epoch.
        """
        seen = tuple((beat.node_rank, beat.sequence) for beat in beats)
        self._first = min(self._first, now) if seen else self._first
        self._nodes |= {node: (sequence, now) for node, sequence in seen if self._nodes.get(node, (-1, 0.0))[0] != sequence}
        if (seen, claimed) != (self._seen, self._claimed):
            self._seen, self._claimed, self._since = seen, claimed, now
        by_clock = wall - max((beat.at for beat in beats), default=began_at)
        return max(now - self._since, by_clock if by_clock > CLOCK_SKEW_S else 0.0)
