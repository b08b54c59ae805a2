"""Weights that changed by themselves: a flipped bit in memory names its rank before it reaches a gradient, or a checkpoint.

* On sampled updates (`checkpoint.check_weights_every_steps`) a rank hashes what it holds right after the update, and again before it is used.
* Before every checkpoint: cast(master weight) = parameter on all that a rank holds, and the copies that all ranks have of one thing are equal.

What is seen depends on the layout: without ZeRO everything has a copy on every rank; ZeRO 1 and 2 have copies of the parameters alone, and
overwrite them from the masters at each update; ZeRO 3 has none, but for its small persistent parameters. Moments are not looked at.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from schemas.errors import CorruptStateError
from tasks.train.checkpoint.fragments import TrainingTensors, bits_hash
from tasks.train.engine import Engine
from tasks.train.gang import Gang

logger = logging.getLogger(__name__)

_MEND = "the ranks start again from the newest checkpoint; a machine that shows this twice has bad memory or a bad device"
_MOST_NAMES = 5


class WeightWatch:
    """Compares the weights of one rank with what they must be."""

    def __init__(self, tensors: TrainingTensors, *, engine: Engine, every_steps: int | None) -> None:
        """Args: every_steps: between sampled updates; None: checkpoints alone are checked."""
        self._tensors, self._engine, self._every_steps = tensors, engine, every_steps
        self._expected: Mapping[str, int] | None = None
        self._step = -1

    def after_update(self, step: int) -> None:
        """Hashes the weights, when the state after `step` updates is one of the sample."""
        self._step = step
        if self._every_steps is not None and step % self._every_steps == 0:
            self._expected = self._hashes()

    def before_use(self) -> None:
        """Hashes the weights again, when they were hashed after the last update.

        Raises:
            CorruptStateError: something changed in between; on this rank alone.
        """
        if self._expected is not None:
            self._compare(self._expected)
            self._expected = None

    def before_save(self) -> None:
        """Checks what is about to become a checkpoint. Collective.

        Raises:
            CorruptStateError: weights changed since the update, a parameter is not cast(master), or ranks disagree about a copy.
        """
        if self._expected is not None:
            self._compare(self._expected)
        stale = self._tensors.stale_parameters()
        if stale:
            self._refuse("is not cast(master weight)", stale)
        replicas = dict(self._replicas())
        hashes = tuple(bits_hash(tensor.detach().reshape(-1)) for tensor in replicas.values())
        disagreeing = differing_copies(tuple(replicas), self._engine.gang, hashes=hashes)
        if disagreeing:
            self._refuse("differs between ranks", disagreeing, together=True)

    def _compare(self, expected: Mapping[str, int]) -> None:
        now = self._hashes()
        changed = tuple(name for name, value in expected.items() if now[name] != value)
        if changed:
            self._refuse("changed between the update and its use", changed)

    def _hashes(self) -> dict[str, int]:
        masters = {f"master weight {fragment.name}": bits_hash(fragment.slots["weight"]) for fragment in self._tensors.held}
        return masters | {f"parameter {name}": bits_hash(tensor.detach().reshape(-1)) for name, tensor in self._parameters()}

    def _parameters(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yields what the forward pass reads from this rank's memory: whole parameters, under ZeRO 3 its partitions and what is kept whole."""
        parameter: Any  # under ZeRO 3 it carries DeepSpeed's attributes
        for name, parameter in self._engine.module.named_parameters():
            if hasattr(parameter, "ds_tensor"):
                yield f"{name} (partition)", parameter.ds_tensor
                if not parameter.ds_persist:
                    continue
            yield name, parameter

    def _replicas(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yields what every rank has a copy of."""
        yield from ((name, tensor) for name, tensor in self._parameters() if not name.endswith(" (partition)"))
        if self._engine.zero_stage == 0:
            yield from ((f"{fragment.name} (master)", fragment.slots["weight"]) for fragment in self._tensors.held)

    def _refuse(self, what: str, names: Sequence[str], *, together: bool = False) -> None:
        more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
        who = "the ranks" if together else f"rank {self._engine.gang.rank}"
        message = f"{who}, after update {self._step}: {what}: {', '.join(names[:_MOST_NAMES])}{more}"
        raise CorruptStateError(message, why="nothing but an update may change weights", mend=_MEND)


def differing_copies(names: Sequence[str], gang: Gang, *, hashes: Sequence[int]) -> tuple[str, ...]:
    """Returns the names of things that are not equal on all ranks, the same answer on every rank. Collective.

    Args:
        names: of things that every rank has a copy of, in the same order everywhere.
        gang: the ranks.
        hashes: of this rank's copies, 64 bits each.
    """
    if gang.world_size == 1:
        return ()
    rows = gang.gather([value - (1 << 63) for value in hashes])
    return tuple(name for name, *values in zip(names, *rows, strict=True) if len(set(values)) > 1)
