"""What a node's mirror gets of a training on object storage before ranks start: acts, markers, the epoch, commits and the newest checkpoints."""

import logging
import secrets
import shutil
from collections.abc import Iterable

from cluster.acts import read_acts
from cluster.epoch import newest_epoch
from cluster.layout import ArtifactLayout
from cluster.mirror import Mirror
from cluster.patience import PatientStorage
from cluster.storage import FileStorage, path_below
from schemas.act import Standing, standing_of
from schemas.checkpoint import CommitRecord
from schemas.errors import VerificationError
from schemas.sealed import SealBrokenError

logger = logging.getLogger(__name__)


class Inbound:
    """From storage to one mirror. Everything raises UnreachableError when storage fails."""

    def __init__(self, mirror: Mirror, *, storage: PatientStorage, layout: ArtifactLayout, spare_commits: int) -> None:
        """Args: as for `cluster.agent.relay.CheckpointRelay`."""
        self._mirror, self._storage, self._layout, self._spare = mirror, storage, layout, spare_commits
        self._local = FileStorage(mirror.root)
        self.damaged: set[int] = set()
        """Steps whose files in storage are not what was committed."""

    def bring_names(self, folder: str) -> tuple[str, ...]:
        """Copies the small objects of a folder that are not here, and returns their keys."""
        present = frozenset(self._local.names(folder))
        brought = tuple(f"{folder}/{name}" for name in self._storage.names(folder) if name not in present)
        for key in brought:
            self._local.create_exclusive(key, self._storage.read(key))
        return brought

    def bring_epoch(self) -> int:
        """Copies the newest epoch and returns its number."""
        number = newest_epoch(self._storage, self._layout)
        epoch = self._layout.epoch(number)
        if not self._local.exists(epoch):
            self._local.create_exclusive(epoch, self._storage.read(epoch))
        return number

    def bring_commits(self, steps: Iterable[int]) -> dict[int, bytes]:
        """Puts these commits, and the data of the newest that verify, in place of what is here; returns the commits.

        Data that do not come are missing here: ranks find that out and fall back.
        """
        for folder in (self._layout.commits, self._layout.checkpoints):
            self._discard(folder)
        self.damaged.clear()
        standing = standing_of(read_acts(self._local, self._layout))
        commits, left = dict[int, bytes](), 1 + self._spare
        for step in sorted(steps, reverse=True):
            data = commits[step] = self._storage.read(self._layout.commit(step))
            if left and self._bring_data(step, data, standing=standing):
                left -= 1
            self._local.create_exclusive(self._layout.commit(step), data)
        return commits

    def _discard(self, folder: str) -> None:
        """Removes a folder at once: a process that was killed a moment ago may still be writing into it."""
        path, aside = path_below(self._mirror.root, folder), self._mirror.root / f".old-{secrets.token_hex(4)}"
        if path.exists():
            path.rename(aside)
            shutil.rmtree(aside, ignore_errors=True)  # what is left goes with the mirror

    def _bring_data(self, step: int, data: bytes, *, standing: Standing) -> bool:
        """Brings the files of a commit and returns whether they are all here."""
        try:
            commit = CommitRecord.from_bytes(data)
            if standing.voids(step=commit.step, epoch=commit.epoch):
                return False
            self._mirror.bring(f"{self._layout.key}/{commit.folder}", commit.files)
        except (SealBrokenError, VerificationError) as error:
            logger.warning("a checkpoint in storage is passed over: %s", error)
            self.damaged.add(step)
            return False
        return True
