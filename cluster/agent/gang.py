"""Runs a gang on a node: all ranks start, work and end together. When one dies, the others of its epoch are killed at once."""

import logging
import time
from dataclasses import dataclass, field

from cluster.agent.node import Node, Outcome, free_port
from cluster.agent.nursery import End, Program
from cluster.agent.peers import NodeReport, Peers
from cluster.agent.scratch import EpochScratch
from cluster.attempt import newest_commit
from cluster.environment import Place
from cluster.epoch import take_epoch
from cluster.restart import EVIDENCE_LINES, Ending, Finding, classify, first_cause
from schemas.exit_code import ExitCode
from schemas.job import Cause, EpochRecord, RankPhase

logger = logging.getLogger(__name__)

AT_WORK = frozenset({RankPhase.STEPPING, RankPhase.SAVING, RankPhase.VALIDATING, RankPhase.FINISHED})
"""Phases in which a rank has got past its start."""

_TICK_S = 0.2
_RECOVERY_TICK_S = 0.02
_SETTLE_S = 3.0
"""How long to look for the first cause when the first rank to end only echoes another's end."""
_PEERS_EVERY_S = 0.5


def lead_gang(node: Node, peers: Peers) -> Outcome:
    """Runs epochs until the work is done, somebody wishes a stop, or the policy ends it. For node 0."""
    reason = "first start"
    while True:
        port = free_port(node.advertise)
        record = take_epoch(
            node.storage,
            node.artifact,
            attempt=node.spec.attempt,
            key=node.spec.key,
            world_size=node.spec.num_nodes * node.spec.ranks_per_node,
            rendezvous=f"{node.advertise}:{port}",
            reason=reason,
        )
        own = GangEpoch(node, peers, record).run()
        peers.tell(own)
        report = _whole_account(own, peers)
        if report.outcome != "failed":
            done = report.outcome == "finished"
            return Outcome(ExitCode.DONE if done else ExitCode.INTERRUPTED, report.cause, report.message, record.epoch)
        finding = report.finding()
        decision = node.ledger.judge(
            finding,
            epoch=record.epoch,
            rank=report.rank,
            step=report.step,
            committed_step=report.committed_step,
            exit_status=report.exit_status,
            at=report.at,
        )
        if decision.action == "stop":
            return Outcome(decision.exit_code, finding.cause, f"{finding.message}; {decision.reason}", record.epoch)
        node.pause(decision.delay_s)
        if node.stop.reason:
            return Outcome(ExitCode.INTERRUPTED, Cause.CANCELLED, node.stop.reason, record.epoch)
        reason = finding.message


def follow_gang(node: Node, peers: Peers) -> None:
    """Starts this node's ranks for every epoch that node 0 takes, until the attempt is over. For nodes above 0."""
    epoch = -1
    while not peers.over() and not node.stop.reason:
        if peers.lost() is not None:
            logger.error("node %s is silent; this node ends its part", peers.lost())
            return
        record = peers.next_epoch(epoch)
        if record is None:
            time.sleep(_TICK_S)
            continue
        epoch = record.epoch
        peers.tell(GangEpoch(node, peers, record).run())


def _whole_account(own: NodeReport, peers: Peers) -> NodeReport:
    """Returns the report that explains the epoch's end on all nodes: the first cause, with the furthest steps."""
    deadline = time.monotonic() + (_SETTLE_S if own.outcome == "failed" else peers.spec.lost_after_s)
    reports = (own, *peers.reports(own.epoch))
    while len(reports) < peers.spec.num_nodes and time.monotonic() < deadline and not any(r.outcome == "failed" and not r.echo for r in reports):
        time.sleep(_TICK_S)
        reports = (own, *peers.reports(own.epoch))
    failed = [report for report in reports if report.outcome == "failed"]
    if not failed:
        stopped = [report for report in reports if report.outcome == "stopped"]
        return stopped[0] if stopped else own
    failed.sort(key=lambda report: report.at)
    chosen = failed[first_cause([report.finding() for report in failed])]
    furthest = {"step": max(report.step for report in reports), "committed_step": max(report.committed_step for report in reports)}
    return chosen.model_copy(update=furthest)


@dataclass
class GangEpoch:
    """One start of a gang's ranks on this node."""

    node: Node
    peers: Peers
    record: EpochRecord
    _ranks: dict[int, int] = field(default_factory=dict)
    """pid → rank."""
    _working_since: dict[int, float] = field(default_factory=dict)
    """Rank → when it was first seen past its start, by its own clock."""
    _warmed_from: float = 0.0
    _peers_at: float = 0.0

    def run(self) -> NodeReport:
        """Starts the ranks and returns how the epoch ended here. No rank of it is left then."""
        scratch = self.node.prepare(self.record.epoch)
        try:
            return self._run(scratch)
        finally:
            self.node.nursery.kill_all()
            self.node.publisher.finish(self.record.epoch)

    def _run(self, scratch: EpochScratch) -> NodeReport:
        self._start(scratch)
        finished: set[int] = set()
        while len(finished) < len(self._ranks):
            ended = self.node.nursery.wait(_RECOVERY_TICK_S if self.node.ledger.open else _TICK_S)
            finished |= {end.pid for end in ended if end.status == 0}
            failed = [end for end in ended if end.status != 0]
            if failed:
                return self._explain(scratch, failed)
            if self.node.stop.reason:
                return self._stop(scratch, finished)
            if (elsewhere := self._elsewhere()) is not None:
                return self._report(scratch, elsewhere, outcome="failed")
            self._watch(scratch)
        return self._report(scratch, Finding(Cause.FINISHED, (), "finished"), outcome="finished")

    def _start(self, scratch: EpochScratch) -> None:
        host, _, port = self.record.rendezvous.rpartition(":")
        for local_rank in range(self.node.spec.ranks_per_node):
            rank = self.node.node_rank * self.node.spec.ranks_per_node + local_rank
            place = Place(
                rank=rank,
                world_size=self.record.world_size,
                local_rank=local_rank,
                local_world_size=self.node.spec.ranks_per_node,
                node_rank=self.node.node_rank,
                master_addr=host,
                master_port=int(port),
            )
            env = {**self.node.variables(self.record.epoch), **place.variables()}
            pid = self.node.nursery.start(Program(module=self.node.module, argv=self.node.argv(scratch), env=env, log=scratch.log(rank)))
            self._ranks[pid] = rank
        logger.info("epoch %d: %d of %d ranks started (%s)", self.record.epoch, len(self._ranks), self.record.world_size, self.record.reason)

    def _explain(self, scratch: EpochScratch, failed: list[End]) -> NodeReport:
        """Finds the first cause, kills the other ranks, and reports. Echoes wait a moment for what they echo."""
        findings = [self._classify(scratch, end) for end in failed]
        deadline = time.monotonic() + _SETTLE_S
        while all(finding.echo for finding in findings) and self.node.nursery.running and time.monotonic() < deadline:
            more = [end for end in self.node.nursery.wait(0.1) if end.status != 0]
            failed += more
            findings += [self._classify(scratch, end) for end in more]
        self.node.nursery.kill_all()
        first = first_cause(findings)
        end, finding = failed[first], findings[first]
        message = f"rank {self._ranks[end.pid]}: {finding.message}"
        return self._report(scratch, finding, outcome="failed", end=failed[first], message=message, at=failed[0].at)

    def _classify(self, scratch: EpochScratch, end: End) -> Finding:
        rank = self._ranks[end.pid]
        finding = classify(Ending(rank=rank, exit_status=end.status, tail=scratch.tail(rank, lines=EVIDENCE_LINES)))
        if end.zygote_died:
            return Finding(Cause.KILLED, ("the zygote ended, and its ranks with it", *finding.evidence), "the zygote ended")
        return finding

    def _stop(self, scratch: EpochScratch, finished: set[int]) -> NodeReport:
        """Ends the ranks because somebody wishes so. Ranks that say they are done are believed."""
        reason = self.node.stop.reason
        statuses = self.node.end_gracefully()
        if len(finished) + sum(status == 0 for status in statuses.values()) == len(self._ranks):
            return self._report(scratch, Finding(Cause.FINISHED, (), "finished"), outcome="finished")
        return self._report(scratch, Finding(Cause.CANCELLED, (reason,), reason), outcome="stopped")

    def _elsewhere(self) -> Finding | None:
        """Returns why this node's ranks must end although none of them failed: another node's report, or its silence."""
        if self.peers.alone or time.monotonic() < self._peers_at:
            return None
        self._peers_at = time.monotonic() + _PEERS_EVERY_S
        for report in self.peers.reports(self.record.epoch):
            if report.outcome == "failed":
                return Finding(Cause.NODE, report.evidence, report.message, echo=True)
        lost = self.peers.lost()
        if lost is not None:
            return Finding(
                Cause.NODE, (f"no heartbeat of node {lost} for {self.node.spec.lost_after_s:g} s",), f"node {lost} is lost", ExitCode.INTERRUPTED
            )
        return None

    def _watch(self, scratch: EpochScratch) -> None:
        """Looks at the ranks' progress: whether all work again after an incident, and what the zygote should know."""
        modules = self.node.scratch.modules
        if modules.exists() and (written := modules.stat().st_mtime) > self._warmed_from:
            self._warmed_from = written
            self.node.nursery.warm_up(modules)
        if self.node.ledger.open is None:
            return
        for progress in scratch.progress():
            if progress.phase in AT_WORK:
                self._working_since.setdefault(progress.rank, progress.at)
        if len(self._working_since) == len(self._ranks):
            self.node.ledger.recovered(max(self._working_since.values()))

    def _report(
        self, scratch: EpochScratch, finding: Finding, *, outcome: str, end: End | None = None, message: str = "", at: float | None = None
    ) -> NodeReport:
        progress = scratch.progress()
        return NodeReport.model_validate(
            {
                "node_rank": self.node.node_rank,
                "epoch": self.record.epoch,
                "outcome": outcome,
                "cause": finding.cause,
                "rank": self._ranks[end.pid] if end else -1,
                "exit_status": end.status if end else 0,
                "evidence": finding.evidence,
                "message": message or finding.message,
                "stop_code": finding.stop_code,
                "echo": finding.echo,
                "step": max((rank.step for rank in progress), default=-1),
                "committed_step": max([newest_commit(self.node.storage, self.node.artifact), *(rank.committed_step for rank in progress)]),
                "at": time.time() if at is None else at,
            }
        )
