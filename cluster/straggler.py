"""Which ranks make the others wait, step by step. PURE: signs of life in, changes out.

Compared is what a rank does before it waits for the others: reading its batch and the forward pass, averaged over the last steps.
Under ZeRO 3 ranks wait for each other within the forward pass too, and only differences in reading show.
"""

import statistics
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from schemas.progress import RankPhase, RankPulse

WINDOW_STEPS = 20
"""Steps that are averaged."""
SLOW_FACTOR = 1.5
"""A straggler takes at least so many times what the others take (their median), …"""
SLOW_SHARE = 0.1
"""… and makes every step this share longer: nobody minds a factor of nothing."""
_RECOVERED_FACTOR = 1.25
_RECOVERED_SHARE = 0.05


@dataclass(frozen=True)
class StragglerChange:
    """A rank became a straggler, or is none any more."""

    rank: int
    """The rank."""
    slow: bool
    """Whether it is a straggler from now on."""
    part: str
    """What takes it longest compared with the others: `data` or `forward`."""
    step: int
    """The step it is in."""
    busy_s: float
    """Seconds a step that it takes."""
    others_s: float
    """Seconds a step that the others take: their median."""
    step_s: float
    """Seconds of a whole step."""

    @property
    def factor(self) -> float:
        """How many times as long it takes."""
        return self.busy_s / max(self.others_s, 1e-9)


@dataclass(frozen=True)
class _Sample:
    """A rank at one moment."""

    at: float
    step: int
    data_s: float
    forward_s: float


@dataclass(frozen=True)
class _Average:
    """A rank per step, over the window."""

    data_s: float
    forward_s: float
    step_s: float

    @property
    def busy_s(self) -> float:
        return self.data_s + self.forward_s


@dataclass
class StragglerWatch:
    """Watches one start of ranks."""

    _samples: dict[int, deque[_Sample]] = field(default_factory=dict)
    _slow: set[int] = field(default_factory=set)

    def look(self, pulses: Iterable[RankPulse], *, now: float, elsewhere: Iterable[RankPulse] = ()) -> tuple[StragglerChange, ...]:
        """Takes note of the present moment, and returns what changed.

        Args:
            pulses: of this node's ranks: those that changes are about.
            now: monotonic seconds.
            elsewhere: of other nodes' ranks, to compare with.
        """
        own = tuple(pulses)
        for pulse in (*own, *elsewhere):
            self._note(pulse, now)
        averages = {rank: average for rank, samples in self._samples.items() if (average := _average(samples)) is not None}
        changes = (self._change(pulse, averages) for pulse in own if pulse.rank in averages and len(averages) > 1)
        return tuple(change for change in changes if change is not None)

    def _note(self, pulse: RankPulse, now: float) -> None:
        samples = self._samples.setdefault(pulse.rank, deque())
        if pulse.phase is not RankPhase.STEPPING or (samples and pulse.step <= samples[-1].step):
            return
        samples.append(_Sample(at=now, step=pulse.step, data_s=pulse.data_s, forward_s=pulse.forward_s))
        while len(samples) > 2 and samples[-1].step - samples[1].step >= WINDOW_STEPS:
            samples.popleft()

    def _change(self, pulse: RankPulse, averages: Mapping[int, _Average]) -> StragglerChange | None:
        own, others = averages[pulse.rank], [average for rank, average in averages.items() if rank != pulse.rank]
        others_s = statistics.median(average.busy_s for average in others)
        longer = {
            "data": own.data_s - statistics.median(average.data_s for average in others),
            "forward": own.forward_s - statistics.median(average.forward_s for average in others),
        }
        was = pulse.rank in self._slow
        factor, share = (_RECOVERED_FACTOR, _RECOVERED_SHARE) if was else (SLOW_FACTOR, SLOW_SHARE)
        slow = own.busy_s >= factor * others_s and own.busy_s - others_s >= share * own.step_s
        if slow == was:
            return None
        self._slow ^= {pulse.rank}
        part = max(longer, key=lambda name: longer[name])
        return StragglerChange(rank=pulse.rank, slow=slow, part=part, step=pulse.step, busy_s=own.busy_s, others_s=others_s, step_s=own.step_s)


def _average(samples: deque[_Sample]) -> _Average | None:
    """Returns a rank's average over its window; None while that is not full."""
    first, last = samples[0] if samples else None, samples[-1] if samples else None
    if first is None or last is None or last.step - first.step < WINDOW_STEPS:
        return None
    steps = last.step - first.step
    return _Average((last.data_s - first.data_s) / steps, (last.forward_s - first.forward_s) / steps, (last.at - first.at) / steps)
