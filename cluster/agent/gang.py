"""Runs a gang on a node: all ranks start, work and end together. When one dies or hangs, the others of its epoch are killed at once."""

import logging
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from cluster.agent.compilations import remove_dead_locks
from cluster.agent.node import Node, Outcome, Wish, held_port
from cluster.agent.nursery import End, Program
from cluster.agent.peers import NodeReport, Peers
from cluster.agent.pulse import PulseBoard
from cluster.agent.readahead import read_ahead
from cluster.agent.remedy import leave_act, past_of
from cluster.agent.scratch import EpochScratch
from cluster.agent.watch import Watch
from cluster.attempt import newest_commit
from cluster.environment import PULSE, STACKS_FILE, Place
from cluster.epoch import take_epoch
from cluster.restart import EVIDENCE_LINES, Decision, Ending, Finding, classify, first_cause, idle_starts
from cluster.watchdog import Hang, Pace
from schemas.attempt import Cause, EpochRecord
from schemas.exit_code import ExitCode
from schemas.progress import RankPhase, RankProgress

logger = logging.getLogger(__name__)

AT_WORK = frozenset({RankPhase.COMPILING, RankPhase.STEPPING, RankPhase.SAVING, RankPhase.VALIDATING, RankPhase.FINISHED})
"""Phases in which a rank has got past its start; `compiling` is its first step."""

_STOPS = (Cause.CANCELLED, Cause.BUDGET, Cause.TIME_LIMIT, Cause.PREEMPTION)
"""Why ranks stop as they were asked to, first what explains the others: ranks that were asked ask their peers on other nodes."""

_YIELDED = frozenset({int(ExitCode.INTERRUPTED), -signal.SIGTERM, -signal.SIGUSR1})
"""How ranks end that were asked to stop: the latter two before they listen."""

_TICK_S = 0.2
_RECOVERY_TICK_S = 0.02
_SETTLE_S = 3.0
"""How long to look for the first cause when the first rank to end only echoes another's end."""
_NOTHING_TO_COMMIT_S = 1.0
"""Grace of ranks of which none is past its start."""


def lead_gang(node: Node, peers: Peers) -> Outcome:
    """Runs epochs until the work is done, somebody wishes a stop, or the policy ends it. For node 0."""
    reason, pace = "first start", Pace()
    node.ledger.begin(newest_commit(node.storage, node.artifact))
    while True:
        with held_port() as port:
            record = take_epoch(
                node.storage,
                node.artifact,
                attempt=node.spec.attempt,
                key=node.spec.key,
                world_size=node.spec.num_nodes * node.spec.ranks_per_node,
                rendezvous=f"{_host(node)}:{port}",
                reason=reason,
            )
            own = GangEpoch(node, peers, record, pace).run()
        peers.tell(own, slot=record.epoch)
        reports = peers.collect(own, slot=record.epoch, settle_s=_SETTLE_S)
        since = [report.working_since for report in reports if report.working_since is not None]
        if node.ledger.open and len(since) == node.spec.num_nodes:  # too quick for the other nodes' heartbeats
            node.ledger.recovered(max(since))
        report = _account(reports)
        if report.outcome == "finished" or report.cause is Cause.CANCELLED:
            code = ExitCode.DONE if report.outcome == "finished" else ExitCode.INTERRUPTED
            return Outcome(code, report.cause, report.message, record.epoch)
        finding = report.finding()
        decision = node.ledger.judge(
            finding,
            epoch=record.epoch,
            rank=report.rank,
            step=report.step,
            committed_step=report.committed_step,
            exit_status=report.exit_status,
            at=report.at,
            detected_after_s=report.detected_after_s,
            idle=idle_starts(node.ledger.counted, committed_step=report.committed_step, baseline=node.ledger.baseline),
            past=past_of(node.storage, node.artifact, cause=finding.cause),
        )
        if decision.action == "stop":
            return Outcome(decision.exit_code, finding.cause, _told(finding, decision), record.epoch)
        leave_act(node.storage, node.artifact, decision, epoch=record.epoch, step=report.step, why=finding.message)
        node.pause(decision.delay_s)
        if (wish := node.why_stopped()) is not None:
            code = ExitCode.POLICY if wish.cause is Cause.BUDGET else ExitCode.INTERRUPTED
            return Outcome(code, wish.cause, wish.reason, record.epoch)
        reason = finding.message


def _host(node: Node) -> str:
    """Returns where ranks meet: of one node on its loopback, where nobody else can come."""
    return node.advertise if node.spec.num_nodes > 1 else "127.0.0.1"


def follow_gang(node: Node, peers: Peers) -> None:
    """Starts this node's ranks for every epoch that node 0 takes, until the attempt is over. For nodes above 0."""
    epoch, pace = -1, Pace()
    while not peers.over() and not node.stop.reason:
        record = peers.next_epoch(epoch)
        if record is not None:
            epoch = record.epoch
            peers.tell(GangEpoch(node, peers, record, pace).run(), slot=epoch)
        elif (trouble := peers.trouble(epoch + 1)) is not None:
            logger.error("%s; this node ends its part", trouble.message)
            return
        else:
            time.sleep(_TICK_S)


def _account(reports: tuple[NodeReport, ...]) -> NodeReport:
    """Returns the report that explains an epoch's end on all nodes: the first cause, with the furthest steps. Pure."""
    failed = sorted((report for report in reports if report.outcome == "failed"), key=lambda report: report.at)
    furthest = {"step": max(report.step for report in reports), "committed_step": max(report.committed_step for report in reports)}
    if not failed:
        stopped = sorted((report for report in reports if report.outcome == "stopped"), key=lambda report: _STOPS.index(report.cause))
        return stopped[0].model_copy(update=furthest) if stopped else reports[0]
    return failed[first_cause([report.finding() for report in failed])].model_copy(update=furthest)


def _told(finding: Finding, decision: Decision) -> str:
    """What people read when the policy stops a job. An error that says what, why and mend needs no more."""
    says_it_all = decision.repeats or decision.exit_code is ExitCode.INTERRUPTED
    return finding.message if says_it_all else f"{finding.message}\n  why:  stopped by policy: {decision.reason}"


@dataclass
class GangEpoch:
    """One start of a gang's ranks on this node."""

    node: Node
    peers: Peers
    record: EpochRecord
    pace: Pace
    _ranks: dict[int, int] = field(default_factory=dict)
    """pid → rank."""
    _working_since: dict[int, float] = field(default_factory=dict)
    """Rank → when it was first seen past its start, by its own clock."""
    _warmed_from: float = 0.0
    _board: PulseBoard | None = None

    def run(self) -> NodeReport:
        """Starts the ranks and returns how the epoch ended here. Ranks that are left are killed then; their ends are waited for later."""
        scratch = self.node.prepare(self.record.epoch)
        board = self._board = PulseBoard(self._own_ranks, folder=scratch.folder)
        try:
            return self._run(scratch, board)
        finally:
            self.node.nursery.signal(signal.SIGKILL)
            self.node.publisher.pulses = ()
            board.close()
            self.node.publisher.finish(self.record.epoch)

    @property
    def _own_ranks(self) -> range:
        first = self.node.node_rank * self.node.spec.ranks_per_node
        return range(first, first + self.node.spec.ranks_per_node)

    def _run(self, scratch: EpochScratch, board: PulseBoard) -> NodeReport:
        self._start(scratch, board)
        watch = Watch(self.node, self.peers, epoch=self.record.epoch, board=board, pace=self.pace)
        finished: set[int] = set()
        while len(finished) < len(self._ranks):
            ended = self.node.nursery.wait(_RECOVERY_TICK_S if self.node.ledger.open else _TICK_S)
            finished |= {end.pid for end in ended if end.status == 0}
            failed = [end for end in ended if end.status != 0]
            asked = self.node.stop.wish is not None or any(end.status == ExitCode.INTERRUPTED for end in failed)
            if asked and all(end.status in _YIELDED for end in failed):
                return self._stop(scratch, finished, yielded=failed)
            if failed:
                return self._explain(scratch, failed)
            if (trouble := self.peers.trouble(self.record.epoch)) is not None:
                return self._report(scratch, trouble, outcome="failed")
            if (hang := watch.look(self._running())) is not None:
                return self._replace_hanging(scratch, watch, hang)
            self._watch(scratch)
            self.node.memory.look()
        return self._report(scratch, Finding(Cause.FINISHED, (), "finished"), outcome="finished")

    def _start(self, scratch: EpochScratch, board: PulseBoard) -> None:
        read_ahead(self.node.storage, self.node.artifact, ranks=self._own_ranks, world_size=self.record.world_size)
        self.node.nursery.kill_all()  # what was killed has given back memory and devices only once it is gone
        remove_dead_locks(self.node.nursery.env)
        host, _, port = self.record.rendezvous.rpartition(":")
        for local_rank, rank in enumerate(self._own_ranks):
            place = Place(
                rank=rank,
                world_size=self.record.world_size,
                local_rank=local_rank,
                local_world_size=self.node.spec.ranks_per_node,
                node_rank=self.node.node_rank,
                master_addr=host,
                master_port=int(port),
            )
            signs = {PULSE: board.place(rank), STACKS_FILE: str(scratch.stacks(rank))}
            env = {**self.node.variables(self.record.epoch), **place.variables(), **signs, **self.node.buffers.variables(local_rank)}
            program = Program(name=f"rank {rank}", module=self.node.module, argv=self.node.argv(scratch), env=env, log=scratch.log(rank))
            self._ranks[self.node.nursery.start(program)] = rank
        logger.info("epoch %d: %d of %d ranks started (%s)", self.record.epoch, len(self._ranks), self.record.world_size, self.record.reason)

    def _explain(self, scratch: EpochScratch, failed: list[End]) -> NodeReport:
        """Finds the first cause, kills the other ranks, and reports. Echoes wait a moment for what they echo."""
        at = failed[0].at
        findings = [self._classify(scratch, end) for end in failed]
        deadline = time.monotonic() + _SETTLE_S
        while all(finding.echo for finding in findings) and self.node.nursery.running and time.monotonic() < deadline:
            more = [end for end in self.node.nursery.wait(0.1) if end.status != 0]
            failed += more
            findings += [self._classify(scratch, end) for end in more]
        self.node.nursery.signal(signal.SIGKILL)
        first = first_cause(findings)
        return self._report(scratch, findings[first], outcome="failed", end=failed[first], at=at)

    def _running(self) -> dict[int, int]:
        """Returns the processes of the ranks that have not ended, by rank."""
        return {self._ranks[pid]: pid for pid in self.node.nursery.running}

    def _replace_hanging(self, scratch: EpochScratch, watch: Watch, hang: Hang) -> NodeReport:
        """Keeps what the ranks were doing, kills them, and reports who hangs."""
        at = time.time()
        report = watch.explain(hang, self._running(), scratch)
        self.node.nursery.signal(signal.SIGKILL)
        told = self._report(scratch, report.finding, outcome="failed", at=at)
        return told.model_copy(update={"rank": report.rank, "exit_status": -signal.SIGKILL, "detected_after_s": report.detected_after_s})

    def _classify(self, scratch: EpochScratch, end: End) -> Finding:
        rank = self._ranks[end.pid]
        if end.zygote_died:
            return Finding(Cause.KILLED, (f"the zygote ended, and rank {rank} with it",), "the zygote ended, and its ranks with it")
        tail = scratch.tail(rank, lines=EVIDENCE_LINES)
        return classify(Ending(name=f"rank {rank}", exit_status=end.status, tail=tail, oom_killed=self.node.memory.struck()))

    def _stop(self, scratch: EpochScratch, finished: set[int], *, yielded: list[End]) -> NodeReport:
        """Ends the ranks because somebody wishes so: of this agent, or of its ranks alone. Ranks that say they are done are believed."""
        at_work = any(progress.phase in AT_WORK for progress in scratch.progress())
        statuses = self.node.end_gracefully(grace_s=None if at_work else min(self.node.spec.grace_s, _NOTHING_TO_COMMIT_S))
        if len(finished) + sum(status == 0 for status in statuses.values()) == len(self._ranks):
            return self._report(scratch, Finding(Cause.FINISHED, (), "finished"), outcome="finished")
        asked = ", ".join(f"rank {self._ranks[end.pid]}" for end in yielded)
        wish = self.node.why_stopped() or Wish(Cause.PREEMPTION, f"{asked} stopped as asked by a signal")
        stop_code = None if wish.cause is Cause.CANCELLED else ExitCode.INTERRUPTED
        return self._report(scratch, Finding(wish.cause, (wish.reason,), wish.reason, stop_code), outcome="stopped")

    def _watch(self, scratch: EpochScratch) -> None:
        """Looks at the ranks' progress: whether all work again after an incident, and what the zygote should know."""
        modules = self.node.scratch.modules
        if modules.exists() and (written := modules.stat().st_mtime) > self._warmed_from:
            self._warmed_from = written
            self.node.nursery.warm_up(modules)
        if len(self._working_since) < self.record.world_size:
            elsewhere = self.peers.progress(self.record.epoch) if self.node.ledger.open else ()
            self._note_at_work((*scratch.progress(), *elsewhere))
            if self.node.ledger.open and len(self._working_since) == self.record.world_size:
                self.node.ledger.recovered(max(self._working_since.values()))

    def _note_at_work(self, ranks: Iterable[RankProgress]) -> None:
        for progress in ranks:
            if progress.phase in AT_WORK:
                self._working_since.setdefault(progress.rank, progress.at)

    def _steps(self, progress: Iterable[RankProgress]) -> Iterator[int]:
        """Yields how far those ranks are that have got past their start, by their signs of life: what they tell people is older."""
        assert self._board is not None
        at_work = {rank.rank for rank in progress if rank.phase in AT_WORK}
        yield from (pulse.step for pulse in self._board.read() if pulse.rank in at_work)

    def _report(self, scratch: EpochScratch, finding: Finding, *, outcome: str, end: End | None = None, at: float | None = None) -> NodeReport:
        progress = scratch.progress()
        self._note_at_work(progress)
        own = [since for rank, since in self._working_since.items() if rank in self._ranks.values()]
        return NodeReport.model_validate(
            {
                "node_rank": self.node.node_rank,
                "epoch": self.record.epoch,
                "outcome": outcome,
                "cause": finding.cause,
                "rank": self._ranks[end.pid] if end and not end.zygote_died else -1,
                "exit_status": end.status if end else 0,
                "evidence": finding.evidence,
                "message": finding.message,
                "stop_code": finding.stop_code,
                "echo": finding.echo,
                "step": max((*(rank.step for rank in progress), *self._steps(progress)), default=-1),
                "committed_step": max([newest_commit(self.node.storage, self.node.artifact), *(rank.committed_step for rank in progress)]),
                "at": time.time() if at is None else at,
                "working_since": max(own) if len(own) == len(self._ranks) else None,
            }
        )
