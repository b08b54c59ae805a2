"""Which items of an array hang, and which trail behind the others. PURE: signs of life and a clock's readings in, findings out.

An item that hangs does nothing at all; it is killed and starts again. One that computes is never called a hang: from outside, a long call of a
library looks like an endless one. It is compared with the others instead, and when it trails, a node with nothing left to do runs it as well: items
make equal bytes whoever runs them, and the first record counts.

| what an item does | limit, seconds | why |
|---|---|---|
| is stopped or traced | 5 | it does nothing at all |
| tells nothing and uses no processor | max(60, 3 × the longest that ended well) | it waits for what does not come |
| the same, while a thread of it waits for a disk in the kernel | max(`lost_after`, the same) | storage stalls; another start would wait there too |
| is in work for max(30, 3 × what its size lets expect), and needs longer still than from the beginning | none | it trails |

Time is that of the watcher while it was awake itself, as in `cluster.watchdog`.
"""

import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from cluster.watchdog import LEAST_LIMIT_S, ProcessFacts, ProcessState
from schemas.job import WorkItem
from schemas.progress import ItemInWork

QUIET_LIMIT_S = 60.0
"""Least silence of an item that is a hang: a server or a library may wait for a time-out of its own, mostly of half a minute."""
SILENCES = 3.0
"""So many times the longest silence that ended well is a hang."""
TRAILING_FACTOR = 3.0
"""An item trails when it is in work for so many times what the finished ones let expect, …"""
LEAST_TRAILING_S = 30.0
"""… and for so long: below that a second run is not worth its start."""
FEW_ITEMS = 3
"""Finished items of which something can be expected of others."""
MOST_RUNS = 2
"""Runs of one item at a time, over all nodes."""

_LEAST_CPU_S = 0.1
"""Processor time that is a sign of life: timers of idle threads need less within a limit."""
_MOST_TICK_S = 2.0
"""Longest time between two looks that counts."""


@dataclass(frozen=True)
class ItemSigns:
    """An item's process at one moment."""

    index: int
    """The item."""
    done_bytes: int
    """How far it told that it is."""
    facts: ProcessFacts
    """Of its whole family: processor time, and the state that tells most."""


@dataclass(frozen=True)
class ItemHang:
    """An item that hangs."""

    index: int
    """The item."""
    silent_s: float
    """Seconds without a sign, as watched."""
    state: ProcessState
    """What the kernel says."""


@dataclass
class _Watched:
    """What is known of one process. Times are the watch's own."""

    silent_since: float
    signs: ItemSigns
    """As of its last sign of life."""
    stopped_since: float | None = None


@dataclass
class ItemPace:
    """How long things took so far on one node."""

    finished: list[tuple[int, float]] = field(default_factory=list)
    """Bytes and seconds of the finished items."""
    longest_silence_s: float = 0.0
    """That ended well."""

    def expected_s(self, weight_bytes: int) -> float | None:
        """Returns how long an item of this size should take; None while too few were seen.

        Start-up is part of every item: a small one is granted as much as the median, a larger one more in proportion to its size.
        """
        if len(self.finished) < FEW_ITEMS:
            return None
        typical_bytes = statistics.median(weight for weight, _ in self.finished)
        typical_s = statistics.median(seconds for _, seconds in self.finished)
        return typical_s * max(1.0, weight_bytes / max(1.0, typical_bytes))

    def is_trailing(self, item: WorkItem, at_work: ItemInWork) -> bool:
        """Whether another run of an item that is in work would probably end before that one."""
        expected_s = self.expected_s(item.weight_bytes)
        if expected_s is None or at_work.running_s <= max(LEAST_TRAILING_S, TRAILING_FACTOR * expected_s):
            return False
        if not 0 < at_work.done_bytes <= item.weight_bytes:
            return True
        return at_work.running_s * (item.weight_bytes - at_work.done_bytes) / at_work.done_bytes > expected_s


class ItemWatch:
    """Watches the items of one node."""

    def __init__(self, pace: ItemPace, *, disk_limit_s: float) -> None:
        """Args: pace: learns. disk_limit_s: least silence of one that waits for a disk."""
        self._pace, self._disk_limit_s = pace, disk_limit_s
        self._processes: dict[int, _Watched] = {}
        self._awake_s = 0.0
        self._looked_at: float | None = None

    def look(self, processes: Mapping[int, ItemSigns], *, now: float) -> dict[int, ItemHang]:
        """Takes note of the present moment, and returns the processes that hang.

        Args:
            processes: pid → signs, of those that have not ended. Those that are missing have, and are forgotten.
            now: monotonic seconds.
        """
        if self._looked_at is not None:
            self._awake_s += min(max(0.0, now - self._looked_at), _MOST_TICK_S)
        self._looked_at = now
        self._processes = {pid: watched for pid, watched in self._processes.items() if pid in processes}
        for pid, signs in processes.items():
            self._note(pid, signs)
        return {pid: hang for pid, signs in processes.items() if (hang := self._hang(self._processes[pid], signs.facts.state)) is not None}

    def _note(self, pid: int, signs: ItemSigns) -> None:
        watched = self._processes.get(pid)
        if watched is None:
            watched = self._processes[pid] = _Watched(silent_since=self._awake_s, signs=signs)
        past, frozen = watched.signs, signs.facts.state.frozen
        watched.stopped_since = (watched.stopped_since if watched.stopped_since is not None else self._awake_s) if frozen else None
        works = signs.facts.state is ProcessState.RUNNING or signs.facts.cpu_s - past.facts.cpu_s >= _LEAST_CPU_S  # or would, if the kernel let it
        if works or signs.done_bytes != past.done_bytes:
            self._pace.longest_silence_s = max(self._pace.longest_silence_s, self._awake_s - watched.silent_since)
            watched.signs, watched.silent_since = signs, self._awake_s

    def _hang(self, watched: _Watched, state: ProcessState) -> ItemHang | None:
        silent_s = self._awake_s - watched.silent_since
        least_s = self._disk_limit_s if state is ProcessState.DISK else QUIET_LIMIT_S
        stopped_s = self._awake_s - watched.stopped_since if watched.stopped_since is not None else 0.0
        if stopped_s < LEAST_LIMIT_S and silent_s < max(least_s, SILENCES * self._pace.longest_silence_s):
            return None
        return ItemHang(index=watched.signs.index, silent_s=max(silent_s, stopped_s), state=state)


@dataclass(frozen=True)
class Help:
    """An item that an idle node may run."""

    item: WorkItem
    """The item."""
    trailing: ItemInWork | None
    """How far its run elsewhere is; None: nobody has begun it."""


def help_wanted(
    items: Sequence[WorkItem], *, done: Collection[int], own: Collection[int], elsewhere: Mapping[int, Sequence[ItemInWork]], pace: ItemPace
) -> Iterable[Help]:
    """Yields what an idle node may run, in order of preference: what nobody has begun, then what trails most.

    Args:
        items: the plan, in order of starting. What nobody has begun is taken from its end, to which its owner comes last.
        done: items with a record.
        own: items that this node works on.
        elsewhere: index → runs on other nodes.
        pace: what this node has seen.
    """
    wanted = [item for item in items if item.index not in done and item.index not in own]
    yield from (Help(item, None) for item in reversed(wanted) if not elsewhere.get(item.index))
    runs = ((item, elsewhere.get(item.index, ())) for item in wanted)
    trailing = [(item, at_work[0]) for item, at_work in runs if 0 < len(at_work) < MOST_RUNS and pace.is_trailing(item, at_work[0])]
    yield from (Help(item, at_work) for item, at_work in sorted(trailing, key=lambda pair: -pair[1].running_s))
