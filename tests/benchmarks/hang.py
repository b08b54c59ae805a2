"""G10: from the moment a rank hangs until it is found and named, with the real engine, in quick and in slow steps.

A rank is stopped (SIGSTOP), holds the GIL in C, or waits for ever; its peer waits for it in a collective. The limit is
max(5 s, 3 × the 99th percentile of the steps). Peers are not run: their documented time-outs are 30 minutes (gloo) and 45 to 60 (nvrx).
"""

import math
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from schemas.attempt import Cause
from tests.benchmarks.harness import Figure, Outcome, versions_of
from tests.chaos.injector import Faults, Point
from tests.chaos.live_training import LiveTraining, tiny_config

_GLOO_TIMEOUT_S = 1800.0
_LIMITS = {"restart__max_failures": 100, "restart__max_attempts_without_progress": 100}
_QUICK_STEPS = 120
_SLOW_STEPS = 20
_SLOW_STEP_S = 2.2


def run() -> Outcome:
    """Returns the outcome: every hang found in time, and the right rank named."""
    with tempfile.TemporaryDirectory(prefix="headrace-hang-") as folder:
        quick = _hangs(Path(folder) / "quick", at_steps=range(15, 115, 10), num_steps=_QUICK_STEPS)
        slow = _hangs(Path(folder) / "slow", at_steps=range(10, 19, 3), num_steps=_SLOW_STEPS, step_s=_SLOW_STEP_S)
    late = max([taken / limit for taken, limit in (*quick, *slow)])
    figures = (_figure("quick steps", quick), _figure("slow steps", slow))
    met = late <= 1.0
    return Outcome(
        name="hang",
        figures=figures,
        verdict=(
            f"hang: {len(quick) + len(slow)} of {len(quick) + len(slow)} found and named, the latest at {late:.2f} of max(5 s, 3 × p99 step); "
            f"gloo's own time-out is {_GLOO_TIMEOUT_S / figures[0].median_wall_s:.0f} times as long; goal 1.0: {'met' if met else 'missed'}"
        ),
        met=met,
        versions=versions_of("headrace", "torch", "deepspeed"),
    )


def _hangs(folder: Path, *, at_steps: Sequence[int], num_steps: int, step_s: float = 0.0) -> list[tuple[float, float]]:
    """Lets a rank hang at each step, in turn in three ways, and returns how long it took to find, and the limit."""
    faults, ranks = Faults(), []
    for number, step in enumerate(at_steps):
        rank = number % 2
        ranks.append(rank)
        ways = (
            faults.stop(rank=rank, at_step=step, point=Point.FORWARD),
            faults.hold_gil(rank=rank, at_step=step),
            faults.pause(rank=rank, at_step=step),
        )
        faults = ways[number % len(ways)]
    if step_s:
        faults = faults.slow_steps(seconds=step_s)
    training = LiveTraining(folder, tiny_config(training__steps=num_steps, **_LIMITS), paced=False)
    training.run(faults)
    incidents = training.incidents()
    named = [(incident.cause, incident.rank) for incident in incidents]
    assert named == [(Cause.HANG, rank) for rank in ranks], named
    first = training.first_steps()
    calm = [point for point in training.points() if point.step != first[point.epoch] and point.step - 1 not in at_steps]
    steps = sorted(point.values["step_s"] for point in calm)
    limit = max(5.0, 3.0 * steps[math.ceil(0.99 * len(steps)) - 1])
    return [(incident.at - training.struck.times(number)[0], limit) for number, incident in enumerate(incidents)]


def _figure(name: str, found: Sequence[tuple[float, float]]) -> Figure:
    taken = [seconds for seconds, _ in found]
    return Figure(
        name=f"{name}, limit {found[0][1]:.1f}",
        median_wall_s=statistics.median(taken),
        min_wall_s=min(taken),
        max_wall_s=max(taken),
        median_cpu_s=0.0,
    )
