"""Reading checkpoints: the newest commit that verifies, assembled into whatever layout this start has.

Damaged commits are withdrawn and marked, with the reason, and training goes on from the one before. When commits exist but
none verifies, training stops: it never begins again at step 0 on its own.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
import xxhash

from cluster.storage import AlreadyExistsError
from schemas.canonical import canonical_json
from schemas.checkpoint import SLOTS, CommitRecord, Fragment, QuarantineRecord, RankIndex, Slot, TrainingState
from schemas.errors import VerificationError
from tasks.train.checkpoint.commit import FILE_STATES, STATE_NAME, CheckpointStore, data_name, file_state, findings_of, index_name
from tasks.train.checkpoint.fragments import LocalFragment, TrainingTensors
from tasks.train.gang import Gang

logger = logging.getLogger(__name__)

_Content = TypeVar("_Content", bytes, npt.NDArray[np.float32])
_NONE = -1
_MEND = "restore the named files from a copy, or build the model anew with --from train"


@dataclass(frozen=True)
class _Candidate:
    """A commit that was looked at."""

    step: int
    commit: CommitRecord | None
    findings: tuple[str, ...]
    """What is wrong with it, as far as this rank knows; on rank 0 complete."""


def newest_verified(store: CheckpointStore, *, gang: Gang, epoch: int) -> CommitRecord | None:
    """Returns the newest commit whose every file has its hash, or None when nothing was ever committed. Collective: equal on every rank.

    The ranks share the hashing. Damaged commits that are newer are quarantined: a marker with the findings, then the commit's
    removal, so that the step can be committed again; their data stay.

    Raises:
        VerificationError: there are commits, but none verifies. Nothing is changed then.
    """
    damaged: list[_Candidate] = []
    steps = list(reversed(store.steps())) if gang.rank == 0 else []
    while (step := gang.gather([steps.pop(0) if steps else _NONE])[0][0]) != _NONE:
        candidate = _examine(store, step, gang=gang)
        if candidate.commit is not None and not candidate.findings:
            if gang.rank == 0:
                for other in damaged:
                    _quarantine(store, other, epoch=epoch)
            gang.gather([0])  # nobody reads on before the withdrawal is done
            return candidate.commit
        damaged.append(candidate)
        logger.error("the checkpoint of step %d is damaged: %s", step, "; ".join(candidate.findings))
    num_quarantined = gang.gather([store.num_quarantined() if gang.rank == 0 else 0])[0][0]
    if damaged or num_quarantined:
        found = tuple(finding for candidate in damaged for finding in candidate.findings)
        findings = found or (f"{num_quarantined} commits, all withdrawn as damaged",)
        raise VerificationError(findings, subject=f"{store.layout.key}: no checkpoint", mend=_MEND)
    return None


class CheckpointReader:
    """The fragments of one committed checkpoint, by parameter and slot."""

    def __init__(self, store: CheckpointStore, commit: CommitRecord) -> None:
        """Reads all indexes; data are mapped when they are needed, and each rank hashes again what it uses itself."""
        self._folder = store.folder(commit)
        self._hashes = {entry.path: entry.xxh3 for entry in commit.files}
        self.state = TrainingState.model_validate_json(self._checked(STATE_NAME, (self._folder / STATE_NAME).read_bytes()))
        self._places: dict[tuple[str, Slot], list[tuple[int, Fragment]]] = {}
        for rank in range(commit.world_size):
            name = index_name(rank)
            index = RankIndex.model_validate_json(self._checked(name, (self._folder / name).read_bytes()))
            for fragment in index.fragments:
                self._places.setdefault((fragment.name, fragment.slot), []).append((rank, fragment))
        self._maps: dict[int, npt.NDArray[np.float32]] = {}

    def load(self, tensors: TrainingTensors) -> None:
        """Fills all fragments of this rank, whatever layout wrote the checkpoint. Follow with `refresh`.

        Raises:
            VerificationError: other parameters or shapes than the model's, or elements that no fragment holds.
        """
        findings = _differences({item.name: item.shape for item in self.state.parameters}, {item.name: item.shape for item in tensors.parameters})
        if not findings:
            findings = [finding for fragment in tensors.held for finding in self._fill(fragment)]
        if findings:
            raise VerificationError(tuple(findings), subject=str(self._folder), mend=_MEND)

    @torch.no_grad()
    def _fill(self, fragment: LocalFragment) -> Iterable[str]:
        """Copies what overlaps into the fragment's slots; returns what is missing."""
        findings, stop = [], fragment.start + fragment.count
        for slot in SLOTS:
            filled = 0
            for rank, piece in self._places.get((fragment.name, slot), []):
                first, last = max(fragment.start, piece.start), min(stop, piece.start + piece.count)
                if first < last:
                    offset = piece.byte_offset // 4 + first - piece.start
                    values = torch.from_numpy(self._data(rank)[offset : offset + last - first])
                    fragment.slots[slot][first - fragment.start : last - fragment.start].copy_(values)
                    filled += last - first
            if filled != fragment.count:
                findings.append(f"{fragment.name} ({slot}): {filled} of elements {fragment.start} to {stop} are in the checkpoint")
        return findings

    def _data(self, rank: int) -> npt.NDArray[np.float32]:
        """Returns a rank's data, mapped and checked."""
        if rank not in self._maps:
            # private and writable in memory only: torch wants writable arrays, and nothing reaches the file
            mapped = np.memmap(self._folder / data_name(rank), dtype="<f4", mode="c")
            self._maps[rank] = self._checked(data_name(rank), mapped)
        return self._maps[rank]

    def _checked(self, name: str, content: _Content) -> _Content:
        """Returns `content` when it is what was committed under `name`."""
        view = content if isinstance(content, bytes) else content.data
        if xxhash.xxh3_128(view).hexdigest() != self._hashes.get(name):
            raise VerificationError((f"{name}: changed after it was verified",), subject=str(self._folder), mend=_MEND)
        return content


def _examine(store: CheckpointStore, step: int, *, gang: Gang) -> _Candidate:
    """Verifies one commit, each rank its share of the files. Collective."""
    commit = _read(store, step)
    if not gang.all(commit is not None):
        return _Candidate(step, commit, findings=(f"{store.layout.commit(step)}: the record is damaged or missing",))
    assert commit is not None
    folder = store.folder(commit)
    own = [
        FILE_STATES.index(file_state(folder, entry)) if position % gang.world_size == gang.rank else 0 for position, entry in enumerate(commit.files)
    ]
    worst = [max(states) for states in zip(*gang.gather(own), strict=True)]
    findings = findings_of(commit, {entry.path: FILE_STATES[state] for entry, state in zip(commit.files, worst, strict=True)})
    return _Candidate(step, commit, findings)


def _read(store: CheckpointStore, step: int) -> CommitRecord | None:
    try:
        return store.read(step)
    except FileNotFoundError:
        return None


def _quarantine(store: CheckpointStore, candidate: _Candidate, *, epoch: int) -> None:
    """Marks a damaged commit, then withdraws it."""
    key = store.layout.commit(candidate.step)
    raw = store.storage.read(key).decode(errors="backslashreplace") if store.storage.exists(key) else ""
    record = QuarantineRecord(step=candidate.step, found_in_epoch=epoch, findings=candidate.findings, commit=raw)
    try:
        store.storage.create_exclusive(store.quarantine_key(candidate.step, epoch=epoch), canonical_json(record))
    except AlreadyExistsError:
        logger.warning("step %d is marked as damaged already", candidate.step)
    store.storage.delete(key)


def _differences(stored: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Returns how the checkpoint's parameters differ from the model's."""
    missing = [f"{name}: not in the checkpoint" for name in wanted if name not in stored]
    unknown = [f"{name}: not in the model" for name in stored if name not in wanted]
    both = [name for name in wanted if name in stored]
    changed = [f"{name}: {stored[name]} in the checkpoint, {wanted[name]} in the model" for name in both if stored[name] != wanted[name]]
    return missing + unknown + changed
