"""Logical checkpoints: fragments of named parameters, and the commit that makes them true."""

from typing import Literal

from schemas.artifact import FileEntry
from schemas.frozen import Frozen, JsonObject
from schemas.safe_path import RelativePath
from schemas.sealed import Sealed

Slot = Literal["weight", "exp_avg", "exp_avg_sq"]
SLOTS: tuple[Slot, ...] = ("weight", "exp_avg", "exp_avg_sq")
"""The fp32 master weight and AdamW's two moments."""


class Fragment(Frozen):
    """A contiguous piece of one flattened parameter, in one slot, in one file. Always fp32, little-endian."""

    name: str
    """Parameter name as in `model.named_parameters()`."""
    slot: Slot
    """What is stored."""
    start: int
    """First element, counted in the flattened parameter."""
    count: int
    """Elements."""
    byte_offset: int
    """Where it lies in the file."""


class ParameterShape(Frozen):
    """A parameter's full shape, the same at every world size."""

    name: str
    """Parameter name."""
    shape: tuple[int, ...]
    """Full shape."""


class RankIndex(Frozen):
    """`rank-0003.json` beside `rank-0003.bin`: which fragments a rank wrote, and its own state."""

    rank: int
    """The rank."""
    world_size: int
    """Ranks of the epoch that wrote it."""
    fragments: tuple[Fragment, ...]
    """In order of `byte_offset`."""
    rng: JsonObject
    """State of the rank's generators, as plain numbers."""


class BatchWindow(Frozen):
    """Consecutive global batches that are never used (again)."""

    first: int
    """The first of them, 0-based."""
    stop: int
    """The first after them."""


class TrainingState(Frozen):
    """`state.json`: what all ranks agree on."""

    step: int
    """Optimizer updates asked for: also the index of the next batch."""
    optimizer_step: int
    """Updates applied: `step` minus the skipped ones."""
    skipped_steps: tuple[int, ...]
    """Steps whose update was skipped: fp16 overflow, or `restart.on_bad_numbers: skip`."""
    skipped_batches: tuple[BatchWindow, ...] = ()
    """Batches that a rewind left out: ascending, disjoint. The batch of the next update follows from `step` and these."""
    recent_losses: tuple[float, ...] = ()
    """Mean losses of the last applied updates, oldest first: what a jump of the loss is measured against. Nats per token."""
    consumed: str = ""
    """Hash of the sequences that every step so far has used (`tasks.train.consumed`), 128 bits in hex. Empty: not known."""
    loss_scale: JsonObject
    """Numbers of the dynamic loss scaler; empty without one."""
    parameters: tuple[ParameterShape, ...]
    """All trained parameters."""
    seed: int
    """`training.seed`."""
    zero_stage: int
    """Stage that wrote it; any stage can load it."""
    precision: str
    """Number format of the forward pass."""
    loss: float | None = None
    """Training loss of the last update, averaged over the ranks; nats per token."""
    validation_loss: float | None = None
    """Newest validation loss; nats per token."""
    validation_bits_per_byte: float | None = None
    """The same in bits per byte of text, estimated from the split's tokens per byte."""


class CommitRecord(Sealed):
    """`commits/step-00001200.json`: created exclusively, makes a checkpoint true. Resume reads only these."""

    schema_version: int = 1
    """Version of this type."""
    step: int
    """The state after this many updates."""
    epoch: int
    """The epoch that wrote it."""
    folder: RelativePath
    """`checkpoints/step-00001200.e000003`, relative to the artifact."""
    files: tuple[FileEntry, ...]
    """Every file of the checkpoint, relative to `folder`."""
    world_size: int
    """Ranks that wrote it."""
    committed_at: float
    """Seconds since the Unix epoch."""


class LocalRecord(Sealed):
    """`records/rank-0001/step-00001200.e000003.json` on a node's own disk: a rank's share of a checkpoint is durable there."""

    schema_version: int = 1
    """Version of this type."""
    step: int
    """The state after this many updates."""
    epoch: int
    """The start that wrote it."""
    rank: int
    """The rank."""
    world_size: int
    """Ranks of that start."""
    folder: RelativePath
    """Where its files lie, relative to the artifact's folder on this node."""
    files: tuple[FileEntry, ...]
    """Fragments, index and state of the rank, relative to `folder`."""


class QuarantineRecord(Frozen):
    """`quarantine/step-00001200.e000003.json`: a checkpoint that did not verify. Its commit is withdrawn, its data stay as evidence."""

    schema_version: int = 1
    """Version of this type."""
    step: int
    """The step of the damaged commit."""
    found_in_epoch: int
    """The start that found the damage."""
    findings: tuple[str, ...]
    """What is wrong, file by file."""
    commit: str
    """The withdrawn commit as it was read, for people."""
