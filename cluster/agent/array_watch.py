"""The agent's eye on an array's items: feeds the rules, asks hanging items what they do, tells how far the node is. Decides nothing itself."""

import logging
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from cluster.agent.node import Node
from cluster.agent.scratch import EpochScratch
from cluster.agent.stacks import RankProcess, collect_stacks, main_stack, process_facts, waits_for_disk
from cluster.restart import Finding
from cluster.throughput import Throughput
from cluster.trailing import ItemHang, ItemPace, ItemSigns, ItemWatch
from cluster.watchdog import ProcessState
from schemas.attempt import Cause
from schemas.job import WorkItem
from schemas.progress import ArrayProgress, ItemInWork, Notice, NoticeKind

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
_FRAMES_TOLD = 12
"""How much an incident tells; the rest is among the stacks."""


@dataclass(frozen=True)
class Running:
    """An item's process."""

    item: WorkItem
    """The item."""
    epoch: int
    """The start that it is of."""
    scratch: EpochScratch
    """Where it tells how far it is."""
    began: float = field(default_factory=time.monotonic)
    """When it was started, monotonic seconds."""

    @property
    def name(self) -> str:
        """The item for people."""
        return name_of(self.item)


@dataclass(frozen=True)
class HungItem:
    """A hang of an item as it is accounted for."""

    finding: Finding
    """Cause, evidence, message."""
    detected_after_s: float
    """Seconds without a sign of life before it was noticed."""


@dataclass
class ArrayWatch:
    """Watches the items of an array on one node."""

    node: Node
    items: Sequence[WorkItem]
    """The whole plan."""
    share: Collection[int]
    """Items of this node's share."""
    pace: ItemPace = field(default_factory=ItemPace)
    _watch: ItemWatch = field(init=False)
    _throughput: Throughput = field(default_factory=Throughput)
    _here: list[int] = field(default_factory=list)
    """Items that were finished by this node's processes."""
    _told: set[int] = field(default_factory=set)
    _looked_at: float = 0.0

    def __post_init__(self) -> None:
        """Begins with nothing seen."""
        self._watch = ItemWatch(self.pace, disk_limit_s=self.node.spec.lost_after_s)
        self._by_index = {item.index: item for item in self.items}
        self._throughput.see(0.0, 0.0, now=time.monotonic())

    def look(self, running: Mapping[int, Running], *, waiting: Collection[int], done: Collection[int]) -> dict[int, ItemHang]:
        """Looks at the items, and tells how far they are; returns the processes that hang. Cheap to ask often.

        Args:
            running: pid → item, of those that have not ended.
            waiting: items that were begun and have no process now.
            done: items with a record.
        """
        now = time.monotonic()
        if now - self._looked_at < LOOK_EVERY_S:
            return {}
        self._looked_at = now
        done_bytes = {pid: _done_bytes(at_work) for pid, at_work in running.items()}
        signs = {pid: signs for pid, at_work in running.items() if (signs := _signs(pid, at_work.item.index, done_bytes[pid])) is not None}
        in_work = [
            ItemInWork(index=at_work.item.index, running_s=now - at_work.began, done_bytes=done_bytes[pid]) for pid, at_work in running.items()
        ]
        self._tell_progress(in_work, waiting=waiting, done=done, now=now)
        for at_work in in_work:
            self._tell_trailing(self._by_index[at_work.index], at_work)
        return self._watch.look(signs, now=now)

    def finished(self, running: Running) -> None:
        """Learns that an item has ended well."""
        self.pace.finished.append((running.item.weight_bytes, time.monotonic() - running.began))
        self._here.append(running.item.index)

    def tell_end(self, *, done: Collection[int]) -> None:
        """Tells how far this node is, once nothing runs here any more."""
        self._tell_progress([], waiting=(), done=done, now=time.monotonic())

    def explain(self, hang: ItemHang, *, pid: int, running: Running) -> HungItem:
        """Returns what an item was doing when it was found hanging, and publishes its stacks. It is to be killed next: a stopped one now goes on."""
        text = collect_stacks([RankProcess(hang.index, pid, running.scratch.stacks(hang.index))])[hang.index]
        told = f"{running.name}: no sign of life for {hang.silent_s:.1f} s; its process is {hang.state.value}"
        key = self.node.attempt.stack(epoch=running.epoch, rank=hang.index)
        self.node.publisher.publish(key, f"{told}\n{text}\n".encode())
        frames = main_stack(text)
        message = f"{told}, in {frames[0]}" if frames else told
        return HungItem(Finding(Cause.HANG, (message, f"stacks: {key}", *frames[:_FRAMES_TOLD]), message), detected_after_s=hang.silent_s)

    def notify(self, kind: NoticeKind, item: WorkItem, message: str, *, epoch: int, figures: Mapping[str, float] | None = None) -> None:
        """Says something about an item to people."""
        logger.warning("%s", message)
        notice = Notice(at=time.time(), kind=kind, epoch=epoch, rank=item.index, step=-1, message=message, figures=dict(figures or {}))
        self.node.publisher.notify(notice)

    def _tell_progress(self, in_work: list[ItemInWork], *, waiting: Collection[int], done: Collection[int], now: float) -> None:
        begun = {at_work.index: self._part(at_work) for at_work in in_work}
        here = {**begun, **dict.fromkeys(self._here, 1.0)}
        own = {**{index: part for index, part in begun.items() if index in self.share}, **{index: 1.0 for index in self.share if index in done}}
        self._throughput.see(*self._sums(here), now=now)
        bytes_done, files_done = self._sums(own)
        self.node.publisher.array = ArrayProgress(
            bytes_done=bytes_done,
            files_done=files_done,
            bytes_per_s=self._throughput.bytes_per_s,
            files_per_s=self._throughput.files_per_s,
            in_work=(*in_work, *(ItemInWork(index=index, running_s=0.0, done_bytes=0) for index in sorted(waiting))),
        )

    def _tell_trailing(self, item: WorkItem, at_work: ItemInWork) -> None:
        if item.index in self._told or not self.pace.is_trailing(item, at_work):
            return
        self._told.add(item.index)
        expected_s = self.pace.expected_s(item.weight_bytes) or 0.0
        message = f"{name_of(item)} trails: in work for {at_work.running_s:.0f} s, where the finished ones let expect {expected_s:.0f} s"
        figures = {"running_s": at_work.running_s, "expected_s": expected_s, "done_bytes": float(at_work.done_bytes)}
        self.notify(NoticeKind.ITEM_TRAILS, item, message, epoch=-1, figures=figures)

    def _part(self, at_work: ItemInWork) -> float:
        """Returns which part of an item in work is done, 0 … 1."""
        return min(1.0, at_work.done_bytes / max(1, self._by_index[at_work.index].weight_bytes))

    def _sums(self, parts: Mapping[int, float]) -> tuple[float, float]:
        """Returns bytes and files of parts of items."""
        found = [(self._by_index[index], part) for index, part in parts.items()]
        return sum(item.weight_bytes * part for item, part in found), sum(item.num_files * part for item, part in found)


def name_of(item: WorkItem) -> str:
    """Returns an item for people: `item 3 (g0003)`."""
    return f"item {item.index} ({item.label})"


def _done_bytes(running: Running) -> int:
    progress = running.scratch.progress_of(running.item.index)
    return int(progress.figures.get("done_bytes", 0)) if progress is not None else 0


def _signs(pid: int, index: int, done_bytes: int) -> ItemSigns | None:
    """Returns an item's signs of life; None when it has just ended."""
    facts = process_facts(pid, with_children=True)
    if facts is None:
        return None
    if not facts.state.frozen and waits_for_disk(pid):
        facts = replace(facts, state=ProcessState.DISK)
    return ItemSigns(index=index, done_bytes=done_bytes, facts=facts)
