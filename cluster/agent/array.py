"""Runs the items of a frozen work plan on a node: so many at a time, the largest first; finished ones are never run again."""

import logging
import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from cluster.agent.node import JobEnd, Node, Outcome
from cluster.agent.nursery import End, Program
from cluster.agent.peers import NodeReport, Peers
from cluster.agent.scratch import EpochScratch
from cluster.epoch import take_epoch
from cluster.restart import EVIDENCE_LINES, Ending, Finding, classify, first_cause
from schemas.attempt import Cause
from schemas.exit_code import ExitCode
from schemas.job import WorkItem, WorkPlan

logger = logging.getLogger(__name__)

SLOT = 0
"""Where nodes leave their reports on an array: it has one, not one per epoch."""

_TICK_S = 0.2
_SETTLE_S = 2.0
_PUBLISHED_AT_A_TIME = 2
_PUBLISHING_TICK_S = 0.02


def order(items: Iterable[WorkItem]) -> tuple[WorkItem, ...]:
    """Returns the items in the order in which they start: the largest first, so that no long one is left for the end."""
    return tuple(sorted(items, key=lambda item: (-item.weight_bytes, item.index)))


def share(items: Iterable[WorkItem], *, node_rank: int, num_nodes: int) -> tuple[WorkItem, ...]:
    """Returns a node's part of a plan, in order of starting. Over all nodes the parts are the plan, each item once."""
    return order(items)[node_rank::num_nodes]


def run_array(node: Node, peers: Peers) -> JobEnd | None:
    """Runs this node's items; on node 0 also waits for the other nodes and returns how it all ended."""
    report = ArrayRun(node, peers).run()
    peers.tell(report, slot=SLOT)
    if node.node_rank != 0:
        return None
    reports = peers.collect(report, slot=SLOT, settle_s=_SETTLE_S)
    failed = [each for each in reports if each.outcome == "failed"]
    stopped = [each for each in reports if each.outcome == "stopped"]
    chosen = failed[first_cause([each.finding() for each in failed])] if failed else (stopped or reports)[0]
    if chosen.outcome == "stopped" and chosen.cause is not Cause.CANCELLED:  # the supervisor decides from incidents
        node.ledger.judge(
            chosen.finding(),
            epoch=max(each.epoch for each in reports),
            rank=-1,
            step=-1,
            committed_step=sum(each.committed_step for each in reports),
            exit_status=0,
            at=chosen.at,
            idle=0,
        )
    code = ExitCode.DONE if chosen.outcome == "finished" else chosen.stop_code or ExitCode.INTERRUPTED
    others = tuple(incident for each in reports[1:] for incident in each.incidents)
    return JobEnd(Outcome(code, chosen.cause, chosen.message, max(each.epoch for each in reports)), others)


@dataclass
class _Waiting:
    """An item that is to be started."""

    item: WorkItem
    not_before: float = 0.0
    reason: str = ""
    """What ended its last start; empty for the first."""


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
    _publishing: dict[Future[None], tuple[WorkItem, int, End]] = field(default_factory=dict)
    """What items left that have ended, on its way to storage → item, its epoch, its end."""
    _publishers: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(_PUBLISHED_AT_A_TIME, thread_name_prefix="publish item"))

    def run(self) -> NodeReport:
        """Runs this node's items and returns how it ended. No item is running then."""
        try:
            return self._run()
        finally:
            self.node.nursery.kill_all()
            self._publishers.shutdown(cancel_futures=True)
            for epoch in self._scratch:
                self.node.publisher.finish(epoch)

    def _run(self) -> NodeReport:
        spec, storage = self.node.spec, self.node.storage
        plan = WorkPlan.model_validate_json(storage.read(self.node.artifact.plan(spec.step_name)))
        mine = share(plan.items, node_rank=self.node.node_rank, num_nodes=spec.num_nodes)
        self._waiting = [_Waiting(item) for item in mine if not self._has_record(item)]
        self._count(len(mine) - len(self._waiting))
        if self._waiting:
            self._take_epoch("first start")
        while self._waiting or self._running or self._publishing:
            self._start_some()
            for end in self.node.nursery.wait(_PUBLISHING_TICK_S if self._publishing else _TICK_S):
                self._publish(end)
            for published in [published for published in self._publishing if published.done()]:
                report = self._ended(published)
                if report is not None:
                    return report
            if self.node.stop.reason:
                return self._stop()
            if (trouble := self.peers.trouble(SLOT)) is not None:
                return self._report(trouble, outcome="failed")
            self.node.memory.look()
        return self._report(Finding(Cause.FINISHED, (), "finished"), outcome="finished")

    def _start_some(self) -> None:
        """Starts items while there are free places."""
        for waiting in [waiting for waiting in self._waiting if waiting.not_before <= time.monotonic()]:
            if len(self._running) >= self.node.spec.ranks_per_node:
                return
            index = waiting.item.index
            if waiting.reason:  # a start after an incident is an epoch of its own: a forgotten writer of the old one stays apart
                self._take_epoch(waiting.reason)
            self._waiting.remove(waiting)
            self.node.staging.bring_item(index)
            scratch = self._scratch[self.epoch]
            program = Program(
                name=f"item {index}",
                module=self.node.module,
                argv=self.node.argv(scratch, "--index", str(index)),
                env=self.node.variables(self.epoch),
                log=scratch.log(index),
            )
            self._running[self.node.nursery.start(program)] = (waiting.item, self.epoch)
            if waiting.reason and self.node.ledger.open is not None:
                self.node.ledger.recovered(time.time())

    def _publish(self, end: End) -> None:
        """Begins to make visible what an item left that has ended, however it did; others go on meanwhile."""
        item, epoch = self._running.pop(end.pid)
        self._scratch[epoch].remove_progress(item.index)
        self._publishing[self._publishers.submit(self.node.staging.publish_item, item.index)] = (item, epoch, end)

    def _ended(self, published: Future[None]) -> NodeReport | None:
        """Takes note of an item's end. Returns a report when it ends the work of this node. Raises what hindered publishing."""
        item, epoch, end = self._publishing.pop(published)
        published.result()
        if self._has_record(item):
            self._count(self.done + 1)
            return None
        finding = self._classify(end, item, epoch)
        decision = self.node.ledger.judge(
            finding,
            epoch=epoch,
            rank=item.index,
            step=-1,
            committed_step=self.done or -1,
            exit_status=end.status,
            at=end.at,
            idle=1 + sum(incident.rank == item.index for incident in self.node.ledger.counted),
        )
        if decision.action == "stop":
            why = f"\n  why:  item {item.index} ({item.label}): stopped by policy: {decision.reason}"
            message = finding.message + (why if finding.stop_code is None else "")
            return self._report(Finding(finding.cause, finding.evidence, message, decision.exit_code), outcome="failed", end=end, item=item)
        self._waiting.append(_Waiting(item, not_before=time.monotonic() + decision.delay_s, reason=finding.message))
        return None

    def _classify(self, end: End, item: WorkItem, epoch: int) -> Finding:
        name, tail = f"item {item.index}", self._scratch[epoch].tail(item.index, lines=EVIDENCE_LINES)
        if end.zygote_died:
            return Finding(Cause.KILLED, (f"the zygote ended, and {name} with it",), "the zygote ended, and its items with it")
        if end.status == 0:
            return Finding(Cause.USER_CODE, ("exit code 0, but no item record", *tail), f"{name} ended well but left no record")
        return classify(Ending(name=name, exit_status=end.status, tail=tail, oom_killed=self.node.memory.struck()))

    def _stop(self) -> NodeReport:
        self.node.end_gracefully()
        wish = self.node.why_stopped()
        assert wish is not None
        stop_code = None if wish.cause is Cause.CANCELLED else ExitCode.INTERRUPTED
        return self._report(Finding(wish.cause, (wish.reason,), wish.reason, stop_code), outcome="stopped")

    def _has_record(self, item: WorkItem) -> bool:
        return self.node.storage.exists(self.node.artifact.item(self.node.spec.step_name, item.index))

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
                "echo": finding.echo,
                "committed_step": self.done,
                "at": time.time(),
                "incidents": tuple(self.node.ledger.incidents),
            }
        )
