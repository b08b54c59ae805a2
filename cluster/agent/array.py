"""Runs the items of a frozen work plan on a node: so many at a time, the largest first; finished ones are never run again."""

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from cluster.agent.node import Node
from cluster.agent.nursery import End, Program
from cluster.agent.peers import NodeReport, Peers
from cluster.agent.scratch import EpochScratch
from cluster.epoch import take_epoch
from cluster.restart import EVIDENCE_LINES, Ending, Finding, classify
from schemas.job import Cause, Incident, WorkItem, WorkPlan

logger = logging.getLogger(__name__)

_TICK_S = 0.2
_PEERS_EVERY_S = 1.0


def order(items: Iterable[WorkItem]) -> tuple[WorkItem, ...]:
    """Returns the items in the order in which they start: the largest first, so that no long one is left for the end."""
    return tuple(sorted(items, key=lambda item: (-item.weight_bytes, item.index)))


def share(items: Iterable[WorkItem], *, node_rank: int, num_nodes: int) -> tuple[WorkItem, ...]:
    """Returns a node's part of a plan, in order of starting. Over all nodes the parts are the plan, each item once."""
    return order(items)[node_rank::num_nodes]


@dataclass
class _Waiting:
    """An item that is to be started."""

    item: WorkItem
    not_before: float = 0.0
    reason: str = ""


@dataclass
class ArrayRun:
    """The work of an array on one node."""

    node: Node
    peers: Peers
    epoch: int = -1
    """The newest epoch taken here."""
    done: int = 0
    """Items of this node that have a record."""
    _waiting: list[_Waiting] = field(default_factory=list)
    _running: dict[int, tuple[WorkItem, int]] = field(default_factory=dict)
    """pid → item and the epoch it was started in."""
    _scratch: dict[int, EpochScratch] = field(default_factory=dict)
    _recovering: dict[int, Incident] = field(default_factory=dict)

    def run(self) -> NodeReport:
        """Runs this node's items and returns how it ended. No item is running then."""
        try:
            return self._run()
        finally:
            self.node.nursery.kill_all()
            for epoch in self._scratch:
                self.node.publisher.finish(epoch)

    def _run(self) -> NodeReport:
        step_name, storage = self.node.spec.step_name, self.node.storage
        plan = WorkPlan.model_validate_json(storage.read(self.node.artifact.plan(step_name)))
        mine = share(plan.items, node_rank=self.node.node_rank, num_nodes=self.node.spec.num_nodes)
        self._waiting = [_Waiting(item) for item in mine if not storage.exists(self.node.artifact.item(step_name, item.index))]
        self._count(len(mine) - len(self._waiting))
        if self._waiting:
            self._take_epoch("first start")
        while self._waiting or self._running:
            self._start_some()
            for end in self.node.nursery.wait(_TICK_S):
                report = self._ended(end)
                if report is not None:
                    return report
            if self.node.stop.reason:
                return self._stop()
        return self._report(Finding(Cause.FINISHED, (), "finished"), outcome="finished")

    def _start_some(self) -> None:
        """Starts items while there are free places."""
        now = time.monotonic()
        for waiting in [waiting for waiting in self._waiting if waiting.not_before <= now]:
            if len(self._running) >= self.node.spec.ranks_per_node:
                return
            if waiting.reason:  # a start after an incident is an epoch of its own: a forgotten writer of the old one stays apart
                self._take_epoch(f"item {waiting.item.index}: {waiting.reason}")
            self._waiting.remove(waiting)
            scratch, index = self._scratch[self.epoch], waiting.item.index
            program = Program(
                module=self.node.module,
                argv=self.node.argv(scratch, "--index", str(index)),
                env=self.node.variables(self.epoch),
                log=scratch.log(index),
            )
            self._running[self.node.nursery.start(program)] = (waiting.item, self.epoch)

    def _ended(self, end: End) -> NodeReport | None:
        """Takes note of an item's end. Returns a report when it ends the work of this node."""
        item, epoch = self._running.pop(end.pid)
        self._scratch[epoch].remove_progress(item.index)
        if self.node.storage.exists(self.node.artifact.item(self.node.spec.step_name, item.index)):
            self._count(self.done + 1)
            return None
        finding = self._classify(end, item, epoch)
        decision = self.node.ledger.judge(
            finding, epoch=epoch, rank=item.index, step=-1, committed_step=self.done or -1, exit_status=end.status, at=end.at
        )
        if decision.action == "stop":
            stop = Finding(
                finding.cause, finding.evidence, f"item {item.index} ({item.label}): {finding.message}; {decision.reason}", decision.exit_code
            )
            return self._report(stop, outcome="failed", end=end, item=item)
        self._waiting.append(_Waiting(item, not_before=time.monotonic() + decision.delay_s, reason=finding.message))
        return None

    def _classify(self, end: End, item: WorkItem, epoch: int) -> Finding:
        tail = self._scratch[epoch].tail(item.index, lines=EVIDENCE_LINES)
        if end.status == 0:
            return Finding(Cause.USER_CODE, ("exit code 0, but no item record", *tail), "it ended well but left no record")
        if end.zygote_died:
            return Finding(Cause.KILLED, ("the zygote ended, and its items with it", *tail), "the zygote ended")
        return classify(Ending(rank=item.index, exit_status=end.status, tail=tail))

    def _stop(self) -> NodeReport:
        reason = self.node.stop.reason
        self.node.end_gracefully()
        return self._report(Finding(Cause.CANCELLED, (reason,), reason), outcome="stopped")

    def _take_epoch(self, reason: str) -> None:
        record = take_epoch(
            self.node.storage,
            self.node.artifact,
            attempt=self.node.spec.attempt,
            key=self.node.spec.key,
            world_size=self.node.spec.ranks_per_node,
            rendezvous="",
            reason=reason,
        )
        self.epoch = record.epoch
        self._scratch[record.epoch] = self.node.prepare(record.epoch)

    def _count(self, done: int) -> None:
        self.done = done
        self.node.publisher.items_done = done

    def _report(self, finding: Finding, *, outcome: str, end: End | None = None, item: WorkItem | None = None) -> NodeReport:
        return NodeReport.model_validate(
            {
                "node_rank": self.node.node_rank,
                "epoch": self.epoch,
                "outcome": outcome,
                "cause": finding.cause,
                "rank": item.index if item else -1,
                "exit_status": end.status if end else 0,
                "evidence": finding.evidence,
                "message": finding.message,
                "stop_code": finding.stop_code,
                "at": time.time(),
                "incidents": tuple(self.node.ledger.incidents),
            }
        )
