"""Making a checkpoint true: state and model config beside the ranks' files, one exclusively created commit, then the rules of retention.

Runs in the writer process of rank 0, never in a training thread. Knows no torch.
"""

import logging
import time
from pathlib import Path
from typing import Any

import xxhash

from cluster.durable import sync_folder, write_durably
from cluster.epoch import newest_epoch
from cluster.storage import AlreadyExistsError
from schemas.artifact import FileEntry
from schemas.canonical import canonical_json
from schemas.checkpoint import CommitRecord, TrainingState
from schemas.execution_config import CheckpointConfig
from schemas.frozen import Frozen, JsonObject, thaw
from tasks.train.checkpoint.channel import Commit
from tasks.train.checkpoint.commit import MODEL_CONFIG_NAME, STATE_NAME, CheckpointStore, verify
from tasks.train.checkpoint.retention import Retention

logger = logging.getLogger(__name__)


class FencedError(OSError):
    """A newer start of this artifact's ranks exists: what this one still has to commit is not wanted any more, and fails as a full disk would."""


class Lead(Frozen):
    """What the writer that commits knows beyond the others."""

    world_size: int
    """Ranks."""
    model_config_json: JsonObject
    """What an exported model's `config.json` holds."""
    base_state: TrainingState
    """Template of `state.json`: whatever does not change from step to step."""
    rules: CheckpointConfig
    """What is kept."""
    verified_step: int | None
    """The step that this start went on from; None at the very start."""
    shared_steps: int
    """States up to this step do not depend on where training stops."""


class Committer:
    """Commits the checkpoints of one start of ranks, and removes what the rules no longer keep."""

    def __init__(self, artifact_dir: Path, *, epoch: int, lead: Lead) -> None:
        """Args: artifact_dir: the artifact's folder. epoch: this start."""
        self._store, self._epoch, self._lead = CheckpointStore(artifact_dir), epoch, lead
        self._retention = Retention(self._store, config=lead.rules, epoch=epoch, verified_step=lead.verified_step, shared_steps=lead.shared_steps)

    def commit(self, request: Commit) -> None:
        """Commits a checkpoint whose ranks' files are durable.

        Raises:
            FencedError: a newer start exists.
            OSError: something could not be written; no commit was made by this call.
        """
        self._refuse_when_fenced()
        folder = self._store.artifact_dir / request.folder
        state = TrainingState.model_validate({**self._lead.base_state.model_dump(), **request.state})
        own = (_write(folder, STATE_NAME, state), _write(folder, MODEL_CONFIG_NAME, thaw(self._lead.model_config_json)))
        sync_folder(folder)
        entries = (*own, *(FileEntry.model_validate(entry) for entry in request.files))
        record = CommitRecord(
            step=request.step,
            epoch=self._epoch,
            folder=request.folder,
            files=tuple(sorted(entries, key=lambda entry: entry.path)),
            world_size=self._lead.world_size,
            committed_at=time.time(),
        ).sealed()
        key = self._store.layout.commit(request.step)
        try:
            self._store.storage.create_exclusive(key, record.to_bytes())
        except AlreadyExistsError:
            if self._give_way(request.step):
                self.discard(request.step, request.folder)
            else:
                self._store.storage.create_exclusive(key, record.to_bytes())

    def discard(self, step: int, folder: str) -> None:
        """Removes a checkpoint that the ranks gave up, as far as the file system lets it; the next start sweeps the rest.

        Its commit may be there all the same (its folder's fsync failed, say): it goes first, so that no commit names data that are gone.
        """
        try:
            if step in self._store.steps() and (commit := self._store.read(step)) is not None and commit.folder == folder:
                self._store.storage.delete(self._store.layout.commit(step))
                sync_folder(self._store.artifact_dir / "commits")
            self._store.storage.delete(f"{self._store.layout.key}/{folder}")
        except OSError as error:
            logger.warning("%s stays for now: %s", folder, error)

    def tidy(self) -> None:
        """Applies the rules of retention. Raises OSError."""
        self._retention.apply()

    def _refuse_when_fenced(self) -> None:
        """A start that was taken for dead may still run on a machine that was cut off; from here on nothing that it makes becomes true."""
        newest = newest_epoch(self._store.storage, self._store.layout)
        if newest > self._epoch:
            raise FencedError(f"epoch {newest} has begun; this one is {self._epoch}")

    def _give_way(self, step: int) -> bool:
        """Whether the commit that is there already holds the step. A damaged one is withdrawn, and marked, so that ours can take its place.

        A start that was taken for dead may have finished its commit first; or its files were swept away before it did.
        """
        commit = self._store.read(step)
        findings: tuple[str, ...] = (f"{self._store.layout.commit(step)}: the record is damaged",)
        if commit is not None:
            findings = verify(commit, folder=self._store.folder(commit))
            if not findings:
                logger.warning("step %d is committed already by another start; this one's copy is removed", step)
                return True
        self._store.withdraw(step, epoch=self._epoch, findings=findings)
        return False


def _write(folder: Path, name: str, value: Any) -> FileEntry:
    """Writes one small file durably and returns its entry; the hash is of the bytes in memory."""
    data = canonical_json(value)
    write_durably(folder / name, data)
    return FileEntry(path=name, size=len(data), xxh3=xxhash.xxh3_128(data).hexdigest())
