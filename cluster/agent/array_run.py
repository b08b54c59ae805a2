"""Runs the items of a frozen work plan on one node: so many at a time, the largest first; finished ones are never run again.

An item that hangs is killed and starts again (`cluster.trailing`). A node that has done its share helps the others (`cluster.agent.helping`).
"""

import signal
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from cluster.agent.array_watch import ArrayWatch, HungItem, Running, name_of
from cluster.agent.helping import Helping
from cluster.agent.node import Node
from cluster.agent.nursery import End, Program
from cluster.agent.peers import NodeReport, Peers
from cluster.agent.scratch import EpochScratch
from cluster.environment import STACKS_FILE
from cluster.epoch import take_epoch
from cluster.restart import EVIDENCE_LINES, Ending, Finding, classify
from cluster.trailing import Help
from cluster.unfinished import remove_unfinished
from cluster.work_share import order, share
from schemas.attempt import Cause
from schemas.exit_code import ExitCode
from schemas.job import WorkItem, WorkPlan
from schemas.progress import NoticeKind

SLOT = 0
"""Where nodes leave their reports on an array: it has one, not one per epoch."""

_TICK_S = 0.2
_PUBLISHED_AT_A_TIME = 2
_PUBLISHING_TICK_S = 0.02


@dataclass
class _Waiting:
    """An item that is to be started."""

    item: WorkItem
    not_before: float = 0.0
    reason: str = ""
    """What ended its last start; empty for the first."""
    is_help: bool = False
    """Whether it was taken from another node's share: its owner may be running it."""


@dataclass
class ArrayRun:
    """The work of an array on one node."""

    node: Node
    peers: Peers
    epoch: int = -1
    """The newest epoch taken here."""
    _share: frozenset[int] = frozenset()
    """Items of this node's share."""
    _waiting: list[_Waiting] = field(default_factory=list)
    _running: dict[int, Running] = field(default_factory=dict)
    """pid → item."""
    _hung: dict[int, HungItem] = field(default_factory=dict)
    """pid → why it was killed, until it has ended."""
    _overtaken: set[int] = field(default_factory=set)
    """Processes that were killed because another node was faster."""
    _has_helped: bool = False
    """Whether it has taken anything that others had not begun."""
    _scratch: dict[int, EpochScratch] = field(default_factory=dict)
    _publishing: dict[Future[None], tuple[Running, End]] = field(default_factory=dict)
    """What items left that have ended, on its way to storage."""
    _publishers: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(_PUBLISHED_AT_A_TIME, thread_name_prefix="publish item"))
    _watch: ArrayWatch = field(init=False)
    _helping: Helping = field(init=False)

    def run(self) -> NodeReport:
        """Runs this node's items and returns how it ended. No item is running then."""
        try:
            return self._run()
        finally:
            self.node.nursery.kill_all()
            if self._running:
                remove_unfinished(self.node.staging.output(), writers={(running.epoch, pid) for pid, running in self._running.items()})
            self._publishers.shutdown(cancel_futures=True)
            for epoch in self._scratch:
                self.node.publisher.finish(epoch)

    @property
    def done(self) -> int:
        """Items of this node's share that are known to have a record."""
        return len(self._share & self._helping.done)

    def _run(self) -> NodeReport:
        self._begin()
        while not self._is_over():
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
            self._look()
            self.node.memory.look()
        self._watch.tell_end(done=self._helping.done)
        return self._report(Finding(Cause.FINISHED, (), "finished"), outcome="finished")

    def _begin(self) -> None:
        spec = self.node.spec
        plan = order(WorkPlan.model_validate_json(self.node.storage.read(self.node.artifact.plan(spec.step_name))).items)
        mine = share(plan, node_rank=self.node.node_rank, num_nodes=spec.num_nodes)
        self._share = frozenset(item.index for item in mine)
        self._watch = ArrayWatch(self.node, plan, self._share)
        self._helping = Helping(self.node, self.peers, plan, self._watch.pace)
        self._waiting = [_Waiting(item) for item in mine if not self._helping.has_record(item)]
        self._helping.done |= self._share - {waiting.item.index for waiting in self._waiting}
        self.node.publisher.items_done = self.done

    def _is_over(self) -> bool:
        """Whether nothing is left to do here; of several nodes: anywhere, since what trails on another may be run here."""
        if self._waiting or self._running or self._publishing:
            return False
        return self.peers.alone or len(self._helping.done) == len(self._helping.items)

    def _start_some(self) -> None:
        """Starts items while there are free places."""
        for waiting in [waiting for waiting in self._waiting if waiting.not_before <= time.monotonic()]:
            if len(self._running) >= self.node.spec.ranks_per_node:
                return
            self._waiting.remove(waiting)
            if self._helping.is_taken(waiting.item) and not waiting.is_help and not waiting.reason:
                continue  # another node has begun it; should that one fall behind, this one takes it
            self._start(waiting)

    def _start(self, waiting: _Waiting) -> None:
        item = waiting.item
        if waiting.reason or self.epoch < 0:  # a start after an incident is an epoch of its own: a forgotten writer of the old one stays apart
            self._take_epoch(waiting.reason or "first start")
        self.node.staging.bring_item(item.index)
        scratch = self._scratch[self.epoch]
        self.node.nursery.load(self.node.spec.loader, scratch.task)
        program = Program(
            name=f"item {item.index}",
            module=self.node.module,
            argv=self.node.argv(scratch, "--index", str(item.index)),
            env={**self.node.variables(self.epoch), STACKS_FILE: str(scratch.stacks(item.index))},
            log=scratch.log(item.index),
        )
        self._running[self.node.nursery.start(program)] = Running(item, self.epoch, scratch)
        if waiting.reason and self.node.ledger.open is not None:
            self.node.ledger.recovered(time.time())

    def _look(self) -> None:
        """Looks at this node's items and at the other nodes: ends what hangs or was overtaken, and takes what others leave."""
        begun = {waiting.item.index for waiting in self._waiting if waiting.reason}
        publishing = {running.item.index for running, _ in self._publishing.values()}
        for pid, hang in self._watch.look(self._running, waiting=begun | publishing, done=self._helping.done).items():
            if pid not in self._hung and pid not in self._overtaken:
                self._hung[pid] = self._watch.explain(hang, pid=pid, running=self._running[pid])
                self.node.nursery.signal(signal.SIGKILL, pids=[pid])
        own = begun | publishing | {running.item.index for running in self._running.values()}
        places = 0 if self._waiting else self.node.spec.ranks_per_node - len(self._running)
        for help_ in self._helping.look(own=own, places=places):
            self._take(help_)
        for pid, running in self._running.items():
            if pid not in self._overtaken and self._helping.is_overtaken(running):
                self._overtaken.add(pid)
                message = f"{running.name}: another node was faster; this run of it is ended"
                self._watch.notify(NoticeKind.ITEM_TAKEN, running.item, message, epoch=running.epoch)
                self.node.nursery.signal(signal.SIGKILL, pids=[pid])
        self.node.publisher.items_done = self.done

    def _take(self, help_: Help) -> None:
        """Runs an item that another node has not begun, or that trails there. Of the former people are told once."""
        self._waiting.append(_Waiting(help_.item, is_help=True))
        who, which = f"node {self.node.node_rank}", name_of(help_.item)
        if help_.trailing is not None:
            message = f"{which} is run a second time, by {who}: it trails elsewhere, in work for {help_.trailing.running_s:.0f} s"
        else:
            message = f"{who} has done its share, and takes what others have not begun: first {which}"
            if self._has_helped:
                return
            self._has_helped = True
        self._watch.notify(NoticeKind.ITEM_TAKEN, help_.item, message, epoch=self.epoch)

    def _publish(self, end: End) -> None:
        """Begins to make visible what an item left that has ended, however it did; others go on meanwhile."""
        running = self._running.pop(end.pid)
        running.scratch.remove_progress(running.item.index)
        if end.status < 0:
            remove_unfinished(self.node.staging.output(), writers={(running.epoch, end.pid)})
        self._publishing[self._publishers.submit(self.node.staging.publish_item, running.item.index)] = (running, end)

    def _ended(self, published: Future[None]) -> NodeReport | None:
        """Takes note of an item's end. Returns a report when it ends the work of this node. Raises what hindered publishing."""
        running, end = self._publishing.pop(published)
        published.result()
        hung, item = self._hung.pop(end.pid, None), running.item
        self._overtaken.discard(end.pid)
        if self._helping.has_record(item):
            if end.status == 0:
                self._watch.finished(running)
            self._helping.done.add(item.index)
            self.node.publisher.items_done = self.done
            return None
        finding = hung.finding if hung is not None else self._classify(end, running)
        decision = self.node.ledger.judge(
            finding,
            epoch=running.epoch,
            rank=item.index,
            step=-1,
            committed_step=self.done or -1,
            exit_status=end.status,
            at=end.at,
            idle=1 + sum(incident.rank == item.index for incident in self.node.ledger.counted),
            detected_after_s=hung.detected_after_s if hung is not None else 0.0,
            item=running.name,
        )
        if decision.action == "stop":
            why = f"\n  why:  {running.name}: stopped by policy: {decision.reason}"
            message = finding.message + (why if finding.stop_code is None else "")
            return self._report(Finding(finding.cause, finding.evidence, message, decision.exit_code), outcome="failed", end=end, item=item)
        self._waiting.append(_Waiting(item, not_before=time.monotonic() + decision.delay_s, reason=finding.message))
        return None

    def _classify(self, end: End, running: Running) -> Finding:
        name, tail = f"item {running.item.index}", running.scratch.tail(running.item.index, lines=EVIDENCE_LINES)
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
