"""What a node of an array does beside its own share: it runs what others have not begun, or what trails there, once it has nothing left to start.

The shares are fixed and nobody schedules. Who helps creates a *take*, exclusively, and the owner looks for takes before it starts an item. That saves
double work and nothing else: should two nodes run an item all the same, they make equal bytes, the first record counts, and the slower run is ended.
"""

import contextlib
import time
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from cluster.agent.array_watch import Running
from cluster.agent.node import Node
from cluster.agent.peers import Peers
from cluster.liveness import FRESH_S
from cluster.storage import AlreadyExistsError
from cluster.trailing import Help, ItemPace, help_wanted
from schemas.attempt import Take
from schemas.canonical import canonical_json
from schemas.job import ItemRecord, WorkItem
from schemas.progress import ItemInWork

_LOOK_EVERY_S = 1.0
_LOOK_WHEN_BUSY_S = 5.0
_LOOK_PER_NODE_S = 0.1
"""A look reads a heartbeat of every node: with many of them it is rarer."""
_TOLD_AFTER_S = 5.0
"""So long after a node has begun something its heartbeats say so, wherever they are read."""


@dataclass
class Helping:
    """A node's part in the shares of others. Alone, there is none, and storage is not asked."""

    node: Node
    peers: Peers
    items: Sequence[WorkItem]
    """The whole plan, in order of starting."""
    pace: ItemPace
    done: set[int] = field(default_factory=set)
    """Items known to have a record. Of those that others run, as of the last look."""
    _takes: dict[str, float] = field(default_factory=dict)
    """Name → when it was first seen here, monotonic seconds."""
    _looked_at: float = 0.0
    _idle_from: float | None = None
    """When this node first had a free place and nothing to start, monotonic seconds."""

    def is_taken(self, item: WorkItem) -> bool:
        """Whether another node has taken an item by now. Asks storage."""
        return not self.peers.alone and self.node.storage.exists(self.node.attempt.take(item.index, number=0))

    def has_record(self, item: WorkItem) -> bool:
        """Whether an item is done, whoever did it. Asks storage."""
        return self.node.storage.exists(self._record(item))

    def is_overtaken(self, running: Running) -> bool:
        """Whether an item that runs here is known to be done by another run of it."""
        if running.item.index not in self.done:
            return False
        return ItemRecord.model_validate_json(self.node.storage.read(self._record(running.item))).epoch != running.epoch

    def look(self, *, own: Collection[int], places: int) -> tuple[Help, ...]:
        """Looks at the other nodes now and then; returns what this node has taken, at most `places` items.

        Args:
            own: items that this node works on.
            places: how many more it could run; 0: it has enough of its own.
        """
        pause_s = max(_LOOK_EVERY_S if places else _LOOK_WHEN_BUSY_S, _LOOK_PER_NODE_S * self.node.spec.num_nodes)
        if self.peers.alone or time.monotonic() < self._looked_at + pause_s:
            return ()
        self._looked_at = time.monotonic()
        for name in self.node.storage.names(self.node.attempt.takes):
            self._takes.setdefault(name, self._looked_at)
        if places or {_index_of(name) for name in self._takes} - self.done:
            self.done |= set(self._records())
        if places and self._idle_from is None:
            self._idle_from = self._looked_at
        if not places or self._idle_from is None or self._looked_at - self._idle_from < _TOLD_AFTER_S:
            return ()
        return self._take(own=own, places=places)

    def _record(self, item: WorkItem) -> str:
        return self.node.artifact.item(self.node.spec.step_name, item.index)

    def _records(self) -> Iterable[int]:
        """Yields the items that have a record."""
        prefix = f"{self.node.spec.step_name}-"
        for name in self.node.storage.names(self.node.artifact.items):
            number = name.removeprefix(prefix).removesuffix(".json")
            if name.startswith(prefix) and number.isdigit():
                yield int(number)

    def _take(self, *, own: Collection[int], places: int) -> tuple[Help, ...]:
        elsewhere: dict[int, list[ItemInWork]] = {}
        for beat in self.peers.beats_of_living(most_silent_s=FRESH_S):
            for at_work in beat.array.in_work if beat.array is not None else ():
                elsewhere.setdefault(at_work.index, []).append(at_work)
        young = {_index_of(name) for name, seen_at in self._takes.items() if self._looked_at - seen_at < _TOLD_AFTER_S}
        numbers = Counter(map(_index_of, self._takes))
        taken: list[Help] = []
        for wanted in help_wanted(self.items, done=self.done, own={*own, *young}, elsewhere=elsewhere, pace=self.pace):
            if len(taken) == places:
                break
            take = Take(index=wanted.item.index, node_rank=self.node.node_rank, at=time.time())
            with contextlib.suppress(AlreadyExistsError):  # another one helps
                self.node.storage.create_exclusive(self.node.attempt.take(take.index, number=numbers[take.index]), canonical_json(take))
                taken.append(wanted)
        return tuple(taken)


def _index_of(name: str) -> int:
    return int(name.partition("-")[0])
