"""Writing checkpoints: every rank its fragments, then one exclusively created commit that makes them true.

Data files hold no time, epoch or host: a run that was killed and went on writes the same bytes as an undisturbed one.
A checkpoint that cannot be written (full disk, failed fsync) is given up on all ranks alike; nothing of it is committed.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import xxhash

from cluster.storage import AlreadyExistsError, make_folder, sync_folder, write_durably
from schemas.artifact import FileEntry
from schemas.canonical import canonical_json
from schemas.checkpoint import SLOTS, CommitRecord, Fragment, RankIndex, TrainingState
from tasks.train.checkpoint.commit import MODEL_CONFIG_NAME, STATE_NAME, CheckpointStore, data_name, index_name
from tasks.train.checkpoint.fragments import LocalFragment
from tasks.train.gang import Gang
from tasks.train.order import stream_seed

logger = logging.getLogger(__name__)

_T = TypeVar("_T")
_FP32_BYTES = 4
_MASK_64 = (1 << 64) - 1


@dataclass(frozen=True)
class RankWrite:
    """What one rank wrote: enough to name its files in the commit. Travels between ranks as six 64-bit numbers."""

    data: FileEntry
    index: FileEntry

    def to_numbers(self) -> list[int]:
        """Returns sizes and hashes as signed 64-bit numbers."""
        return [number for entry in (self.data, self.index) for number in (entry.size, *_halves(entry.xxh3))]

    @classmethod
    def from_numbers(cls, numbers: Sequence[int], *, rank: int) -> "RankWrite":
        """Returns what `to_numbers` of that rank stood for."""
        first, second = numbers[:3], numbers[3:]
        data = FileEntry(path=data_name(rank), size=first[0], xxh3=_joined(first[1:]))
        return cls(data, FileEntry(path=index_name(rank), size=second[0], xxh3=_joined(second[1:])))


class Snapshot:
    """One contiguous copy of a rank's fragments in CPU memory, allocated once: what is written while training may go on."""

    def __init__(self, fragments: Sequence[LocalFragment]) -> None:
        """Args: fragments: what this rank owns; live views."""
        self._pieces = [(fragment, slot) for fragment in fragments for slot in SLOTS]
        total = sum(fragment.count for fragment, _ in self._pieces)
        self._buffer = torch.empty(total, dtype=torch.float32, pin_memory=torch.cuda.is_available())
        self.fragments = self._index()

    def take(self) -> memoryview:
        """Copies the present values and returns all bytes, fp32 little-endian."""
        position = 0
        for fragment, slot in self._pieces:
            self._buffer[position : position + fragment.count].copy_(fragment.slots[slot], non_blocking=True)
            position += fragment.count
        if self._buffer.is_pinned():
            torch.cuda.synchronize()
        return memoryview(self._buffer.numpy().data).cast("B")

    def _index(self) -> tuple[Fragment, ...]:
        index, offset = [], 0
        for fragment, slot in self._pieces:
            index.append(Fragment(name=fragment.name, slot=slot, start=fragment.start, count=fragment.count, byte_offset=offset))
            offset += fragment.count * _FP32_BYTES
        return tuple(index)


class CheckpointWriter:
    """Writes and commits the checkpoints of one epoch."""

    def __init__(self, store: CheckpointStore, *, gang: Gang, epoch: int, snapshot: Snapshot, model_config: Mapping[str, Any]) -> None:
        """Args: snapshot: of this rank's fragments. model_config: what an exported model's `config.json` holds."""
        self._store, self._gang, self._epoch = store, gang, epoch
        self._snapshot, self._model_config = snapshot, model_config
        self.num_failures = 0
        """Checkpoints that could not be written."""

    def save(self, state: TrainingState) -> bool:
        """Writes and commits a checkpoint of the present training state; the same answer on every rank. Collective.

        Returns:
            False when it could not be written; what there is of it is removed, older checkpoints are intact, and the reason is logged.
        """
        key = self._store.layout.checkpoint(state.step, self._epoch)
        folder = self._store.artifact_dir.parent / key
        written = self._attempt(lambda: self._write_own(state, folder=folder), state.step)
        rows = self._gang.gather([1, *written.to_numbers()] if written is not None else [0] * 7)
        committed = all(row[0] for row in rows)
        if committed:
            writes = [RankWrite.from_numbers(row[1:], rank=rank) for rank, row in enumerate(rows)]
            done = self._attempt(lambda: self._commit(state, folder=folder, writes=writes), state.step) if self._gang.rank == 0 else True
            committed = self._gang.all(bool(done))
        if not committed:
            self.num_failures += 1
            if self._gang.rank == 0:
                self._attempt(lambda: self._store.storage.delete(key), state.step)
        return committed

    def _attempt(self, act: Callable[[], _T], step: int) -> _T | None:
        """Returns what `act` returns, or None after logging why the file system refused."""
        try:
            return act()
        except OSError as error:
            logger.error("checkpoint of step %d not written: %s", step, error)
            return None

    def _write_own(self, state: TrainingState, *, folder: Path) -> RankWrite:
        data = self._snapshot.take()
        rank, world_size = self._gang.rank, self._gang.world_size
        rng = {"next_step_seed": stream_seed(state.seed, step=state.step, rank=rank)}  # generators are seeded anew at each step
        index = canonical_json(RankIndex(rank=rank, world_size=world_size, fragments=self._snapshot.fragments, rng=rng))
        make_folder(folder)
        write = RankWrite(
            _write(folder, data_name(rank), data),
            _write(folder, index_name(rank), index),
        )
        sync_folder(folder)
        return write

    def _commit(self, state: TrainingState, *, folder: Path, writes: Sequence[RankWrite]) -> bool:
        own = (_write(folder, STATE_NAME, canonical_json(state)), _write(folder, MODEL_CONFIG_NAME, canonical_json(self._model_config)))
        sync_folder(folder)
        files = sorted((*own, *(entry for write in writes for entry in (write.data, write.index))), key=lambda entry: entry.path)
        commit = CommitRecord(
            step=state.step,
            epoch=self._epoch,
            folder=folder.relative_to(self._store.artifact_dir).as_posix(),
            files=tuple(files),
            world_size=self._gang.world_size,
            committed_at=time.time(),
        ).sealed()
        try:
            self._store.storage.create_exclusive(self._store.layout.commit(state.step), commit.to_bytes())
        except AlreadyExistsError:  # a start that was taken for dead finished its commit first: it holds this step, and it stays
            logger.warning("step %d is committed already by another start; this one's copy is removed", state.step)
            self._store.storage.delete(self._store.layout.checkpoint(state.step, self._epoch))
        return True


def _write(folder: Path, name: str, data: bytes | memoryview) -> FileEntry:
    """Writes one file durably; the hash is of the bytes in memory, so what the disk did to them is found when they are read."""
    write_durably(folder / name, data)  # type: ignore[arg-type]  # any buffer will do
    return FileEntry(path=name, size=len(data), xxh3=xxhash.xxh3_128(data).hexdigest())


def _halves(digest: str) -> tuple[int, int]:
    """Returns a 128-bit hex digest as two signed 64-bit numbers."""
    whole = int(digest, 16)
    high, low = whole >> 64, whole & _MASK_64
    return (high - (1 << 64) if high >> 63 else high, low - (1 << 64) if low >> 63 else low)


def _joined(halves: Sequence[int]) -> str:
    return f"{(halves[0] & _MASK_64) << 64 | halves[1] & _MASK_64:032x}"
