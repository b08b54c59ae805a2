"""Reading checkpoints: the newest commit that verifies, assembled into whatever layout this start has.

Damaged commits are withdrawn and marked, with the reason, and training goes on from the one before. When commits exist but
none verifies, training stops: it never begins again at step 0 on its own.
"""

import logging
import mmap
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
import xxhash

from cluster.agent.pulse import own_pulse
from cluster.storage import open_regular, path_below
from schemas.artifact import FileEntry
from schemas.checkpoint import SLOTS, CommitRecord, Fragment, RankIndex, Slot, TrainingState
from schemas.errors import VerificationError
from tasks.train.checkpoint.commit import FILE_STATES, STATE_NAME, CheckpointStore, FileState, data_name, findings_of, index_name
from tasks.train.checkpoint.fragments import LocalFragment, TrainingTensors
from tasks.train.gang import Gang

logger = logging.getLogger(__name__)

_Content = TypeVar("_Content", bytes, npt.NDArray[np.float32])
_NONE = -1
_BLOCK_BYTES = 4 << 20
_MEND = "restore the named files from a copy, or build the model anew with --from train"


@dataclass(frozen=True)
class _Candidate:
    """A commit that was looked at."""

    step: int
    commit: CommitRecord | None
    findings: tuple[str, ...]
    """What is wrong with it, as far as this rank knows; on rank 0 complete."""


class Content:
    """The files that this rank read while it verified them, so that it need not read them again to load them."""

    def __init__(self, memory: mmap.mmap | None = None) -> None:
        """Args: memory: takes the first file that is about as large, instead of memory of its own."""
        self._held: dict[Path, npt.NDArray[np.uint8]] = {}
        self._memory = memory
        self._is_taken = False

    def examine(self, folder: Path, entry: FileEntry) -> FileState:
        """Returns whether a committed file is what was committed, and keeps what it holds. Otherwise as `commit.file_state`."""
        path = path_below(folder, entry.path)
        try:
            with open_regular(path) as file:
                if os.fstat(file.fileno()).st_size != entry.size:
                    return "wrong size"
                data = self._room(entry.size)
                digest = _read_hashed(file, data)
        except FileNotFoundError:
            return "missing"
        if digest != entry.xxh3:
            return "wrong content"
        self._held[path] = data
        return "intact"

    def of(self, path: Path) -> npt.NDArray[np.uint8] | None:
        """Returns what an intact file held, or None when this rank has not read it."""
        return self._held.get(path)

    def clear(self) -> None:
        """Forgets everything."""
        self._held.clear()
        self._is_taken = False

    def _room(self, size: int) -> npt.NDArray[np.uint8]:
        """Returns memory for a file: the one that was handed in where that is neither taken nor much too large."""
        if self._memory is None or self._is_taken or not size <= len(self._memory) <= 2 * size:
            return np.empty(size, dtype=np.uint8)
        self._is_taken = True
        return np.frombuffer(self._memory, dtype=np.uint8, count=size)


def _read_hashed(file: FileIO, data: npt.NDArray[np.uint8]) -> str:
    """Fills `data` from the file and returns its xxh3-128, hex; of less when the file turns out shorter."""
    state, view, position = xxhash.xxh3_128(), data.data, 0
    while count := file.readinto(view[position : position + _BLOCK_BYTES]):
        state.update(view[position : position + count])
        position += count
        own_pulse().beat()
    return state.hexdigest()


@dataclass(frozen=True)
class _Overlap:
    """Elements of a fragment that lie in one rank's data."""

    rank: int
    start: int
    """First of them, counted in the fragment."""
    count: int
    offset: int
    """Where they begin in the data, in elements."""


def newest_verified(
    store: CheckpointStore,
    *,
    gang: Gang,
    epoch: int,
    content: Content | None = None,
    steps: Sequence[int] | None = None,
    tell: Callable[[int, tuple[str, ...], int], None] | None = None,
) -> CommitRecord | None:
    """Returns the newest commit whose every file has its hash, or None when nothing was committed. Collective: equal on every rank.

    The ranks share the hashing, each what it is going to load; `content` keeps what it read. Damaged commits that are newer are
    quarantined: a marker with the findings, then the commit's removal, so that the step can be committed again; their data stay.
    `steps`: the committed ones, where rank 0 has listed them already. `tell`: hears on rank 0 of each commit that was passed over: its step, what is
    wrong, and the step that was chosen instead.

    Raises:
        VerificationError: there are commits, but none verifies. Nothing is changed then.
    """
    content = content or Content()
    damaged: list[_Candidate] = []
    left = sorted(store.steps() if steps is None else steps) if gang.rank == 0 else []
    while (step := gang.gather([left.pop() if left else _NONE])[0][0]) != _NONE:
        content.clear()
        candidate = _examine(store, step, gang=gang, content=content)
        if candidate.commit is not None and not candidate.findings:
            if gang.rank == 0:
                for other in damaged:
                    store.withdraw(other.step, epoch=epoch, findings=other.findings)
                    if tell is not None:
                        tell(other.step, other.findings, candidate.commit.step)
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

    def __init__(self, store: CheckpointStore, commit: CommitRecord, *, content: Content | None = None, state_name: str = STATE_NAME) -> None:
        """Reads all indexes that the commit names. Data that are not in `content` are mapped when needed, and hashed before they are used."""
        self._folder, self._content = store.folder(commit), content or Content()
        self._hashes = {entry.path: entry.xxh3 for entry in commit.files}
        self.state = TrainingState.model_validate_json(self._checked(state_name, (self._folder / state_name).read_bytes()))
        self._places: dict[tuple[str, Slot], list[tuple[int, Fragment]]] = {}
        for rank in (rank for rank in range(commit.world_size) if index_name(rank) in self._hashes):
            name = index_name(rank)
            index = RankIndex.model_validate_json(self._checked(name, (self._folder / name).read_bytes()))
            for fragment in index.fragments:
                self._places.setdefault((fragment.name, fragment.slot), []).append((rank, fragment))
        self._maps: dict[int, npt.NDArray[np.float32]] = {}

    @torch.no_grad()
    def load(self, tensors: TrainingTensors) -> None:
        """Fills all fragments of this rank, whatever layout wrote the checkpoint. Follow with `refresh`.

        Raises:
            VerificationError: other parameters or shapes than the model's, or elements that no fragment holds.
        """
        if findings := self.lacking(tensors):
            raise VerificationError(findings, subject=str(self._folder), mend=_MEND)
        for fragment in tensors.held:
            for slot in SLOTS:
                for overlap in self._overlaps(fragment, slot):
                    values = torch.from_numpy(self._data(overlap.rank)[overlap.offset : overlap.offset + overlap.count])
                    fragment.slots[slot][overlap.start : overlap.start + overlap.count].copy_(values)
            own_pulse().beat()

    def lacking(self, tensors: TrainingTensors) -> tuple[str, ...]:
        """Returns what `load` would miss: other parameters or shapes than the model's, or elements that no fragment holds."""
        stored, wanted = ({item.name: item.shape for item in shapes} for shapes in (self.state.parameters, tensors.parameters))
        findings = _differences(stored, wanted)
        return tuple(findings or (finding for fragment in tensors.held for finding in self._holes(fragment)))

    def sources(self, tensors: TrainingTensors) -> frozenset[int]:
        """Returns the ranks whose data `load` reads."""
        return frozenset(overlap.rank for fragment in tensors.held for slot in SLOTS for overlap in self._overlaps(fragment, slot))

    def _holes(self, fragment: LocalFragment) -> Iterable[str]:
        for slot in SLOTS:
            found = sum(overlap.count for overlap in self._overlaps(fragment, slot))
            if found != fragment.count:
                stop = fragment.start + fragment.count
                yield f"{fragment.name} ({slot}): {found} of elements {fragment.start} to {stop} are in the checkpoint"

    def _overlaps(self, fragment: LocalFragment, slot: Slot) -> Iterable[_Overlap]:
        """Yields what of `fragment` lies where."""
        stop = fragment.start + fragment.count
        for rank, piece in self._places.get((fragment.name, slot), []):
            first, last = max(fragment.start, piece.start), min(stop, piece.start + piece.count)
            if first < last:
                offset = piece.byte_offset // 4 + first - piece.start
                yield _Overlap(rank, start=first - fragment.start, count=last - first, offset=offset)

    def _data(self, rank: int) -> npt.NDArray[np.float32]:
        """Returns a rank's data, mapped and checked."""
        held = self._content.of(self._folder / data_name(rank))
        if held is not None:
            return held.view("<f4")
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


def _examine(store: CheckpointStore, step: int, *, gang: Gang, content: Content) -> _Candidate:
    """Verifies one commit, each rank its share of the files. Collective."""
    commit = _read(store, step)
    if not gang.all(commit is not None):
        return _Candidate(step, commit, findings=(f"{store.layout.commit(step)}: the record is damaged or missing",))
    assert commit is not None
    folder = store.folder(commit)
    readers = {name: rank % gang.world_size for rank in range(commit.world_size) for name in (data_name(rank), index_name(rank))}
    own = [FILE_STATES.index(content.examine(folder, entry)) if readers.get(entry.path, 0) == gang.rank else 0 for entry in commit.files]
    worst = [max(states) for states in zip(*gang.gather(own), strict=True)]
    findings = findings_of(commit, {entry.path: FILE_STATES[state] for entry, state in zip(commit.files, worst, strict=True)})
    return _Candidate(step, commit, findings)


def _read(store: CheckpointStore, step: int) -> CommitRecord | None:
    try:
        return store.read(step)
    except FileNotFoundError:
        return None


def _differences(stored: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Returns how the checkpoint's parameters differ from the model's."""
    missing = [f"{name}: not in the checkpoint" for name in wanted if name not in stored]
    unknown = [f"{name}: not in the model" for name in stored if name not in wanted]
    both = [name for name in wanted if name in stored]
    changed = [f"{name}: {stored[name]} in the checkpoint, {wanted[name]} in the model" for name in both if stored[name] != wanted[name]]
    return missing + unknown + changed
