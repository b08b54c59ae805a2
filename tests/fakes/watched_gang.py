"""Two ranks under a watchdog, and a clock that a test moves."""

from typing import Any

from cluster.watchdog import Hang, Pace, ProcessFacts, ProcessState, Watchdog
from schemas.progress import RankPhase, RankPulse

TICK_S = 0.2


class Gang:
    """Two ranks under a watchdog, and a clock that a test moves."""

    def __init__(self, *, pace: Pace | None = None, ranks: tuple[int, ...] = (0, 1)) -> None:
        self.pace = pace or Pace()
        self.watchdog = Watchdog(self.pace)
        self.now = 1000.0
        self.pulses = {rank: pulse(rank, beats=1) for rank in ranks}
        self.states = dict.fromkeys(ranks, ProcessState.SLEEPING)
        self.cpu_s = dict.fromkeys(ranks, 0.0)
        self.cpu_share = dict.fromkeys(ranks, 0.0)
        self.elsewhere: tuple[RankPulse, ...] = ()
        self.quiet_elsewhere = False

    def look(self, *, after_s: float = TICK_S) -> Hang | None:
        self.now += after_s
        for rank in self.cpu_s:
            self.cpu_s[rank] += self.cpu_share[rank] * after_s
        facts = {rank: ProcessFacts(state=self.states[rank], cpu_s=self.cpu_s[rank]) for rank in self.pulses}
        return self.watchdog.look(self.pulses.values(), facts, now=self.now, elsewhere=self.elsewhere, quiet_elsewhere=self.quiet_elsewhere)

    def wait(self, seconds: float) -> Hang | None:
        """Looks every tick for so long, or until something is found."""
        for _ in range(round(seconds / TICK_S)):
            if (hang := self.look()) is not None:
                return hang
        return None

    def seconds_until_found(self, *, most_s: float = 2000.0) -> float:
        began = self.now
        assert self.wait(most_s) is not None, "never found"
        return self.now - began

    def beat(self, *ranks: int, **changes: Any) -> None:
        for rank in ranks or tuple(self.pulses):
            past = self.pulses[rank]
            self.pulses[rank] = past.model_copy(update={"beats": past.beats + 1, **changes})

    def steps(self, count: int, *, step_s: float) -> None:
        """Makes steps of equal length, in calm."""
        for _ in range(count):
            self.beat(phase=RankPhase.STEPPING, step=self.pulses[min(self.pulses)].step + 1, position=0, part="", step_s=step_s)
            assert self.wait(step_s) is None


def pulse(rank: int, **fields: Any) -> RankPulse:
    defaults = {"beats": 1, "phase": RankPhase.STEPPING, "step": 7, "position": 2, "part": "backward_s", "data_s": 0.0, "forward_s": 0.0}
    return RankPulse.model_validate({"rank": rank, **defaults, **fields})


def suspects(hang: Hang | None) -> list[int]:
    assert hang is not None
    return [suspect.pulse.rank for suspect in hang.suspects]
