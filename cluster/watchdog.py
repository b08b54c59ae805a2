"""Whether ranks hang, and which of them is to blame. PURE: signs of life and a clock's readings in, findings out; no clock, no process.

A rank hangs when its training thread has given no sign for longer than its limit. Ranks wait for each other, so the silence of one
that waits proves nothing: a gang hangs when those that are furthest behind, for whom the others wait, are all beyond their limits.

| what the furthest behind does | limit, seconds | why |
|---|---|---|
| steps | max(5, 3 × p99 of the steps seen) | a stall of three long steps is no slow step |
| is stopped or traced, in whatever phase | 5 | it does nothing at all |
| steps, and uses a processor, in a part without collectives | max(60, 10 × p99) | it compiles anew for a new shape, or the machine is overloaded |
| steps, and waits for a disk in the kernel | 120 | storage stalls; another start would only wait there again |
| waits, while a node gives no sign | until that one speaks or counts as lost | the first cause is the node that fell silent |
| starts, loads, is in its first step, saves, validates | max(`PHASE_LIMIT_S`, 3 × longest seen) | signs are few: a block read, a batch validated |

Time is that of the watcher while it was awake itself: a suspended machine, a stopped agent or a clock that is set are no rank's silence.
"""

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from schemas.progress import RankPhase, RankPulse

LEAST_LIMIT_S = 5.0
"""No silence in steps is shorter than this and a hang."""
STEPS_OF_SILENCE = 3.0
"""Steps (99th percentile) of silence that are a hang."""
RESERVE_S = 0.5
"""Watching acts so much before the limit: it looks a few times a second, and a hang shall be found within the limit."""
PHASE_LIMIT_S: Mapping[RankPhase, float] = {
    RankPhase.STARTING: 300.0,  # imports from a cold shared file system take minutes; DeepSpeed may build an op (50 s)
    RankPhase.LOADING: 600.0,  # reading gives signs; what DeepSpeed does afterwards gives none
    RankPhase.COMPILING: 600.0,  # the first step: torch.compile of a large model takes minutes
    RankPhase.SAVING: 300.0,  # a stop or the end waits for the last checkpoint on a slow storage
    RankPhase.VALIDATING: 120.0,  # one batch, or one token of the sample
    RankPhase.FINISHED: 60.0,  # nothing is left but the process's end
}
"""Silence that is a hang, by phase, until longer ones were seen to end well."""
BUSY_LIMIT_S = 60.0
BUSY_STEPS = 10.0
STORAGE_LIMIT_S = 120.0

_BUSY_SHARE = 0.5
"""Of one processor, over the last second: who uses that much does not wait for another process."""
_OWN_WORK = frozenset({"", "other_s", "data_s", "forward_s"})
"""What a rank finished last when it is on its own: reading, forward or backward. Elsewhere it may spin in a collective (NCCL)."""
_MOST_TICK_S = 1.0
"""Longest time between two looks that counts."""
_LOOK_S = 0.2
"""Looks are about so far apart: how much longer a step may have been than it was watched."""
_STEPS_KEPT = 1000
_FEW_STEPS = 5
"""As long as fewer were seen, the first step counts as one of them."""
_RECENT_S = 1.0
_START_ORDER = {RankPhase.STARTING: 0, RankPhase.LOADING: 1}
"""Before the first step ranks are behind by phase."""


class ProcessState(Enum):
    """What the kernel says of a process."""

    RUNNING = "running"
    SLEEPING = "sleeping"
    DISK = "waiting for a disk"
    STOPPED = "stopped"
    TRACED = "traced"

    @property
    def frozen(self) -> bool:
        """Whether somebody holds the process."""
        return self in (ProcessState.STOPPED, ProcessState.TRACED)


@dataclass(frozen=True)
class ProcessFacts:
    """What the kernel says of a rank at one moment."""

    state: ProcessState
    """Of its main thread."""
    cpu_s: float
    """Processor time of it and its children so far."""


@dataclass(frozen=True)
class Silence:
    """A rank that gives no sign."""

    pulse: RankPulse
    """Its last sign."""
    silent_s: float
    """Since then, as watched."""
    limit_s: float
    """What was granted."""
    state: ProcessState
    """What the kernel says."""

    @property
    def told(self) -> str:
        """One line for people."""
        pulse = self.pulse
        where = f"step {pulse.step}, {_after(pulse.part)}" if pulse.phase is RankPhase.STEPPING else pulse.phase.value
        return f"rank {pulse.rank}: silent for {self.silent_s:.1f} s in {where}; its process is {self.state.value}"


@dataclass(frozen=True)
class Hang:
    """A gang that hangs."""

    silences: tuple[Silence, ...]
    """Of all watched ranks, by rank."""
    suspects: tuple[Silence, ...]
    """Who may be to blame: frozen ones if there are any, else those furthest behind."""


@dataclass
class Pace:
    """How long things took so far. Lives as long as the agent: what one start of ranks showed holds for the next."""

    steps_s: deque[float] = field(default_factory=lambda: deque(maxlen=_STEPS_KEPT))
    """Durations of steps, newest last; without each start's first."""
    longest_s: dict[RankPhase, float] = field(default_factory=dict)
    """Longest silence in a phase that ended well."""

    @property
    def p99_s(self) -> float:
        """The 99th percentile of steps; 0 while none was seen."""
        seen = sorted(self.steps_s)
        if len(seen) < _FEW_STEPS:
            return max([*seen, self.longest_s.get(RankPhase.COMPILING, 0.0)])
        return seen[math.ceil(0.99 * len(seen)) - 1]

    def limit_s(self, phase: RankPhase) -> float:
        """Returns the silence that is a hang in a phase."""
        if phase is RankPhase.STEPPING:
            return max(LEAST_LIMIT_S, STEPS_OF_SILENCE * self.p99_s)
        return max(PHASE_LIMIT_S[phase], STEPS_OF_SILENCE * self.longest_s.get(phase, 0.0))

    def ended(self, phase: RankPhase, silence_s: float) -> None:
        """Learns that a silence in a phase ended well."""
        self.longest_s[phase] = max(silence_s, self.longest_s.get(phase, 0.0))


@dataclass
class _Watched:
    """What is known of one rank. Times are the watchdog's own."""

    pulse: RankPulse
    silent_since: float
    step_since: float
    stopped_since: float | None = None
    only_stepped: bool = False
    """Whether the present step began under watch and nothing but stepping was seen in it."""
    facts: deque[tuple[float, ProcessFacts]] = field(default_factory=lambda: deque(maxlen=64))


class Watchdog:
    """Watches the ranks of one start on one node."""

    def __init__(self, pace: Pace) -> None:
        """Args: pace: what was seen before, and learns."""
        self._pace = pace
        self._ranks: dict[int, _Watched] = {}
        self._awake_s = 0.0
        self._looked_at: float | None = None
        self._quiet_at = -math.inf

    def look(
        self,
        pulses: Iterable[RankPulse],
        facts: Mapping[int, ProcessFacts],
        *,
        now: float,
        elsewhere: Sequence[RankPulse] = (),
        quiet_elsewhere: bool = False,
    ) -> Hang | None:
        """Takes note of the present moment, and returns the hang when there is one.

        Args:
            pulses: of the ranks that run on this node and could be read.
            facts: of their processes, by rank; who has none has just ended, and is not watched.
            now: monotonic seconds.
            elsewhere: signs of ranks on other nodes. One that is further behind excuses all of this node; one that is as far behind, and is
                granted more, lets this node wait as long: its own watcher knows what it does.
            quiet_elsewhere: whether another node gives no sign at all. Ranks that wait for it do not hang: it speaks again, and they go on within
                a moment, or it counts as lost.
        """
        if self._looked_at is not None:
            self._awake_s += min(max(0.0, now - self._looked_at), _MOST_TICK_S)
        self._looked_at = now
        if quiet_elsewhere:
            self._quiet_at = self._awake_s
        for pulse in pulses:
            if pulse.rank in facts:
                self._note(pulse)
        self._ranks = {rank: watched for rank, watched in self._ranks.items() if rank in facts}
        for rank, watched in self._ranks.items():
            watched.facts.append((self._awake_s, facts[rank]))
            if not facts[rank].state.frozen:
                watched.stopped_since = None
            elif watched.stopped_since is None:
                watched.stopped_since = self._awake_s
        return self._judge(elsewhere)

    @property
    def suspicious(self) -> bool:
        """Whether a rank is silent in a step for so long that `look` should be told more: processor time of its children, ranks elsewhere."""
        stepping = (watched for watched in self._ranks.values() if watched.pulse.phase is RankPhase.STEPPING)
        return any(self._awake_s - watched.silent_since > LEAST_LIMIT_S / 2 for watched in stepping)

    def granted(self) -> tuple[RankPulse, ...]:
        """Returns the last sign of each rank with the silence that it is granted: what watchers of other nodes need to know."""
        silences = (self._silence(self._ranks[rank]) for rank in sorted(self._ranks))
        return tuple(silence.pulse.model_copy(update={"limit_s": silence.limit_s}) for silence in silences)

    def _note(self, pulse: RankPulse) -> None:
        watched = self._ranks.get(pulse.rank)
        if watched is None:
            self._ranks[pulse.rank] = _Watched(pulse=pulse, silent_since=self._awake_s, step_since=self._awake_s)
            return
        past = watched.pulse
        if pulse.beats == past.beats:
            return
        self._pace.ended(past.phase, self._awake_s - watched.silent_since)
        if pulse.step > past.step:
            if watched.only_stepped and pulse.rank == min(self._ranks):  # ranks step together: one of them is enough
                watched_s = (self._awake_s - watched.step_since) / (pulse.step - past.step)
                self._pace.steps_s.append(min(pulse.step_s or watched_s, watched_s + _LOOK_S))  # the rank's own clock is finer, and may jump
            watched.step_since, watched.only_stepped = self._awake_s, True
        watched.only_stepped = watched.only_stepped and pulse.phase is RankPhase.STEPPING
        watched.pulse, watched.silent_since = pulse, self._awake_s

    def _judge(self, elsewhere: Sequence[RankPulse]) -> Hang | None:
        silences = {rank: self._silence(watched) for rank, watched in self._ranks.items()}
        places = {rank: place_of(watched.pulse) for rank, watched in self._ranks.items()}
        least = min([*places.values(), *map(place_of, elsewhere)], default=None)
        behind = [rank for rank, place in places.items() if place == least]
        excused_s = max((pulse.limit_s for pulse in elsewhere if place_of(pulse) == least), default=0.0)
        beyond = bool(behind) and all(silences[rank].silent_s > max(excused_s, silences[rank].limit_s) - RESERVE_S for rank in behind)
        if self._awake_s - self._quiet_at < LEAST_LIMIT_S:  # unless it had got further than this node
            beyond = beyond and least is not None and bool(elsewhere) and all(place_of(pulse) > least for pulse in elsewhere)
        if not beyond and not any(self._frozen_s(watched) > LEAST_LIMIT_S - RESERVE_S for watched in self._ranks.values()):
            return None
        frozen = [rank for rank, silence in silences.items() if silence.state.frozen]
        return Hang(
            silences=tuple(silences[rank] for rank in sorted(silences)),
            suspects=tuple(silences[rank] for rank in sorted(frozen or behind)),
        )

    def _frozen_s(self, watched: _Watched) -> float:
        return 0.0 if watched.stopped_since is None else self._awake_s - watched.stopped_since

    def _silence(self, watched: _Watched) -> Silence:
        pulse, recent = watched.pulse, self._recent(watched)
        limit_s = self._pace.limit_s(pulse.phase)
        if pulse.phase is RankPhase.STEPPING:
            if pulse.part in _OWN_WORK and _is_busy(recent):
                limit_s = max(limit_s, BUSY_LIMIT_S, BUSY_STEPS * self._pace.p99_s)
            if all(facts.state is ProcessState.DISK for _, facts in recent):
                limit_s = max(limit_s, STORAGE_LIMIT_S)
        silent_s = max(self._awake_s - watched.silent_since, self._frozen_s(watched))
        return Silence(pulse=pulse, silent_s=silent_s, limit_s=limit_s, state=recent[-1][1].state)

    def _recent(self, watched: _Watched) -> list[tuple[float, ProcessFacts]]:
        return [entry for entry in watched.facts if entry[0] >= self._awake_s - _RECENT_S]


def place_of(pulse: RankPulse) -> tuple[int, int, int]:
    """Returns how far a rank is; ranks of one gang go through the same places in the same order."""
    return (_START_ORDER.get(pulse.phase, 2), pulse.step, pulse.position)


def to_blame(hang: Hang, *, in_collective: Mapping[int, bool]) -> int:
    """Returns the rank to blame; -1 when the ranks wait for each other and none can be told from the others.

    Args:
        hang: what was found.
        in_collective: by rank, whether its stack ends in a collective operation: then it waits for another. Ranks without a stack are absent.
    """
    suspects = [suspect.pulse.rank for suspect in hang.suspects]
    if len(suspects) > 1:
        suspects = [rank for rank in suspects if not in_collective.get(rank, False)] or suspects
    return suspects[0] if len(suspects) == 1 else -1


def _is_busy(recent: Sequence[tuple[float, ProcessFacts]]) -> bool:
    """Whether a rank computes, or would if the machine let it."""
    running = sum(facts.state is ProcessState.RUNNING for _, facts in recent)
    passed_s, used_s = recent[-1][0] - recent[0][0], recent[-1][1].cpu_s - recent[0][1].cpu_s
    return running > len(recent) / 2 or (passed_s > 0 and used_s / passed_s >= _BUSY_SHARE)


def _after(part: str) -> str:
    return f"after {part.removesuffix('_s')}" if part else "at its beginning"
