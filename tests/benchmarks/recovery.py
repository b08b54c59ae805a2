"""G9: from the SIGKILL of a rank until the last rank enters its next step, with the real engine, model and optimizer state loaded.

The peer is torchrun at its defaults with a bare all-reduce: no engine, no model, no state. It is killed once a trial; a trial in which no step
is made within a minute after the kill has failed.
"""

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import psutil

from tests.benchmarks.harness import ROOT, Figure, Outcome, versions_of
from tests.benchmarks.workload import PACKAGES, RANKS, workload
from tests.chaos.injector import Faults
from tests.chaos.live_training import LiveTraining

GOAL_S = 0.5
ROUNDS = 5
KILLS = 20
"""In each round's training."""
STEPS_BETWEEN = 10
EVERY_STEPS = 5
TRIAL_S = 60.0
_TORCHRUN = Path(__file__).with_name("recovery_torchrun.py")


def run() -> Outcome:
    """Returns the outcome. Ours and the peer take turns."""
    ours: list[float] = []
    peer: list[float | None] = []
    for number in range(ROUNDS):
        with tempfile.TemporaryDirectory(prefix="headrace-recovery-") as folder:
            ours += _kill_often(Path(folder), seed=number)
            peer.append(_kill_torchrun(Path(folder)))
    recovered = [seconds for seconds in peer if seconds is not None]
    quick = sum(seconds <= GOAL_S for seconds in ours)
    figures = (_figure("headrace, with state", ours), *([_figure("torchrun, bare", recovered)] if recovered else []))
    best = f", in {statistics.median(recovered):.1f} s" if recovered else ""
    met = quick == len(ours)
    return Outcome(
        name="recovery",
        figures=figures,
        verdict=(
            f"recovery: {quick} of {len(ours)} kills recovered within {GOAL_S:g} s, median {figures[0].median_wall_s:.2f} s, "
            f"at most {max(ours):.2f} s; torchrun, bare, did {len(recovered)} of {len(peer)} times{best}; goal all: {'met' if met else 'missed'}"
        ),
        met=met,
        versions=versions_of(*PACKAGES),
    )


def _kill_often(folder: Path, *, seed: int) -> list[float]:
    """Trains with a kill every few steps and returns the seconds from each kill until all ranks were in a step again."""
    draw, faults = random.Random(seed), Faults()
    for number in range(KILLS):
        faults = faults.kill(rank=draw.randrange(RANKS), at_step=STEPS_BETWEEN * (number + 1) + draw.randrange(EVERY_STEPS))
    training = LiveTraining(folder, workload(steps=STEPS_BETWEEN * (KILLS + 2), every_steps=EVERY_STEPS))
    training.run(faults)
    killed_at = training.struck.times()
    assert len(killed_at) == KILLS == len(training.incidents())
    return [max(training.struck.entered(epoch + 1)) - at for epoch, at in enumerate(killed_at)]


def _kill_torchrun(folder: Path) -> float | None:
    """Kills one rank of a bare torchrun and returns the seconds until all its ranks were in a step again; None: they never were."""
    command = (sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}", "--max-restarts=1")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        (*command, str(_TORCHRUN), str(folder)), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        try:
            process.wait(timeout=TRIAL_S)
        except subprocess.TimeoutExpired:
            for one in (*psutil.Process(process.pid).children(recursive=True), process):  # its ranks are in sessions of their own
                one.kill()
    entered = [folder / f"entered-{rank}.json" for rank in range(RANKS)]
    if not all(path.exists() for path in entered):
        return None
    return max(float(json.loads(path.read_text())) for path in entered) - float(json.loads((folder / "killed.json").read_text()))


def _figure(name: str, taken: Sequence[float]) -> Figure:
    return Figure(name=name, median_wall_s=statistics.median(taken), min_wall_s=min(taken), max_wall_s=max(taken), median_cpu_s=0.0)
