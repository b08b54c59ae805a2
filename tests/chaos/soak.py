"""Random trouble, round after round, until the time is up or something breaks: `make soak [MINUTES=30] [SEED=1]`.

Every round trains with a seeded plan of faults and compares the final state, bit for bit, with a training to which nothing happened. A round
that ends otherwise is named with its seed, which repeats its plan exactly, and its folder is kept.
"""

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from schemas.errors import HeadraceError
from tests.chaos.injector import Faults, Point
from tests.chaos.live_training import LiveTraining, tiny_config

STEPS, EVERY_STEPS, KEPT = 80, 5, 8
MOST_FAULTS = 8
_MANY = 1000
_POINTS = (Point.DATA, Point.FORWARD, Point.BACKWARD, Point.REDUCE, Point.STEP)
_DAMAGES = ("flip", "truncate", "empty", "remove")
_FILES = ("rank-0000.bin", "rank-0001.bin", "rank-0001.json", "state.json", "commit")


def draw_plan(seed: int) -> tuple[dict[str, object], Faults]:
    """Returns the changes to the recipe and the faults of a round."""
    draw = random.Random(seed)
    changes: dict[str, object] = {"training__zero_stage": draw.choice((1, 2, 3)), "training__precision": draw.choice(("bf16", "fp32"))}
    faults = Faults()
    for step in sorted(draw.sample(range(2, STEPS - 2), draw.randint(3, MOST_FAULTS))):
        faults = draw.choice(_MENU)(faults, draw, step)
    return changes, faults


def _kill(faults: Faults, draw: random.Random, step: int) -> Faults:
    return faults.kill(rank=draw.randrange(2), at_step=step, point=draw.choice(_POINTS))


def _kill_inside(faults: Faults, draw: random.Random, step: int) -> Faults:
    rank, after_s = draw.randrange(2), draw.uniform(0.0005, 0.02)
    if draw.random() < 0.4:
        return faults.kill_inside(rank=rank, at_step=_saved_by(step), point=Point.SAVE, after_s=after_s)
    return faults.kill_inside(rank=rank, at_step=step, point=draw.choice(_POINTS), after_s=after_s)


def _kill_twice(faults: Faults, draw: random.Random, step: int) -> Faults:
    return _kill(faults, draw, step).second_kill(rank=draw.randrange(2), after_s=draw.uniform(0.0, 0.3), point=draw.choice((Point.START, Point.LOAD)))


def _crash(faults: Faults, draw: random.Random, step: int) -> Faults:
    rank = draw.randrange(2)
    ways = (
        faults.segv(rank=rank, at_step=step),
        faults.abort(rank=rank, at_step=step),
        faults.raises(rank=rank, at_step=step, message="bad luck"),
        faults.reset_connections(rank=rank, at_step=step),
        faults.stop(rank=rank, at_step=step),
    )
    return draw.choice(ways)


def _damage(faults: Faults, draw: random.Random, step: int) -> Faults:
    of_step = _saved_by(step)
    if of_step <= EVERY_STEPS * KEPT // 2:  # with nothing to fall back to training would, rightly, stop
        return faults
    return faults.corrupt(file=draw.choice(_FILES), damage=draw.choice(_DAMAGES), of_step=of_step, at_step=of_step + 2)


def _break_a_file(faults: Faults, draw: random.Random, step: int) -> Faults:
    call, error = draw.choice((("write", "ENOSPC"), ("fsync", "EIO"), ("open", "EACCES"), ("write", "kill"), ("open", "limit")))
    return faults.files(rank=draw.randrange(2), path=f"checkpoints/step-{_saved_by(step):08d}", call=call, damage=error)


def _saved_by(step: int) -> int:
    """Returns the newest step that is saved by then."""
    return max(EVERY_STEPS, step // EVERY_STEPS * EVERY_STEPS)


_MENU: tuple[Callable[[Faults, random.Random, int], Faults], ...] = (_kill, _kill, _kill_inside, _kill_twice, _crash, _damage, _break_a_file)


def run_round(seed: int, folder: Path, calm: dict[str, str | None]) -> str:
    """Runs one round and returns what is wrong with how it ended; empty when nothing is."""
    changes, faults = draw_plan(seed)
    limits = {"restart__max_failures": _MANY, "restart__max_interruptions": _MANY, "restart__max_attempts_without_progress": _MANY}
    config = tiny_config(training__steps=STEPS, checkpoint__every_steps=EVERY_STEPS, checkpoint__keep_last=KEPT, **changes, **limits)
    kind = str(sorted(changes.items()))
    if kind not in calm:
        calm[kind] = LiveTraining(folder / f"calm-{len(calm)}", config).run().content_hash
    training = LiveTraining(folder / f"round-{seed}", config)
    try:
        draft = training.run(faults)
    except HeadraceError as error:
        return f"it ended with exit code {int(error.exit_code)}: {error}"
    if draft.content_hash != calm[kind]:
        return "the final state is not the calm one's"
    if left := training.processes():
        return f"left behind: {[process.cmdline() for process in left]}"
    struck, incidents = len(training.struck.times()), training.incidents()
    print(f"seed {seed}: {kind}, {struck} of {len(faults.faults)} faults struck, {len(incidents)} incidents, calm", flush=True)
    shutil.rmtree(training.folder)
    return ""


def main() -> int:
    """Runs rounds until the time is up; exits 1 after the first that breaks something."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the first round; they count up")
    arguments = parser.parse_args()
    folder, deadline = Path(tempfile.mkdtemp(prefix="headrace-soak-")), time.monotonic() + arguments.minutes * 60
    calm: dict[str, str | None] = {}
    seed = arguments.seed
    while time.monotonic() < deadline:
        if wrong := run_round(seed, folder, calm):
            print(f"seed {seed}: {wrong}\n{draw_plan(seed)}\nkept: {folder / f'round-{seed}'}", file=sys.stderr)
            return 1
        seed += 1
    shutil.rmtree(folder)
    print(f"{seed - arguments.seed} rounds, all calm")
    return 0


if __name__ == "__main__":
    sys.exit(main())
