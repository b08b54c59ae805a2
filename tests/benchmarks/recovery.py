"""G9: from the SIGKILL of a rank until the last rank enters its next step, with the real engine, model and optimizer state loaded.

The peers (`recovery_peers.py`) are bare: no engine, no model to speak of, no state. They are killed once a trial.
"""

import random
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks.harness import Figure, Outcome, versions_of
from tests.benchmarks.recovery_peers import REQUIREMENTS, recover_nvrx, recover_torchft, recover_torchrun
from tests.benchmarks.workload import PACKAGES, RANKS, workload
from tests.chaos.injector import Faults
from tests.chaos.live_training import LiveTraining

GOAL_S = 0.5
ROUNDS = 5
KILLS = 20
"""In each round's training."""
STEPS_BETWEEN = 10
EVERY_STEPS = 5
_PEERS = {"torchrun, bare": recover_torchrun, "nvrx ft_launcher, bare": recover_nvrx, "torchft, bare": recover_torchft}


def run() -> Outcome:
    """Returns the outcome. Ours and the peers take turns."""
    ours: list[float] = []
    peers: dict[str, list[float | None]] = {name: [] for name in _PEERS}
    for number in range(ROUNDS):
        with tempfile.TemporaryDirectory(prefix="headrace-recovery-") as folder:
            ours += _kill_often(Path(folder, "ours"), seed=number)
            for name, recover in _PEERS.items():
                peers[name].append(recover(Path(folder, name.partition(",")[0])))
    quick = sum(seconds <= GOAL_S for seconds in ours)
    met = quick == len(ours)
    recovered = {name: [seconds for seconds in taken if seconds is not None] for name, taken in peers.items()}
    others = ", ".join(f"{name} {_median_of(taken)} ({len(taken)} of {ROUNDS} times)" for name, taken in recovered.items())
    return Outcome(
        name="recovery",
        figures=(_figure("headrace, with state", ours), *(_figure(name, taken) for name, taken in recovered.items() if taken)),
        verdict=(
            f"recovery: {quick} of {len(ours)} kills recovered within {GOAL_S:g} s, median {statistics.median(ours):.2f} s, "
            f"at most {max(ours):.2f} s; {others}; goal all: {'met' if met else 'missed'}"
        ),
        met=met,
        versions=versions_of(*PACKAGES) | dict(pin.split("==") for pin in REQUIREMENTS),
    )


def _median_of(taken: Sequence[float]) -> str:
    return f"{statistics.median(taken):.1f} s" if taken else "never"


def _kill_often(folder: Path, *, seed: int) -> list[float]:
    """Trains with a kill every few steps and returns the seconds from each kill until all ranks were in a step again."""
    draw, faults = random.Random(seed), Faults()
    for number in range(KILLS):
        faults = faults.kill(rank=draw.randrange(RANKS), at_step=STEPS_BETWEEN * (number + 1) + draw.randrange(EVERY_STEPS))
    folder.mkdir()
    training = LiveTraining(folder, workload(steps=STEPS_BETWEEN * (KILLS + 2), every_steps=EVERY_STEPS))
    training.run(faults)
    killed_at = training.struck.times()
    assert len(killed_at) == KILLS == len(training.incidents())
    return [max(training.struck.entered(epoch + 1)) - at for epoch, at in enumerate(killed_at)]


def _figure(name: str, taken: Sequence[float]) -> Figure:
    return Figure(name=name, median_wall_s=statistics.median(taken), min_wall_s=min(taken), max_wall_s=max(taken), median_cpu_s=0.0)
