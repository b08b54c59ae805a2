"""What an elastic proof does, from the recipe alone: which numbers of ranks are possible, when each begins, when checkpoints are made. PURE."""

import random
from collections.abc import Sequence
from itertools import pairwise
from math import gcd, lcm
from typing import Literal

from schemas.cluster_config import StageResources
from schemas.config import RunConfig
from schemas.errors import ConfigError, Problem
from schemas.progress import RankProgress
from schemas.stage import Stage

_FEWEST_STEPS = 8
"""Of a segment: below, there is no room for a checkpoint and a step beyond it."""
_FEWEST_BETWEEN_SAVES = 4
_SAVES_PER_SEGMENT = 5
_MOST_SHOWN = 12
"""Feasible sizes that are listed."""


def at_world(config: RunConfig, world_size: int) -> RunConfig:
    """Returns the configuration with another number of ranks, on one node."""
    own = config.cluster.stages.get(Stage.TRAIN, StageResources())
    stages = {**config.cluster.stages, Stage.TRAIN: own.model_copy(update={"nodes": 1, "ranks_per_node": world_size})}
    return config.model_copy(update={"cluster": config.cluster.model_copy(update={"stages": stages})})


def micro_batch_for(config: RunConfig, world_sizes: Sequence[int]) -> int:
    """Returns the largest divisor of the recipe's micro-batch at which every one of `world_sizes` gives all ranks equal work.

    Raises:
        ConfigError: there is none, or the list is no list of changes; with the sizes that are feasible and the nearest recipe that fits.
    """
    given = ",".join(map(str, world_sizes))
    if len(world_sizes) < 2 or min(world_sizes) < 1 or any(one == other for one, other in pairwise(world_sizes)):
        raise ConfigError((Problem("--world", given, "wants at least two sizes, each another than the one before", nearest="2,1,2"),))
    batch, common = config.training.global_batch_size, lcm(*world_sizes)
    if batch % common == 0:
        return gcd(config.training.micro_batch_size, batch // common)
    feasible = [str(size) for size in range(1, batch + 1) if batch % size == 0]
    shown = ", ".join(feasible[:_MOST_SHOWN]) + (", …" if len(feasible) > _MOST_SHOWN else "")
    misfits = [size for size in sorted(set(world_sizes)) if batch % size]
    what = f"{batch} sequences per step (training.global_batch_size) cannot be dealt out equally to {' or '.join(map(str, misfits))} ranks"
    nearest = _nearest_recipe(config, world_sizes)
    raise ConfigError((Problem("--world", given, f"{what}; feasible: {shown}", nearest=nearest),))


def _nearest_recipe(config: RunConfig, world_sizes: Sequence[int]) -> str:
    """Returns settings with which all sizes, and the recipe's own, divide the global batch. The larger of two batches that are as near."""
    training, ranks = config.training, config.ranks(Stage.TRAIN)
    common = lcm(*world_sizes, ranks)
    batch = max(common, (2 * training.global_batch_size + common) // (2 * common) * common)
    settings = [f"--set training.global_batch_size={batch}"]
    if batch % (training.micro_batch_size * ranks):
        settings.append(f"--set training.micro_batch_size={gcd(training.micro_batch_size, batch // common)}")
    return " ".join(settings)


def segment_ends(steps: int, num_segments: int, *, rng: random.Random) -> tuple[int, ...]:
    """Returns the steps at which all segments but the last are to end, at the earliest: random, about equally far apart.

    Raises:
        ConfigError: too few steps for so many segments.
    """
    _check_steps(steps, num_segments)
    length = steps / num_segments
    return tuple(int(length * (number + rng.uniform(-1 / 6, 1 / 6))) for number in range(1, num_segments))


def _check_steps(steps: int, num_segments: int) -> None:
    least = _FEWEST_STEPS * num_segments
    if steps < least:
        raise ConfigError((Problem("training.steps", str(steps), f"is too few for {num_segments} segments", nearest=str(least)),))


def check_sizes(config: RunConfig, world_sizes: Sequence[int]) -> None:
    """Refuses what cannot be proven, as far as the recipe alone tells. Raises ConfigError."""
    micro_batch_for(config, world_sizes)
    if config.training.steps is not None:
        _check_steps(config.training.steps, len(world_sizes))


def save_interval(every_steps: int | Literal["auto"], *, steps: int, num_segments: int) -> int:
    """Returns the steps between checkpoints of the resized training: the recipe's, or fewer so that every segment commits several times."""
    most = steps // (_SAVES_PER_SEGMENT * num_segments)
    return max(_FEWEST_BETWEEN_SAVES, most if every_steps == "auto" else min(every_steps, most))


def is_between_saves(progress: RankProgress, *, begun_at: int, every_steps: int) -> bool:
    """Whether this segment has committed something, and a step was made since the newest save was due: a commit on its way must not overtake it."""
    return progress.committed_step > begun_at and progress.step % every_steps >= max(2, every_steps // 2)


def of_ranks(count: int) -> str:
    """Returns `2 ranks`."""
    return f"{count} rank{'' if count == 1 else 's'}"
