"""Runs: their folder, their journal, and which artifact each stage of them is."""

import platform
import secrets
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cluster.layout import RunLayout
from cluster.process import owner_here
from cluster.storage import AlreadyExistsError, Storage, open_storage
from schemas.attempt import CancelRequest
from schemas.canonical import canonical_json
from schemas.config import RunConfig
from schemas.errors import InputError
from schemas.frozen import Frozen, thaw
from schemas.journal import Event, EventKind, RunFile, RunHandle, run_name_of
from schemas.safe_path import RelativePath
from schemas.stage import Stage
from tasks.library_versions import library_version

_VERSIONS_OF = ("torch", "deepspeed", "transformers", "tokenizers", "gigatoken", "pyarrow", "great-expectations", "prefect", "mlflow")


class Pointer(Frozen):
    """`runs/{run_id}/artifacts/{stage}.json`: the artifact folder this run uses for a stage; fixed when the stage starts."""

    key: RelativePath
    """The artifact's folder."""
    fingerprint: str
    """What it is."""


class Run:
    """One run's folder."""

    def __init__(self, storage: Storage, run_id: str) -> None:
        """Args: storage: where runs lie. run_id: the run."""
        self.storage, self.layout = storage, RunLayout(run_id)
        self._next_sequence = 0

    @property
    def name(self) -> str:
        """The readable name used everywhere: `demo-7f3a`."""
        return run_name_of(self.layout.run_id)

    def read(self) -> RunFile:
        """Returns what the run was asked to do. Raises InputError when there is no such run."""
        try:
            return RunFile.model_validate_json(self.storage.read(self.layout.config))
        except FileNotFoundError as error:
            known = list_runs(self.storage)
            nearest = f"; newest: {', '.join(known[:3])}" if known else ""
            raise InputError(f"no run {self.layout.run_id!r} in {self.storage.url}{nearest}", mend="headrace status lists the runs") from error

    def config(self) -> RunConfig:
        """Returns the resolved configuration."""
        return RunConfig.model_validate(thaw(self.read().config))

    def append(
        self,
        kind: EventKind,
        message: str = "",
        *,
        stage: Stage | None = None,
        artifact_key: str = "",
        figures: Mapping[str, Any] | None = None,
    ) -> Event:
        """Appends an event under the next free number and returns it."""
        self._next_sequence = self._next_sequence or len(self.storage.names(self.layout.journal))  # numbers have no gaps
        while True:
            event = Event(
                sequence=self._next_sequence,
                at=time.time(),
                kind=kind,
                stage=stage,
                message=message,
                artifact_key=artifact_key,
                figures=dict(figures or {}),
            )
            self._next_sequence += 1
            try:
                self.storage.create_exclusive(f"{self.layout.journal}/{event.sequence:06d}.json", canonical_json(event))
            except AlreadyExistsError:
                continue
            return event

    def events(self, *, after: int = -1) -> tuple[Event, ...]:
        """Returns the events with a sequence above `after`, in order."""
        names = [name for name in self.storage.names(self.layout.journal) if int(name.removesuffix(".json")) > after]
        return tuple(Event.model_validate_json(self.storage.read(f"{self.layout.journal}/{name}")) for name in names)

    def ask_to_stop(self, reason: str) -> None:
        """Writes the wish that whoever controls the run stops it, whatever it does at that moment: running a job, or anything between two."""
        number = len(self.storage.names(self.layout.cancel_wishes))
        wish = canonical_json(CancelRequest(reason=reason, at=time.time()))
        while True:
            try:
                self.storage.create_exclusive(self.layout.cancel_wish(number), wish)
            except AlreadyExistsError:  # another one asked at the same moment
                number += 1
                continue
            return

    def stop_asked(self, since: float) -> bool:
        """Whether somebody asked to stop at or after `since` (seconds since the Unix epoch): older wishes were for an earlier control process."""
        wishes = self.storage.names(self.layout.cancel_wishes)
        if not wishes:
            return False
        newest = CancelRequest.model_validate_json(self.storage.read(f"{self.layout.cancel_wishes}/{wishes[-1]}"))
        return newest.at >= since

    def pointer(self, stage: Stage) -> Pointer | None:
        """Returns the artifact that this run uses for `stage`, or None before the stage started."""
        key = self.layout.artifact(stage)
        return Pointer.model_validate_json(self.storage.read(key)) if self.storage.exists(key) else None

    def point(self, stage: Stage, pointer: Pointer) -> Pointer:
        """Fixes the artifact of a stage, once; returns the one that is fixed."""
        try:
            self.storage.create_exclusive(self.layout.artifact(stage), canonical_json(pointer))
        except AlreadyExistsError:
            present = self.pointer(stage)
            assert present is not None
            return present
        return pointer


def create_run(config: RunConfig, *, project_dir: Path, recipe: str, overrides: tuple[str, ...] = (), from_stage: Stage | None = None) -> RunHandle:
    """Creates a run's folder and returns its handle."""
    storage = open_storage(config.storage.root)
    while True:
        stamp = datetime.now(UTC).strftime("%Y%m%dt%H%M%S")
        run_id = f"{config.name}-{stamp}-{secrets.token_hex(2)}"
        file = RunFile(
            run_id=run_id,
            recipe=recipe,
            overrides=overrides,
            from_stage=from_stage,
            project_dir=str(project_dir),
            state_dir=config.state,
            config=config.model_dump(mode="json"),
            created_at=time.time(),
            created_by=owner_here(),
            argv=tuple(sys.argv),
        )
        try:
            storage.create_exclusive(RunLayout(run_id).config, canonical_json(file))
        except AlreadyExistsError:
            continue
        return RunHandle(run_id=run_id, storage_root=storage.url, state_dir=config.state)


def open_run(handle: RunHandle) -> Run:
    """Returns the run that a handle names."""
    return Run(open_storage(handle.storage_root), handle.run_id)


def list_runs(storage: Storage) -> tuple[str, ...]:
    """Returns the ids of all runs, newest first."""
    names = [name for name in storage.names("runs") if storage.exists(RunLayout(name).config)]
    return tuple(sorted(names, key=lambda name: name.rsplit("-", 2)[-2:], reverse=True))


def provenance_of(run_id: str) -> dict[str, Any]:
    """Returns the fields of `schemas.artifact.Provenance` for this process, as plain data."""
    return {
        "run_id": run_id,
        "created_at": "",
        "created_by": owner_here(),
        "argv": tuple(sys.argv),
        "commit": _commit(),
        "versions": {"python": platform.python_version(), **{name: library_version(name) for name in _VERSIONS_OF}},
    }


def _commit() -> str:
    """The git commit of this checkout, or empty: an installed copy has none."""
    checkout = Path(__file__).resolve().parent.parent
    if not (checkout / ".git").exists():
        return ""
    try:
        answer = subprocess.run(("git", "-C", str(checkout), "rev-parse", "HEAD"), capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return answer.stdout.strip()
