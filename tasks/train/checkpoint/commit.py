"""Commits of a training artifact: which there are, what they name, and whether a committed checkpoint is still what was committed."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cluster.layout import ArtifactLayout, step_name
from cluster.storage import AlreadyExistsError, FileStorage, Storage, hash_file, path_below
from schemas.artifact import FileEntry
from schemas.canonical import canonical_json
from schemas.checkpoint import CommitRecord, QuarantineRecord
from schemas.sealed import SealBrokenError
from tasks.train.checkpoint.files import MODEL_CONFIG_NAME as MODEL_CONFIG_NAME
from tasks.train.checkpoint.files import STATE_NAME as STATE_NAME
from tasks.train.checkpoint.files import data_name as data_name
from tasks.train.checkpoint.files import index_name as index_name

logger = logging.getLogger(__name__)

FileState = Literal["intact", "missing", "wrong size", "wrong content"]
FILE_STATES: tuple[FileState, ...] = ("intact", "missing", "wrong size", "wrong content")


@dataclass(frozen=True)
class CheckpointStore:
    """The checkpoints of one training artifact, where compute can open them."""

    artifact_dir: Path
    """The artifact's folder."""

    @property
    def storage(self) -> Storage:
        """The storage that the artifact's folder lies in."""
        return FileStorage(self.artifact_dir.parent)

    @property
    def layout(self) -> ArtifactLayout:
        """Keys in that storage."""
        return ArtifactLayout(self.artifact_dir.name)

    def steps(self) -> tuple[int, ...]:
        """Returns the committed steps, ascending, whether or not they verify."""
        return committed_steps(self.storage, self.layout)

    def read(self, step: int) -> CommitRecord | None:
        """Returns the commit of `step`, or None when its record is damaged. Raises FileNotFoundError when there is none."""
        return parse_commit(self.storage.read(self.layout.commit(step)), step=step)

    def folder(self, commit: CommitRecord) -> Path:
        """Returns where the commit's files lie. Raises UnsafeFileError for a link on the way."""
        return checkpoint_folder(commit, artifact_dir=self.artifact_dir)

    def quarantine_key(self, commit_step: int, *, epoch: int) -> str:
        """Returns the key of the marker for a damaged commit, found in `epoch`."""
        return f"{self.layout.key}/quarantine/{step_name(commit_step)}.e{epoch:06d}.json"

    def withdraw(self, step: int, *, epoch: int, findings: tuple[str, ...]) -> None:
        """Marks the damaged commit of `step`, then removes it, so that the step can be committed again; its data stay as evidence."""
        key = self.layout.commit(step)
        raw = self.storage.read(key).decode(errors="backslashreplace") if self.storage.exists(key) else ""
        record = QuarantineRecord(step=step, found_in_epoch=epoch, findings=findings, commit=raw)
        try:
            self.storage.create_exclusive(self.quarantine_key(step, epoch=epoch), canonical_json(record))
        except AlreadyExistsError:
            logger.warning("step %d is marked as damaged already", step)
        self.storage.delete(key)

    def num_quarantined(self) -> int:
        """Returns the number of commits that were ever withdrawn."""
        return len(self.storage.names(f"{self.layout.key}/quarantine"))


def committed_steps(storage: Storage, layout: ArtifactLayout) -> tuple[int, ...]:
    """Returns the steps that have a commit, ascending."""
    names = (name for name in storage.names(layout.commits) if name.startswith("step-") and name.endswith(".json"))
    return tuple(sorted(int(name.removeprefix("step-").removesuffix(".json")) for name in names))


def parse_commit(data: bytes, *, step: int) -> CommitRecord | None:
    """Returns the commit record in `data`, or None when a byte of it changed."""
    try:
        commit = CommitRecord.from_bytes(data)
    except SealBrokenError:
        return None
    return commit if commit.step == step else None


def checkpoint_folder(commit: CommitRecord, *, artifact_dir: Path) -> Path:
    """Returns where the files of a commit lie.

    Raises:
        UnsafeFileError: a symbolic link is on the way, which could lead out of the artifact: no damage to fall back from, but for people to see.
    """
    return path_below(artifact_dir, commit.folder)


def file_state(folder: Path, entry: FileEntry) -> FileState:
    """Returns whether a committed file is what was committed. Other errors than absence are raised: "could not ask" is not "damaged".

    Raises:
        UnsafeFileError: it is a symbolic link, or below one that lies in `folder` (for `folder` itself: `checkpoint_folder`).
    """
    path = path_below(folder, entry.path)
    try:
        size = path.stat().st_size
        if size != entry.size:
            return "wrong size"
        return "intact" if hash_file(path) == entry.xxh3 else "wrong content"
    except FileNotFoundError:
        return "missing"


def findings_of(commit: CommitRecord, states: dict[str, FileState]) -> tuple[str, ...]:
    """Returns one line per damaged file; `states` is by path, absent files count as intact."""
    damaged = [(entry, state) for entry in commit.files if (state := states.get(entry.path, "intact")) != "intact"]
    return tuple(f"{commit.folder}/{entry.path}: {state}, the commit says {entry.size} bytes, xxh3 {entry.xxh3}" for entry, state in damaged)


def verify(commit: CommitRecord, *, folder: Path) -> tuple[str, ...]:
    """Re-hashes every file of a commit and returns what is wrong; empty: it verifies."""
    return findings_of(commit, {entry.path: file_state(folder, entry) for entry in commit.files})
