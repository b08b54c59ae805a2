"""What an agent works with while it runs a job on its node, and the account it keeps of what went wrong."""

import contextlib
import logging
import signal
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from cluster.agent.allocation import Allocation
from cluster.agent.buffers import RankBuffers
from cluster.agent.memory import OomWatch
from cluster.agent.nursery import Nursery
from cluster.agent.publisher import Publisher
from cluster.agent.remedy import Past
from cluster.agent.scratch import EpochScratch, NodeScratch
from cluster.agent.staging import Staging
from cluster.environment import ATTEMPT_KEY, EPOCH, MODULES_FILE
from cluster.failure_rate import Exposure, failures_among, mtbf_s
from cluster.layout import ArtifactLayout, AttemptLayout
from cluster.restart import Decision, Finding, decide
from cluster.storage import Storage, replace_local
from schemas.attempt import Cause, Incident
from schemas.canonical import canonical_json
from schemas.errors import ConfigError, Problem
from schemas.exit_code import ExitCode
from schemas.job import JobSpec, TaskSpec

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """How an agent's work ended."""

    exit_code: ExitCode
    """What the attempt ends with."""
    cause: Cause
    """The class."""
    message: str
    """For people."""
    epoch: int
    """The last epoch."""


@dataclass(frozen=True)
class JobEnd:
    """How an attempt ended, over all nodes."""

    outcome: Outcome
    """What it ends with."""
    incidents: tuple[Incident, ...] = ()
    """Of the other nodes; node 0's own are in its ledger."""


@dataclass(frozen=True)
class Wish:
    """Why an agent shall stop."""

    cause: Cause
    """`cancelled` and `budget` end the job; after `preemption` and `time limit` the next attempt goes on by itself."""
    reason: str
    """For people."""


class StopWish:
    """Whether this agent shall stop: a signal, the end of its time or budget, a cancel object, or the word that the attempt was declared lost."""

    def __init__(self) -> None:
        """Installs handlers for SIGTERM, SIGUSR1 (what schedulers send before they take a node away) and SIGINT; for the main thread only."""
        self._publisher: Publisher | None = None
        self._allocations: tuple[Allocation, ...] = ()
        self._signal = ""
        self._ending: Wish | None = None
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, self._on_signal)

    def listen(self, publisher: Publisher, *, allocations: tuple[Allocation, ...] = ()) -> None:
        """Hears from storage too, from now on, and heeds the end of each allocation; of two that end together the first one counts."""
        self._publisher, self._allocations = publisher, allocations

    @property
    def reason(self) -> str:
        """Why to stop; empty while nobody asked. Raises as `wish`."""
        return wish.reason if (wish := self.wish) is not None else ""

    @property
    def wish(self) -> Wish | None:
        """Why to stop; None while nobody asked. Raises what ended the publisher, if anything did: nobody would hear of this job any more."""
        if self._publisher is not None:
            if self._publisher.failure is not None:
                raise self._publisher.failure
            if self._publisher.cancelled.is_set():
                return Wish(Cause.CANCELLED, "cancelled")
            if self._publisher.declared_lost.is_set():
                return Wish(Cause.CANCELLED, "declared lost by the supervisor")
        if self._signal:
            return Wish(Cause.PREEMPTION, f"stopped by {self._signal}")
        if self._ending is None and self._publisher is not None:
            for allocation in self._allocations:
                allocation.see(self._publisher.ranks)
            ended = (allocation for allocation in self._allocations if allocation.is_ending)
            self._ending = next((Wish(allocation.cause, allocation.reason) for allocation in ended), None)
        return self._ending

    def _on_signal(self, number: int, _frame: object) -> None:
        self._signal = signal.Signals(number).name


@dataclass
class Ledger:
    """The incidents of one attempt, and the decisions taken. Node 0 publishes an incident once ranks work again, or at the end."""

    publisher: Publisher
    attempt: AttemptLayout
    spec: JobSpec
    node_rank: int
    history: tuple[Incident, ...]
    """Incidents of earlier attempts that count against the budgets."""
    baseline: int
    """Newest committed step before them."""
    exposure: Exposure = field(default_factory=Exposure)
    """What earlier attempts have seen; budgets forget at times, this does not."""
    began_at: float = field(default_factory=time.time)
    """When this attempt began, seconds since the Unix epoch."""
    incidents: list[Incident] = field(default_factory=list)
    """Those of this attempt, oldest first."""
    _published: int = 0

    @property
    def counted(self) -> tuple[Incident, ...]:
        """All incidents that count, oldest first."""
        return (*self.history, *self.incidents)

    def mtbf_s(self, *, now: float) -> float:
        """Returns the mean time between failures to expect, from all attempts so far. Seconds."""
        return mtbf_s(self.exposure + Exposure(now - self.began_at, failures_among(self.incidents)))

    def begin(self, committed_step: int) -> None:
        """Notes where the first start begins: what was committed by then is no progress of its own."""
        if not self.history:
            self.baseline = max(self.baseline, committed_step)

    def judge(
        self,
        finding: Finding,
        *,
        epoch: int,
        rank: int,
        step: int,
        committed_step: int,
        exit_status: int,
        at: float,
        idle: int,
        detected_after_s: float = 0.0,
        item: str = "",
        past: Past | None = None,
    ) -> Decision:
        """Decides what follows an incident, and notes it. `idle` and `past` as in `cluster.restart.decide`."""
        known = past or Past()
        decision = decide(
            self.counted,
            cause=finding.cause,
            idle=idle,
            limits=self.spec.limits,
            stop_code=finding.stop_code,
            acts=known.acts,
            commits=known.commits,
        )
        self._publish_all()
        self.incidents.append(
            Incident(
                epoch=epoch,
                at=at,
                cause=finding.cause,
                rank=rank,
                step=step,
                committed_step=committed_step,
                exit_status=exit_status,
                evidence=finding.evidence,
                decision=decision.action,
                reason=decision.reason,
                back_to_step=decision.back_to_step,
                detected_after_s=detected_after_s,
                item=item,
            )
        )
        logger.warning("epoch %d: %s; %s (%s)", epoch, finding.message, decision.action, decision.reason)
        return decision

    @property
    def open(self) -> Incident | None:
        """The newest incident while ranks have not recovered from it."""
        return self.incidents[-1] if self._published < len(self.incidents) else None

    def recovered(self, at: float) -> None:
        """Notes when all ranks were in a step again (seconds since the Unix epoch)."""
        assert self.open is not None
        self.incidents[-1] = self.open.model_copy(update={"recovered_after_s": max(0.0, at - self.open.at)})
        self._publish_all()

    def close(self) -> tuple[Incident, ...]:
        """Publishes what is left, and returns all incidents."""
        self._publish_all()
        return tuple(self.incidents)

    def _publish_all(self) -> None:
        if self.node_rank == 0:
            for number in range(self._published, len(self.incidents)):
                self.publisher.publish(self.attempt.incident(number), canonical_json(self.incidents[number]))
        self._published = len(self.incidents)


@dataclass(frozen=True)
class Node:
    """One node of one attempt."""

    spec: JobSpec
    storage: Storage
    staging: Staging
    attempt: AttemptLayout
    node_rank: int
    advertise: str
    """Name or address under which other nodes reach this one."""
    scratch: NodeScratch
    nursery: Nursery
    publisher: Publisher
    ledger: Ledger
    stop: StopWish
    memory: OomWatch
    buffers: RankBuffers

    @property
    def artifact(self) -> ArtifactLayout:
        """Paths of the artifact in the making."""
        return ArtifactLayout(self.spec.artifact_key)

    @property
    def module(self) -> str:
        """The module that compute processes run."""
        if self.spec.argv[:1] != ("-m",) or len(self.spec.argv) < 2:
            raise ConfigError((Problem("argv", repr(self.spec.argv), "a job's program is a module: `-m package.module`"),), source="the job spec")
        return self.spec.argv[1]

    def prepare(self, epoch: int) -> EpochScratch:
        """Creates an epoch's local folder with its task spec, and has its files published from now on."""
        scratch = self.scratch.epoch(epoch)
        scratch.folder.mkdir(parents=True)
        task = TaskSpec(
            job=self.spec,
            epoch=epoch,
            input_dirs={stage: str(folder) for stage, folder in self.staging.inputs().items()},
            output_dir=str(self.staging.output()),
            scratch_dir=str(scratch.folder),
            mtbf_s=self.ledger.mtbf_s(now=time.time()),
        )
        replace_local(scratch.task, canonical_json(task))
        self.publisher.follow(epoch, scratch)
        return scratch

    def argv(self, scratch: EpochScratch, *more: str) -> tuple[str, ...]:
        """Returns the arguments of a compute process."""
        return (*self.spec.argv[2:], "--spec", str(scratch.task), *more)

    def variables(self, epoch: int) -> Mapping[str, str]:
        """Returns the variables that every compute process of an epoch gets."""
        return {ATTEMPT_KEY: self.spec.key, EPOCH: str(epoch), MODULES_FILE: str(self.scratch.modules)}

    def pause(self, seconds: float) -> None:
        """Sleeps, unless somebody wishes a stop."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not self.stop.reason:
            time.sleep(0.05)

    def why_stopped(self) -> Wish | None:
        """Returns the wish to stop as it stands once processes have ended: a launcher that cancels also sends the signal that schedulers send."""
        wish = self.stop.wish
        if wish is not None and wish.cause is Cause.PREEMPTION and self.storage.exists(self.attempt.cancel):
            return Wish(Cause.CANCELLED, "cancelled")
        return wish

    def end_gracefully(self, *, grace_s: float | None = None) -> dict[int, int]:
        """Asks all processes to stop, kills those that have not after the grace (default: the job's). Returns the exit statuses by pid."""
        self.nursery.signal(signal.SIGTERM)
        deadline = time.monotonic() + (self.spec.grace_s if grace_s is None else grace_s)
        ended: dict[int, int] = {}
        while self.nursery.running and time.monotonic() < deadline:
            ended |= {end.pid: end.status for end in self.nursery.wait(0.1)}
        self.nursery.kill_all()
        return ended


@contextlib.contextmanager
def held_port() -> Iterator[int]:
    """Yields a port for rank 0, which Linux gives to nobody else meanwhile, on whatever address: bound but not listening, it is free to who sets
    SO_REUSEADDR, as rank 0 does.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("", 0))  # of one address alone, others would be given it on another, where rank 0 may have to listen, too
        yield holder.getsockname()[1]
