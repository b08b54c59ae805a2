"""The fp32 training state that this rank holds, as named flat views into DeepSpeed's own memory.

DeepSpeed keeps the master weights and the optimizer's moments in three ways: whole on every rank (ZeRO 0), as flat partitions of
parameter groups (ZeRO 1 and 2, and its BF16 optimizer), or as partitions of single parameters (ZeRO 3). This module is the
only one that knows the difference. Reading a checkpoint and writing one are copies out of and into these views.
All names with an underscore are DeepSpeed 0.19's; the tests of this module fail when a version moves them.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import xxhash
from torch import nn

from schemas.checkpoint import SLOTS, ParameterShape, Slot
from tasks.train.engine import Engine
from tasks.train.model import full_shape, full_size
from tasks.train.muon import ORTHOGONAL, Muon, Piece

_PIECE = 1 << 18
"""Elements that are compared at a time."""


@dataclass(frozen=True)
class LocalFragment:
    """A contiguous piece of one flattened parameter that this rank holds."""

    name: str
    """Parameter name as in `model.named_parameters()`."""
    start: int
    """First element, counted in the flattened parameter."""
    slots: Mapping[Slot, torch.Tensor]
    """Flat fp32 views, all of equal length: writing to them changes the training state."""
    low_precision: torch.Tensor
    """The same piece as the forward pass reads it; the weight slot itself in fp32 without ZeRO."""

    @property
    def count(self) -> int:
        """Elements."""
        return self.low_precision.numel()

    def is_fresh(self) -> bool:
        """Whether the forward copy is cast(master weight), bit for bit; NaNs of equal bits are equal.

        In pieces that stay in the cache: one cast and one comparison of all would pass over memory several times.
        """
        master, low = self.slots["weight"], self.low_precision
        if master.data_ptr() == low.data_ptr():
            return True  # fp32 without ZeRO: there is no copy
        scratch = torch.empty(min(_PIECE, self.count), dtype=low.dtype, device=low.device)
        for first in range(0, self.count, _PIECE):
            present = low[first : first + _PIECE]
            wanted = scratch[: present.numel()].copy_(master[first : first + _PIECE])
            if not torch.equal(_words(wanted), _words(present)):
                return False
        return True

    def part(self, first: int, last: int) -> "LocalFragment":
        """Returns the elements [first, last) of this fragment."""
        slots = {slot: view[first:last] for slot, view in self.slots.items()}
        return LocalFragment(self.name, start=self.start + first, slots=slots, low_precision=self.low_precision[first:last])


def _words(flat: torch.Tensor) -> torch.Tensor:
    """Returns the bits of a flat tensor as whole numbers of its elements' size."""
    return flat.detach().view(torch.int16 if flat.element_size() == 2 else torch.int32)


def bits_hash(flat: torch.Tensor) -> int:
    """Returns 64 bits that any single flipped bit of a flat tensor changes: xxh3 on the CPU, on a GPU a sum of words, which stays there."""
    if flat.device.type != "cpu":
        return int(_words(flat).sum(dtype=torch.int64)) & ((1 << 64) - 1)
    return xxhash.xxh3_64_intdigest(flat.detach().view(torch.uint8).numpy().data)


class TrainingTensors:
    """The fp32 state of an engine: what this rank holds, and which share of it this rank writes."""

    def __init__(self, engine: Engine) -> None:
        """Materialises the optimizer's state as it is before the first update, and tells Muon where its matrices lie. Collective.

        DeepSpeed and torch would make the state lazily, or by a step without gradients.
        """
        self._engine = engine
        self._base = getattr(engine.optimizer, "optimizer", engine.optimizer)
        self._names = {id(parameter): name for name, parameter in engine.module.named_parameters() if parameter.requires_grad}
        self._materialise()
        order = {name: position for position, name in enumerate(self._names.values())}
        self.held: tuple[LocalFragment, ...] = tuple(sorted(self._fragments(), key=lambda fragment: (order[fragment.name], fragment.start)))
        """All fragments on this rank, in the model's order."""
        if isinstance(self._base, Muon):
            self._lay_out(self._base)

    @property
    def parameters(self) -> tuple[ParameterShape, ...]:
        """Every trained parameter, whole, in the model's order."""
        module = self._engine.module
        return tuple(
            ParameterShape(name=name, shape=full_shape(parameter)) for name, parameter in module.named_parameters() if parameter.requires_grad
        )

    def owned(self) -> tuple[LocalFragment, ...]:
        """Returns this rank's share: over all ranks, every element of every parameter exactly once."""
        if self._engine.zero_stage > 0:
            return self.held
        gang = self._engine.gang
        share = math.ceil(sum(fragment.count for fragment in self.held) / gang.world_size)
        first, last, position, owned = gang.rank * share, (gang.rank + 1) * share, 0, []
        for fragment in self.held:
            low, high = max(first - position, 0), min(last - position, fragment.count)
            if low < high:
                owned.append(fragment.part(low, high))
            position += fragment.count
        return tuple(owned)

    def set_optimizer_step(self, optimizer_step: int) -> None:
        """Sets the optimizer's own counters, with which AdamW corrects the bias of the moments."""
        for tensor in self._masters():
            self._base.state[tensor]["step"].fill_(optimizer_step)

    @torch.no_grad()
    def refresh(self) -> None:
        """Makes the parameters of the forward pass equal to cast(master weights), on all ranks. Collective under ZeRO."""
        optimizer = self._engine.optimizer
        if self._engine.zero_stage == 3:
            for group in range(len(optimizer.fp16_groups)):
                optimizer._reassign_or_swap_out_partitioned_parameters(group)
            persistent = optimizer.persistent_parameters
            if persistent:  # a gather alone would keep the stale copies above one rank
                persistent[0].partition(persistent)
                persistent[0].all_gather(persistent)
        elif hasattr(optimizer, "update_lp_params"):
            optimizer.update_lp_params()
        else:
            for fragment in self.held:
                fragment.low_precision.copy_(fragment.slots["weight"])

    def stale_parameters(self) -> tuple[str, ...]:
        """Returns the names of parameters whose forward copy is not cast(master weight), bit for bit, on this rank."""
        stale = (fragment.name for fragment in self.held if not fragment.is_fresh())
        return tuple(dict.fromkeys(stale))

    def _materialise(self) -> None:
        for low, master in self._replicas():
            master.detach().copy_(low.detach())  # DeepSpeed's own start applies weight decay to these
        fused = any(group.get("fused") or group.get("capturable") for group in self._base.param_groups)
        for tensor in self._masters():
            device = tensor.device if fused else torch.device("cpu")
            self._base.state[tensor] = {
                "step": torch.zeros((), dtype=torch.float32, device=device),
                "exp_avg": torch.zeros_like(tensor),
                "exp_avg_sq": torch.zeros_like(tensor),  # of Muon's matrices too, where it stays zero: every parameter has the same slots
            }

    def _lay_out(self, muon: Muon) -> None:
        """Tells Muon where its matrices lie; whether one is cut, every rank must know."""
        held = {fragment.name: fragment for fragment in self.held}  # at most one of each, since ZeRO 3 is refused
        masters = {id(low): master for low, master in self._replicas()}
        flat = [tensor for group in muon.param_groups if group[ORTHOGONAL] for tensor in group["params"]]
        pieces = []
        for parameter in muon.matrices:
            master = flat[0] if self._engine.zero_stage > 0 else masters.get(id(parameter), parameter)
            fragment = held.get(self._names[id(parameter)])
            offset = int(fragment.slots["weight"].storage_offset() - master.storage_offset()) if fragment is not None else 0
            start, count = (fragment.start, fragment.count) if fragment is not None else (0, 0)
            rows, numel = full_shape(parameter)[0], full_size(parameter)
            pieces.append(Piece(master, offset=offset, shape=(rows, numel // rows), start=start, count=count))
        flags_by_rank = self._engine.gang.gather([int(piece.count > 0 and not piece.is_whole) for piece in pieces]) if pieces else []
        muon.lay_out(pieces, cut=[any(flags) for flags in zip(*flags_by_rank, strict=True)])

    def _masters(self) -> list[torch.Tensor]:
        """Returns the fp32 tensors that the optimizer updates on this rank."""
        if self._engine.zero_stage == 3:
            return list(self._engine.optimizer.fp32_partitioned_groups_flat)
        return [tensor for group in self._base.param_groups for tensor in group["params"]]

    def _slots(self, master: torch.Tensor, *, start: int, count: int) -> dict[Slot, torch.Tensor]:
        state = self._base.state[master]
        tensors: dict[Slot, torch.Tensor] = {slot: master if slot == "weight" else state[slot] for slot in SLOTS}
        return {slot: tensor.detach().view(-1).narrow(0, start, count) for slot, tensor in tensors.items()}

    def _fragments(self) -> Iterator[LocalFragment]:
        if self._engine.zero_stage == 3:
            return self._of_partitioned_parameters()
        if self._engine.zero_stage > 0:
            return self._of_flat_partitions()
        return self._of_replicas()

    def _of_partitioned_parameters(self) -> Iterator[LocalFragment]:
        """ZeRO 3: rank r holds elements [r × p, (r + 1) × p) of each parameter, p rounded up; the last piece is padded."""
        optimizer, rank = self._engine.optimizer, self._engine.gang.rank
        for parameter in self._trained():
            group, offset, size = optimizer.grad_position[optimizer.get_param_id(parameter)]
            start = rank * size
            count = min(size, full_size(parameter) - start)
            if count > 0:
                slots = self._slots(optimizer.fp32_partitioned_groups_flat[group], start=offset, count=count)
                yield LocalFragment(self._names[id(parameter)], start=start, slots=slots, low_precision=parameter.ds_tensor.detach().view(-1)[:count])

    def _of_flat_partitions(self) -> Iterator[LocalFragment]:
        """ZeRO 1 and 2: this rank holds one slice of each flattened parameter group; a parameter may begin or end in another rank's."""
        for parameter in self._trained():
            mapping = parameter._hp_mapping
            if mapping is None:
                continue
            (master,) = self._base.param_groups[mapping.param_group_index]["params"]
            place, low = mapping.get_hp_fragment_address(), mapping.lp_fragment_address
            slots = self._slots(master, start=place.start, count=place.numel)
            view = parameter.detach().view(-1).narrow(0, low.start, low.numel)
            yield LocalFragment(self._names[id(parameter)], start=low.start, slots=slots, low_precision=view)

    def _of_replicas(self) -> Iterator[LocalFragment]:
        """ZeRO 0: every rank holds everything."""
        masters = {id(low): master for low, master in self._replicas()}
        for parameter in self._trained():
            master = masters.get(id(parameter), parameter)
            slots = self._slots(master, start=0, count=master.numel())
            yield LocalFragment(self._names[id(parameter)], start=0, slots=slots, low_precision=parameter.detach().view(-1))

    def _replicas(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yields (parameter, its fp32 master) of DeepSpeed's optimizer for bf16 and fp16 without ZeRO; nothing otherwise."""
        optimizer = self._engine.optimizer
        if self._engine.zero_stage == 0 and hasattr(optimizer, "fp32_groups"):
            for low_group, master_group in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True):
                yield from zip(low_group, master_group, strict=True)

    def _trained(self) -> Iterator[Any]:
        """Yields the trained parameters; they carry DeepSpeed's attributes, so they are untyped."""
        parameter: nn.Parameter
        for parameter in self._engine.module.parameters():
            if parameter.requires_grad:
                yield parameter
