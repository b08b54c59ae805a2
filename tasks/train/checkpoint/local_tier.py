"""The node-local tier: frequent checkpoints on a disk of the node, for restarts that come back to it. Knows no torch.

    {checkpoint.local_dir}/{artifact}-{hash of where it lies}/
        checkpoints/step-00001200.e000003/    rank-0001.bin rank-0001.json rank-0001.state.json   (of this node's ranks)
        records/rank-0001/step-00001200.e000003.json   written last, by the rank's own writer

A rank's record says that its share is durable; a checkpoint is whole when every rank has a record of the same step and epoch. No rank
waits for another and nothing is shared: the newest step that all ranks can verify is found when they start again.
"""

import contextlib
import logging
import re
from dataclasses import dataclass
from pathlib import Path

import xxhash

from cluster.durable import make_folder, sync_folder, write_durably
from cluster.layout import step_name
from cluster.storage import entries_of
from schemas.canonical import canonical_json
from schemas.checkpoint import LocalRecord
from schemas.sealed import SealBrokenError

logger = logging.getLogger(__name__)

_RECORD = re.compile(r"^step-(?P<step>\d{8,})\.e(?P<epoch>\d{6,})\.json$")


@dataclass(frozen=True, order=True)
class LocalStep:
    """One state of the training, and the start that wrote it."""

    step: int
    epoch: int

    @property
    def name(self) -> str:
        """`step-00001200.e000003`."""
        return f"{step_name(self.step)}.e{self.epoch:06d}"


@dataclass(frozen=True)
class LocalTier:
    """What this node holds of one artifact."""

    folder: Path
    """One artifact's, in one storage: two trainings of one recipe never share it."""

    @classmethod
    def of(cls, local_dir: str, *, artifact_dir: Path) -> "LocalTier":
        """Returns the tier of the artifact in `artifact_dir`, which is the same path on all nodes."""
        place = xxhash.xxh3_64_hexdigest(str(artifact_dir.absolute()).encode())
        return cls(Path(local_dir) / f"{artifact_dir.name}-{place}")

    def steps(self, rank: int) -> tuple[LocalStep, ...]:
        """Returns what a rank has records of, ascending, whether or not they verify."""
        records = self._records(rank)
        found = (_RECORD.match(path.name) for path in records.iterdir()) if records.is_dir() else iter(())
        return tuple(sorted(LocalStep(int(match["step"]), epoch=int(match["epoch"])) for match in found if match))

    def read(self, rank: int, at: LocalStep) -> LocalRecord | None:
        """Returns a rank's record, or None when it is missing or damaged. Raises OSError where the disk does not say."""
        try:
            record = LocalRecord.from_bytes((self._records(rank) / f"{at.name}.json").read_bytes())
        except (FileNotFoundError, SealBrokenError):
            return None
        return record if (record.rank, record.step, record.epoch) == (rank, at.step, at.epoch) else None

    def all_records(self, at: LocalStep) -> tuple[LocalRecord, ...]:
        """Returns the intact records of all ranks that saved on this node."""
        folders = sorted((self.folder / "records").glob("rank-*"))
        records = (self.read(int(folder.name.removeprefix("rank-")), at) for folder in folders)
        return tuple(record for record in records if record is not None)

    def publish(self, record: LocalRecord) -> None:
        """Writes a rank's record, whose files are durable. Raises OSError."""
        folder = self._records(record.rank)
        make_folder(folder)
        write_durably(folder / f"{LocalStep(record.step, epoch=record.epoch).name}.json", canonical_json(record.sealed()))
        sync_folder(folder)

    def thin(self, rank: int, *, below: int) -> None:
        """Removes a rank's checkpoints of earlier steps than `below`. Raises OSError."""
        for at in self.steps(rank):
            if at.step < below:
                self._remove(rank, at)

    def forget(self, rank: int) -> None:
        """Removes all that a rank has here: the training is over. Raises OSError."""
        checkpoints, records = self.folder / "checkpoints", self._records(rank)
        for folder in (*entries_of(checkpoints), checkpoints):
            self._remove_files(rank, folder)
        for record in entries_of(records):
            record.unlink(missing_ok=True)
        for folder in (records, records.parent, self.folder):
            _remove_if_empty(folder)

    def _remove(self, rank: int, at: LocalStep) -> None:
        """Removes one checkpoint of a rank: the record first, so that it never names files that are gone."""
        (self._records(rank) / f"{at.name}.json").unlink(missing_ok=True)
        self._remove_files(rank, self.folder / "checkpoints" / at.name)

    def _remove_files(self, rank: int, folder: Path) -> None:
        """Removes a rank's files from a folder, and the folder with the last of them, whichever rank's that is."""
        for path in entries_of(folder):
            if path.name.startswith(f"rank-{rank:04d}."):
                path.unlink(missing_ok=True)
        _remove_if_empty(folder)

    def _records(self, rank: int) -> Path:
        return self.folder / "records" / f"rank-{rank:04d}"


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):  # another rank has files in it still, or was here first
        folder.rmdir()
