"""Whether what was loaded is what was committed, element for element, although it is cut otherwise now: checked whenever the layout changes."""

import torch

from cluster.agent.pulse import own_pulse
from schemas.checkpoint import CommitRecord
from schemas.errors import VerificationError
from tasks.train.checkpoint.commit import CheckpointStore
from tasks.train.checkpoint.fragments import LocalFragment, TrainingTensors
from tasks.train.checkpoint.state_hash import as_hex, hash_checkpoint, hash_piece
from tasks.train.gang import Gang

_OFFSET = 1 << 63
_MASK = (1 << 64) - 1


def verify_loaded(store: CheckpointStore, commit: CommitRecord, *, tensors: TrainingTensors, gang: Gang) -> str:
    """Returns the hash of the fp32 state (`tasks.train.checkpoint.state_hash`), in the commit's files and in the ranks' memory alike. Collective.

    The two sums are taken along different ways: by the writers' indexes over files, and by the present layout over tensors.

    Raises:
        VerificationError: they differ.
    """
    stored = hash_checkpoint(commit, folder=store.folder(commit), part=gang.rank, num_parts=gang.world_size)
    loaded = sum(_hash_fragment(fragment) for fragment in tensors.owned()) & _MASK
    rows = gang.gather([stored - _OFFSET, loaded - _OFFSET])
    in_files, in_memory = (sum(row[column] + _OFFSET for row in rows) & _MASK for column in (0, 1))
    if in_files != in_memory:
        finding = f"step {commit.step}: the state hash is {as_hex(in_files)} in the files and {as_hex(in_memory)} in memory"
        raise VerificationError((finding,), subject=f"{store.layout.key}: loading on {gang.world_size} ranks what {commit.world_size} wrote")
    return as_hex(in_files)


def _hash_fragment(fragment: LocalFragment) -> int:
    total = 0
    own_pulse().beat()
    for slot, view in fragment.slots.items():
        values = view.detach().to("cpu", dtype=torch.float32).contiguous()
        total += hash_piece(values.view(torch.int32).numpy().view("uint32"), name=fragment.name, slot=slot, start=fragment.start)
    return total
