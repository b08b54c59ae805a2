"""The agent's eye on a gang's ranks: feeds the watchdog, asks hanging ranks what they do, and tells of stragglers. Decides nothing itself."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from cluster.agent.node import Node
from cluster.agent.peers import Peers
from cluster.agent.pulse import PulseBoard
from cluster.agent.scratch import EpochScratch
from cluster.agent.stacks import RankProcess, collect_stacks, in_collective, main_stack, process_facts
from cluster.restart import Finding
from cluster.straggler import WINDOW_STEPS, StragglerChange, StragglerWatch
from cluster.watchdog import Hang, Pace, Silence, Watchdog, to_blame
from schemas.attempt import Cause
from schemas.progress import Notice, NoticeKind, RankPulse

logger = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.1
_ASK_PEERS_S = 5.0
_ASK_PEERS_SOON_S = 1.0
_OTHERS_TOLD = 8
_FRAMES_TOLD = 12
"""How much an incident tells; the rest is among the stacks."""


@dataclass(frozen=True)
class HangReport:
    """A hang as it is accounted for."""

    finding: Finding
    """Cause, evidence, message."""
    rank: int
    """The rank to blame; -1: none can be told from the others."""
    detected_after_s: float
    """Seconds without a sign of life before it was noticed."""


@dataclass
class Watch:
    """Watches the ranks of one epoch on this node."""

    node: Node
    peers: Peers
    epoch: int
    board: PulseBoard
    pace: Pace
    _watchdog: Watchdog = field(init=False)
    _stragglers: StragglerWatch = field(default_factory=StragglerWatch)
    _elsewhere: tuple[RankPulse, ...] = ()
    _looked_at: float = 0.0
    _asked_at: float = 0.0

    def __post_init__(self) -> None:
        """Begins with what was learned before."""
        self._watchdog = Watchdog(self.pace)

    def look(self, pids: Mapping[int, int]) -> Hang | None:
        """Looks at the ranks; returns the hang when there is one. Cheap to ask often.

        Args:
            pids: rank → process, of the ranks that have not ended.
        """
        now = time.monotonic()
        if now - self._looked_at < _LOOK_EVERY_S:
            return None
        self._looked_at = now
        pulses = tuple(pulse for pulse in self.board.read() if pulse.rank in pids)
        suspicious = self._watchdog.suspicious
        seen = {rank: process_facts(pid, with_children=suspicious) for rank, pid in pids.items()}
        facts = {rank: fact for rank, fact in seen.items() if fact is not None}
        self._ask_peers(now, soon=suspicious)
        for change in self._stragglers.look(pulses, now=now, elsewhere=self._elsewhere):
            self._tell(change)
        hang = self._watchdog.look(pulses, facts, now=now, elsewhere=self._elsewhere, quiet_elsewhere=self.peers.quiet)
        self.node.publisher.pulses = self._watchdog.granted()
        return hang

    def explain(self, hang: Hang, pids: Mapping[int, int], scratch: EpochScratch) -> HangReport:
        """Returns who is to blame and what all were doing, and publishes their stacks. The ranks are to be killed next: stopped ones now go on."""
        watched = {silence.pulse.rank: silence for silence in hang.silences}
        stacks = collect_stacks(RankProcess(rank, pids[rank], scratch.stacks(rank)) for rank in watched)
        frames = {rank: main_stack(text) for rank, text in stacks.items()}
        waiting = {rank: in_collective(stack) for rank, stack in frames.items() if stack}
        blamed = to_blame(hang, in_collective=waiting)
        for rank, text in stacks.items():
            self.node.publisher.publish(self.node.attempt.stack(epoch=self.epoch, rank=rank), f"{watched[rank].told}\n{text}\n".encode())
        culprit = watched[blamed] if blamed in watched else max(hang.suspects, key=lambda silence: silence.silent_s)
        message = _message(culprit, blamed=blamed, frames=frames.get(blamed, ()))
        others = [silence.told for silence in hang.silences if silence is not culprit]
        evidence = (message, *others[:_OTHERS_TOLD], f"stacks of all ranks: {self.node.attempt.stacks}/", *frames.get(blamed, ())[:_FRAMES_TOLD])
        echo = not self.peers.alone and (blamed < 0 or waiting.get(blamed, False)) and not culprit.state.frozen  # another node's rank may be to blame
        return HangReport(finding=Finding(Cause.HANG, evidence, message, echo=echo), rank=blamed, detected_after_s=culprit.silent_s)

    def _ask_peers(self, now: float, *, soon: bool) -> None:
        if not self.peers.alone and now - self._asked_at > (_ASK_PEERS_SOON_S if soon else _ASK_PEERS_S):
            self._asked_at = now
            self._elsewhere = self.peers.pulses(self.epoch)

    def _tell(self, change: StragglerChange) -> None:
        who = f"rank {change.rank}"
        compared = f"{change.busy_s:.3g} s a step in data and forward, the others {change.others_s:.3g} s (median, last {WINDOW_STEPS} steps)"
        if change.slow:
            message = f"{who} is slow, mostly in {change.part}: {compared}; every step waits for it"
        else:
            message = f"{who} keeps up again: {compared}"
        logger.warning("epoch %d, step %d: %s", self.epoch, change.step, message)
        self.node.publisher.notify(
            Notice(
                at=time.time(),
                kind=NoticeKind.STRAGGLER if change.slow else NoticeKind.STRAGGLER_RECOVERED,
                epoch=self.epoch,
                rank=change.rank,
                step=change.step,
                message=message,
                figures={"factor": change.factor, "busy_s": change.busy_s, "others_s": change.others_s, "step_s": change.step_s},
            )
        )


def _message(culprit: Silence, *, blamed: int, frames: tuple[str, ...]) -> str:
    """One line for people: who hangs, since when, where."""
    who = culprit.told if blamed >= 0 else f"all ranks wait for each other, one of them: {culprit.told}"
    return f"{who}, in {frames[0]}" if frames else who
