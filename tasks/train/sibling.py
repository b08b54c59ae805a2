"""Going on from a shorter run: under constant and warmup-stable-decay schedules, how long is not what.

Two training artifacts of one name whose trajectories are equal pass through the same states, up to where either begins to
decay. So a longer run starts from the newest verified checkpoint of a sibling: its files are linked (or copied) into our
folder and get a commit of our own, and from then on nothing depends on the sibling.
"""

import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pydantic import ValidationError

from cluster.acts import add_act, read_acts
from cluster.layout import ArtifactLayout, parse_artifact_folder, step_name
from cluster.storage import Storage, hash_file, make_folder, path_below, share, sync_folder
from schemas.act import acts_behind
from schemas.canonical import hash_of
from schemas.checkpoint import CommitRecord
from schemas.config import RunConfig
from schemas.errors import UnsafeFileError
from schemas.frozen import Frozen
from schemas.stage import Stage
from tasks.train.checkpoint.commit import checkpoint_folder, committed_steps, parse_commit, verify
from tasks.train.schedule import shared_steps

logger = logging.getLogger(__name__)

TRAJECTORY_NAME = "trajectory.json"
IMPORTED_EPOCH = -1
"""The epoch in the commit of an imported checkpoint: no start of this artifact wrote it."""


class Trajectory(Frozen):
    """`trajectory.json`: which states a training artifact passes through."""

    hash: str
    """Of the stage's version, the recipe without its stopping point, and the content of all inputs."""
    total_steps: int
    """Where this artifact stops."""
    shared_steps: int
    """States up to this step do not depend on the stopping point."""

    @classmethod
    def of(cls, config: RunConfig, *, inputs: Mapping[str, str], total_steps: int) -> Self:
        """Returns the trajectory of a recipe.

        Args:
            config: the run's configuration.
            inputs: content hashes of the input artifacts, and of what comes from outside the store (a pretrained model), by name.
            total_steps: where it stops.
        """
        identity = {"stage_version": Stage.TRAIN.version, "recipe": config.trajectory(), "inputs": dict(inputs)}
        shared = shared_steps(total_steps, schedule=config.training.schedule)
        return cls(hash=hash_of(identity), total_steps=total_steps, shared_steps=shared)


@dataclass(frozen=True)
class Imported:
    """What was taken over."""

    step: int
    key: str
    """The sibling."""


def import_from_sibling(storage: Storage, *, layout: ArtifactLayout, name: str, trajectory: Trajectory) -> Imported | None:
    """Takes over the newest shared checkpoint that verifies, unless this artifact has commits of its own (or had: it may have been quarantined).

    A rebuild takes nothing over: whoever asks for one wants the training made anew, and a sibling may have begun with what is rebuilt.

    Args:
        storage: shared storage; only a mounted folder can be imported from.
        layout: this artifact.
        name: the recipe's name.
        trajectory: of this artifact.
    """
    target, mine = storage.local_path(layout.key), parse_artifact_folder(layout.key.rpartition("/")[2])
    is_rebuild = mine is not None and mine[2] > 0
    if target is None or is_rebuild or committed_steps(storage, layout) or storage.names(f"{layout.key}/quarantine"):
        return None
    candidates = sorted(_candidates(storage, layout=layout, name=name, trajectory=trajectory), key=lambda candidate: (-candidate.step, candidate.key))
    for candidate in candidates:
        try:
            commit = _take_over(storage, candidate, layout=layout, target=target)
        except FileNotFoundError as error:  # the sibling trains too, and its retention has removed the checkpoint meanwhile
            logger.info("step %d of %s is gone, the next one is tried: %s", candidate.step, candidate.key, error)
            storage.delete(f"{layout.key}/{_imported_folder(candidate.step)}")
            continue
        if commit is not None:
            storage.create_exclusive(layout.commit(commit.step), commit.to_bytes())
            return candidate
    return None


def _imported_folder(step: int) -> str:
    return f"checkpoints/{step_name(step)}.imported"


def _take_over(storage: Storage, candidate: Imported, *, layout: ArtifactLayout, target: Path) -> CommitRecord | None:
    """Links a sibling's checkpoint into the artifact's folder `target` and returns the commit to write; None when it does not verify.

    Raises:
        FileNotFoundError: the checkpoint was removed meanwhile.
        UnsafeFileError: a symbolic link lies where ours would go.
    """
    commit = parse_commit(storage.read(ArtifactLayout(candidate.key).commit(candidate.step)), step=candidate.step)
    source = storage.local_path(candidate.key)
    if commit is None or source is None:
        return None
    try:
        place = checkpoint_folder(commit, artifact_dir=source)
        if verify(commit, folder=place):
            return None
    except UnsafeFileError as error:  # the sibling's own run, or `headrace verify`, refuses it aloud
        logger.warning("step %d of %s is passed over: %s", candidate.step, candidate.key, error.what)
        return None
    folder = _imported_folder(commit.step)
    _link_files(commit, source=place, target=path_below(target, folder))
    _take_over_acts(storage, ArtifactLayout(candidate.key), commit=commit, layout=layout)
    return commit.model_copy(update={"folder": folder, "epoch": IMPORTED_EPOCH, "committed_at": time.time(), "record_hash": ""}).sealed()


def _take_over_acts(storage: Storage, sibling: ArtifactLayout, *, commit: CommitRecord, layout: ArtifactLayout) -> None:
    """Makes what a sibling did before its commit, and what changed numbers, our own; what a killed import left is not written twice."""
    ours = {act.model_copy(update={"record_hash": ""}) for act in read_acts(storage, layout)}
    for act in acts_behind(read_acts(storage, sibling), step=commit.step, epoch=commit.epoch):
        imported = act.model_copy(update={"epoch": IMPORTED_EPOCH - 1, "record_hash": ""})  # older than the imported commit, so no rewind voids it
        if imported not in ours:
            add_act(storage, layout, imported)


def _candidates(storage: Storage, *, layout: ArtifactLayout, name: str, trajectory: Trajectory) -> Iterator[Imported]:
    """Yields the shared steps that siblings have committed. Folders of the same fingerprint are no siblings: they are this artifact, made before."""
    mine = parse_artifact_folder(layout.key.rpartition("/")[2])
    for folder in storage.names(Stage.TRAIN.value):
        parsed, key = parse_artifact_folder(folder), f"{Stage.TRAIN.value}/{folder}"
        if parsed is None or parsed[0] != name or (mine is not None and parsed[1] == mine[1]):
            continue
        try:
            other = Trajectory.model_validate_json(storage.read(f"{key}/{TRAJECTORY_NAME}"))
        except FileNotFoundError:
            continue  # nothing trained there yet
        except ValidationError:
            continue  # damaged, so no candidate; the sibling's own run reports it
        if other.hash == trajectory.hash:
            shared = min(other.shared_steps, trajectory.shared_steps)
            yield from (Imported(step, key) for step in committed_steps(storage, ArtifactLayout(key)) if step <= shared)


def _link_files(commit: CommitRecord, *, source: Path, target: Path) -> None:
    """Gives the sibling's immutable files a second name; copies across file systems. What a killed import left is taken when it is whole."""
    make_folder(target)
    for entry in commit.files:
        place = target / entry.path
        if place.exists() and hash_file(place) == entry.xxh3:
            continue
        place.unlink(missing_ok=True)
        try:
            os.link(source / entry.path, place)
        except OSError:  # another file system, or one without hard links
            shutil.copyfile(source / entry.path, place)
            share(place)
            descriptor = os.open(place, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    sync_folder(target)
