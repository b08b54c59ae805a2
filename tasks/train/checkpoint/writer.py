"""Writing checkpoints while training goes on: a copy in memory, a process that makes it durable, and a commit once every rank's share is.

A checkpoint goes through the same phases on every rank at the same update, because each step forward follows from an `Agreement`:

    none ─ begin ─> writing ─ all shares durable ─> committing ─ rank 0 has committed ─> none
                       └──────── any share failed ──────┴── the commit failed ──> none, and what there is of it is removed

Data files hold no time, epoch or host: a run that was killed and went on writes the same bytes as an undisturbed one.
A checkpoint that cannot be written (full disk, failed fsync) is given up on all ranks alike; nothing of it is committed.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

from cluster.layout import step_name
from schemas.artifact import FileEntry
from schemas.checkpoint import RankIndex, TrainingState
from schemas.execution_config import CheckpointConfig
from schemas.progress import NoticeKind
from tasks.train.agreement import Agreement, RankWord, SaveState, agree
from tasks.train.checkpoint.channel import Commit, Committed, Describe, Discard, Failed, Forget, Local, Reply, Write, Written
from tasks.train.checkpoint.commit import CheckpointStore, data_name, index_name
from tasks.train.checkpoint.committer import Lead
from tasks.train.checkpoint.process import WriterProcess
from tasks.train.checkpoint.snapshot import Snapshot
from tasks.train.gang import Gang
from tasks.train.order import stream_seed

logger = logging.getLogger(__name__)

_MASK_64 = (1 << 64) - 1
_PATIENCE_S = 600.0
"""Longest wait for a checkpoint that must succeed, from its begin: more than any storage needs that still works."""
_END_S = 60.0
"""Longest wait for a writer that has committed to remove what is old."""
_POLL_S = 0.005


@dataclass(frozen=True)
class RankWrite:
    """What one rank wrote: enough to name its files in the commit. Travels between ranks as six 64-bit numbers."""

    data: FileEntry
    index: FileEntry

    def to_numbers(self) -> list[int]:
        """Returns sizes and hashes as signed 64-bit numbers."""
        return [number for entry in (self.data, self.index) for number in (entry.size, *_halves(entry.xxh3))]

    @classmethod
    def from_numbers(cls, numbers: Sequence[int], *, rank: int) -> "RankWrite":
        """Returns what `to_numbers` of that rank stood for."""
        first, second = numbers[:3], numbers[3:]
        data = FileEntry(path=data_name(rank), size=first[0], xxh3=_joined(first[1:]))
        return cls(data, FileEntry(path=index_name(rank), size=second[0], xxh3=_joined(second[1:])))


class Tell(Protocol):
    """How notices reach people: `RankTask.notice`."""

    def __call__(self, kind: NoticeKind, message: str, *, step: int, rank: int | None = None) -> None:
        """Says one line; `rank`: whom it is about, this rank when absent, −1: all."""


class Tier(Enum):
    """Where a checkpoint goes."""

    SHARED = "shared"
    """To shared storage: any node can go on from it, and any number of ranks."""
    LOCAL = "local"
    """To this node's own disk: the same ranks can go on from it, when they start again on the same nodes."""


class _Phase(Enum):
    WRITING = "writing"
    COMMITTING = "committing"


@dataclass
class _Pending:
    """The checkpoint that is under way."""

    state: TrainingState
    folder: str
    """Relative to the artifact."""
    begun_at: float
    """By the monotonic clock."""
    tier: Tier = Tier.SHARED
    phase: _Phase = _Phase.WRITING
    own: SaveState = SaveState.WRITING
    """How far this rank is with its part of the phase."""
    written: RankWrite | None = None
    in_the_way: bool = False
    """Whether another came due meanwhile."""


@dataclass(frozen=True)
class CheckpointFacts:
    """What does not change from one checkpoint of a start to the next."""

    base_state: TrainingState
    """Template of `state.json`."""
    model_config: Mapping[str, Any]
    """What an exported model's `config.json` holds."""
    rules: CheckpointConfig
    """What is kept."""
    shared_steps: int
    """States up to this step do not depend on where training stops."""
    verified_step: int | None
    """The step of shared storage that was verified at this start; None: there is none."""
    local_dir: Path | None = None
    """The artifact's folder on this node's own disk; None: there is no such tier."""
    local_step: int = -1
    """The step of the nodes' own disks that this start went on from; -1: none."""


class CheckpointWriter:
    """The checkpoints of one start, as one rank sees them.

    No method waits for storage, but `settle` and `close`; `before_update` waits for memory.
    """

    def __init__(self, store: CheckpointStore, *, gang: Gang, epoch: int, snapshot: Snapshot, facts: CheckpointFacts, tell: Tell) -> None:
        """Args: snapshot: of this rank's fragments. tell: says to people what they want to know, once per event."""
        self._store, self._gang, self._epoch = store, gang, epoch
        self._snapshot, self._facts, self._tell = snapshot, facts, tell
        self._process: WriterProcess | None = None
        self._pending: _Pending | None = None
        self.committed_step = -1 if facts.verified_step is None else facts.verified_step
        """Newest committed step; -1: none. Follows late, on every rank at the same update."""
        self._known_step = self.committed_step
        self._local_step = facts.local_step
        self.num_failures = 0
        """Checkpoints that could not be written."""
        self.num_skipped = 0
        """Checkpoints that came due while another was under way."""
        self.write_s = 0.0
        """What the newest committed one took this rank, from its begin until everybody knew of the commit."""

    @property
    def base_state(self) -> TrainingState:
        """Template of the states that `begin` takes."""
        return self._facts.base_state

    @property
    def newest_step(self) -> int:
        """Newest step that a start on these nodes could go on from, on either tier; -1: none."""
        return max(self.committed_step, self._local_step)

    @property
    def pending(self) -> tuple[int, Tier] | None:
        """The step whose checkpoint is under way, and where to; None: none is."""
        return (self._pending.state.step, self._pending.tier) if self._pending is not None else None

    @property
    def copy_s(self) -> float:
        """What the newest copy in memory took, beside training; 0: none was made yet."""
        return self._snapshot.copy_s

    def figures(self) -> dict[str, float]:
        """Returns what there is to tell: failures and skips so far, where there were any, and how long the newest committed checkpoint took."""
        told = {"checkpoint_failures": self.num_failures, "checkpoint_skipped": self.num_skipped, "checkpoint_write_s": self.write_s}
        return {name: float(value) for name, value in told.items() if value}

    def prepare(self) -> bool:
        """Starts what the first checkpoint needs, in the background. Cheap to call again; returns whether there was anything to do."""
        if self._process is not None:
            return False
        self._snapshot.prepare()
        self._process = WriterProcess(buffer=self._snapshot.buffer, describe=self._describe)
        return True

    def word(self) -> tuple[SaveState, int]:
        """Returns what this rank has to say of its checkpoint at this update: how far it is, and the newest committed step it knows."""
        self._listen()
        return (self._pending.own if self._pending is not None else SaveState.NONE), self._known_step

    def advance(self, agreed: Agreement) -> None:
        """Takes the pending checkpoint further after the ranks agreed on how far they are. Collective when all shares are durable."""
        self.committed_step = max(self.committed_step, agreed.committed_step)
        pending = self._pending
        if pending is None:
            return
        if pending.tier is Tier.SHARED and agreed.committed_step >= pending.state.step:
            self._pending, self.write_s = None, time.monotonic() - pending.begun_at
        elif agreed.all_settled and agreed.any_failed:
            self._give_up(pending)
        elif agreed.all_durable and pending.tier is Tier.LOCAL:
            self._pending, self._local_step = None, pending.state.step
        elif agreed.all_durable and pending.phase is _Phase.WRITING:
            self._commit(pending)

    def is_free(self, step: int) -> bool:
        """Whether a checkpoint of `step` can begin; else the one before is not done, and this one is skipped. The same answer on every rank."""
        pending = self._pending
        if pending is None:
            return True
        self.num_skipped += 1
        if self._gang.rank == 0 and not pending.in_the_way:
            message = f"no checkpoint of step {step}: that of step {pending.state.step} is still being written"
            logger.warning(message)
            self._tell(NoticeKind.CHECKPOINT_SKIPPED, message, step=step, rank=-1)
        pending.in_the_way = True
        return False

    def begin(self, state: TrainingState, *, tier: Tier = Tier.SHARED) -> None:
        """Has the present training state copied and written. Nothing may be under way (see `is_free`), and `before_update` comes before a change."""
        assert self._pending is None
        self.prepare()
        process = self._process
        assert process is not None
        folder = f"checkpoints/{step_name(state.step)}.e{self._epoch:06d}"
        rng = {"next_step_seed": stream_seed(state.seed, step=state.step, rank=self._gang.rank)}  # generators are seeded anew at each step
        self._pending = _Pending(state, folder=folder, begun_at=time.monotonic(), tier=tier)
        local = Local(state.model_dump(mode="json"), keep_from=self._local_step) if tier is Tier.LOCAL else None
        request = Write(state.step, folder=folder, rng=rng, local=local)
        self._snapshot.begin(then=lambda: process.send(request))

    def before_update(self) -> bool:
        """Waits until the copy is whole, if one is being made: the state may change now. Returns whether there was one."""
        return self._snapshot.finish()

    def settle(self, *, on_wait: Callable[[], None]) -> None:
        """Waits until no checkpoint is under way any more, bounded. Collective: all ranks call it after the same update.

        Args:
            on_wait: called again and again meanwhile.
        """
        self.before_update()
        while self._pending is not None:
            if time.monotonic() - self._pending.begun_at > _PATIENCE_S:
                self._lose_patience(self._pending)
            save, committed_step = self.word()
            self.advance(agree(self._gang, RankWord(loss=0.0, stop=False, save=save, committed_step=committed_step)))
            if self._pending is not None:
                on_wait()
                time.sleep(_POLL_S)

    def close(self, *, forget_local: bool = False) -> None:
        """Lets the writer process finish and end, bounded. `forget_local`: training is over, the node-local tier goes."""
        if forget_local and self._facts.local_dir is not None:
            self.prepare()
            assert self._process is not None
            self._process.send(Forget(self.committed_step))
        if self._process is not None:
            self._process.close(timeout_s=_END_S)
            self._process = None

    def _listen(self) -> None:
        """Hears what the writer process has to say."""
        if self._process is None:
            return
        for reply in self._process.poll():
            self._hear(reply)
        if not self._process.alive:
            reason = self._process.describe_end()
            self._process.kill()
            self._process = None  # the next checkpoint starts another
            if self._pending is not None and self._pending.own is SaveState.WRITING:
                self._hear(Failed(self._pending.state.step, reason=reason))

    def _hear(self, reply: Reply) -> None:
        pending = self._pending
        if isinstance(reply, Committed):
            self._known_step = max(self._known_step, reply.step)
        if pending is None or reply.step != pending.state.step:
            return
        match reply:
            case Written():
                data, index = (FileEntry.model_validate(entry) for entry in reply.files)
                pending.written, pending.own = RankWrite(data, index), SaveState.DURABLE
            case Failed():
                message = f"checkpoint of step {reply.step} not written: {reply.reason}"
                logger.error(message)
                self._tell(NoticeKind.CHECKPOINT_FAILED, message, step=reply.step)
                pending.own = SaveState.FAILED

    def _commit(self, pending: _Pending) -> None:
        """Gathers what all ranks wrote and has rank 0's process commit it. Collective."""
        assert pending.written is not None
        rows = self._gang.gather(pending.written.to_numbers())
        pending.phase = _Phase.COMMITTING
        if self._gang.rank == 0:
            writes = [RankWrite.from_numbers(row, rank=rank) for rank, row in enumerate(rows)]
            files = [entry.model_dump(mode="json") for write in writes for entry in (write.data, write.index)]
            state = pending.state.model_dump(mode="json", exclude={"parameters"})
            pending.own = SaveState.WRITING  # until the commit is there
            if self._process is None:
                pending.own = SaveState.FAILED
            else:
                self._process.send(Commit(pending.state.step, folder=pending.folder, state=state, files=files))

    def _give_up(self, pending: _Pending) -> None:
        """Forgets a checkpoint that could not be written; rank 0's process removes what there is of it."""
        self._pending = None
        self.num_failures += 1
        if self._gang.rank == 0 and pending.tier is Tier.SHARED:
            logger.error("the checkpoint of step %d is given up; the newest committed step is %d", pending.state.step, self.committed_step)
            self.prepare()
            assert self._process is not None
            self._process.send(Discard(pending.state.step, folder=pending.folder))

    def _lose_patience(self, pending: _Pending) -> None:
        """Gives up this rank's part of a checkpoint that takes too long; what still writes ends, so that it cannot write later."""
        if pending.own is not SaveState.WRITING or self._process is None:
            return
        self._process.kill()
        self._process = None
        self._hear(Failed(pending.state.step, reason=f"not done after {_PATIENCE_S:g} s"))

    def _describe(self) -> Describe:
        rank, world_size = self._gang.rank, self._gang.world_size
        index = RankIndex(rank=rank, world_size=world_size, fragments=self._snapshot.fragments, rng={})
        lead = None
        if rank == 0:
            facts = self._facts
            lead = Lead(
                world_size=world_size,
                model_config_json=facts.model_config,
                base_state=facts.base_state,
                rules=facts.rules,
                verified_step=facts.verified_step,
                shared_steps=facts.shared_steps,
            ).model_dump(mode="json")
        folder = str(self._store.artifact_dir)
        local_dir = str(self._facts.local_dir) if self._facts.local_dir is not None else None
        described = index.model_dump(mode="json")
        return Describe(artifact_dir=folder, epoch=self._epoch, rank=rank, index=described, lead=lead, local_dir=local_dir)


def _halves(digest: str) -> tuple[int, int]:
    """Returns a 128-bit hex digest as two signed 64-bit numbers."""
    whole = int(digest, 16)
    high, low = whole >> 64, whole & _MASK_64
    return (high - (1 << 64) if high >> 63 else high, low - (1 << 64) if low >> 63 else low)


def _joined(halves: Sequence[int]) -> str:
    return f"{(halves[0] & _MASK_64) << 64 | halves[1] & _MASK_64:032x}"
