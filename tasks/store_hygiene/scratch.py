"""Scratch folders that ended attempts left on this machine: of killed agents, and what a scheduler wrote beside an agent that removed its own."""

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from cluster.attempt import read_exit, read_spec
from cluster.layout import ArtifactLayout, AttemptLayout
from cluster.storage import Storage
from schemas.journal import RunFile
from schemas.stage import Stage
from tasks.job_request import scratch_of
from tasks.runs import Run, list_runs
from tasks.store_hygiene.roots import is_finished


def leftover_scratch(storage: Storage, *, now: float, young_s: float) -> tuple[Path, ...]:
    """Returns the scratch folders of this user, of attempts of this store that ended longer than `young_s` ago.

    What belongs to no run of the store is another store's, and not looked at.
    """
    runs = set(list_runs(storage))
    folders = {scratch_of(Path(file.state_dir)) for run_id in sorted(runs) if (file := _file_of(storage, run_id)) is not None}
    return tuple(
        place
        for folder in sorted(folders)
        if os.access(folder, os.R_OK | os.X_OK)  # it is here, and not hidden in another user's home
        for place in sorted(folder.iterdir())
        if (status := _status_of(place)) is not None and stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
        if (ended_at := _ended_at(storage, place, runs=runs)) is not None and now - ended_at > young_s
    )


def remove_scratch(place: Path) -> None:
    """Removes a scratch folder. Raises OSError."""
    shutil.rmtree(place)


def _file_of(storage: Storage, run_id: str) -> RunFile | None:
    try:
        return Run(storage, run_id).read()
    except ValidationError:  # `store gc` refuses to remove anything while a run cannot be read, and says so
        return None


def _ended_at(storage: Storage, place: Path, *, runs: set[str]) -> float | None:
    """Returns when the attempt ended whose key a scratch folder is named after; None when it has not, or nothing is known of it."""
    run_id, _, rest = place.name.rpartition("-")[0].rpartition("-")
    if run_id not in runs or rest not in set(Stage):
        return None
    run = Run(storage, run_id)
    pointer = run.pointer(Stage(rest))
    for attempt in _attempts(storage, pointer.key) if pointer is not None else ():
        if read_spec(storage, attempt).key == place.name:
            ended = read_exit(storage, attempt)
            return ended.ended_at if ended is not None else None
    if not is_finished(reversed(run.events())) or (status := _status_of(place)) is None:
        return None
    return status.st_mtime  # its artifact is gone


def _status_of(place: Path) -> os.stat_result | None:
    """Returns what `lstat` says; None when the folder is gone: an agent removes its own as it ends."""
    try:
        return place.lstat()
    except FileNotFoundError:
        return None


def _attempts(storage: Storage, artifact: str) -> Iterator[AttemptLayout]:
    layout = ArtifactLayout(artifact)
    attempts = (AttemptLayout(f"{layout.attempts}/{name}") for name in storage.names(layout.attempts))
    return (attempt for attempt in attempts if storage.exists(attempt.spec))
