"""A store with artifacts, runs and registrations in it, as the pipeline leaves them, made in milliseconds: no stage is run."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from cluster.layout import RunLayout, registry_claim
from cluster.process import owner_here
from cluster.storage import FileStorage, file_entry
from schemas.artifact import RECORD_NAME, ArtifactRecord, Provenance
from schemas.canonical import canonical_json, hash_of
from schemas.config import RunConfig
from schemas.journal import EventKind, RunFile
from schemas.stage import Stage
from tasks.register.registry import RegistryClaim
from tasks.runs import Pointer, Run
from tasks.store import Identity, Store
from tests.fakes.in_process_work import config_with

OLD_S = 40 * 86_400.0
"""Age of what is made here, so that nothing is kept for being young."""


@dataclass
class StoredChain:
    """Makes what a store holds."""

    storage: FileStorage
    owner: str = field(default_factory=owner_here)
    config: RunConfig = field(default_factory=config_with)
    _number: int = 0

    def finish(self, stage: Stage, *inputs: ArtifactRecord, variant: str = "a", owner: str = "", age_s: float = OLD_S) -> ArtifactRecord:
        """Commits an artifact of two data files, made from `inputs`."""
        contents = {record.stage.value: record.content_hash for record in inputs}
        identity = Identity(stage=stage, name=self.config.name, recipe={"variant": variant}, inputs=contents)
        store = Store(self.storage)
        key = store.place(identity, rebuild=False)
        folder = self.storage.root / key
        (folder / "data").mkdir(parents=True)
        for name in ("manifest.json", "data/part-0.bin"):
            (folder / name).write_text(f"{key} {name}")
        record = ArtifactRecord(
            stage=stage,
            stage_version=stage.version,
            name=self.config.name,
            key=key,
            fingerprint=identity.fingerprint,
            content_hash=hash_of(["content", key]),
            inputs=tuple(record.ref() for record in inputs),
            recipe=identity.recipe,
            files=tuple(file_entry(folder / name, relative_to=folder) for name in ("manifest.json", "data/part-0.bin")),
            summary={},
            provenance=_provenance(owner or self.owner, age_s=age_s),
        ).sealed()
        (folder / RECORD_NAME).write_bytes(record.to_bytes())
        return record

    def model(self, variant: str = "a", *, owner: str = "", age_s: float = OLD_S) -> dict[Stage, ArtifactRecord]:
        """Commits an artifact of every stage, each made from those before it."""
        records: dict[Stage, ArtifactRecord] = {}
        for stage in self.config.stages:
            inputs = [records[source] for source in self.config.inputs_of(stage)]
            records[stage] = self.finish(stage, *inputs, variant=variant, owner=owner, age_s=age_s)
        return records

    def run(self, records: Sequence[ArtifactRecord], *, owner: str = "", ended: EventKind | None = EventKind.RUN_FINISHED) -> Run:
        """Leaves a run that points to artifacts. Later ones are newer."""
        self._number += 1
        run_id = f"{self.config.name}-20260101t{self._number:06d}-{self._number:04x}"
        file = RunFile(
            run_id=run_id,
            recipe="r.yaml",
            overrides=(),
            from_stage=None,
            project_dir=str(self.storage.root),
            state_dir=str(self.storage.root / "state"),
            config=self.config.model_dump(mode="json"),
            created_at=time.time(),
            created_by=owner or self.owner,
            argv=(),
        )
        self.storage.create_exclusive(RunLayout(run_id).config, canonical_json(file))
        run = Run(self.storage, run_id)
        run.append(EventKind.RUN_STARTED)
        for record in records:
            run.point(record.stage, Pointer(key=record.key, fingerprint=record.fingerprint))
        if ended is not None:
            run.append(ended)
        return run

    def claim(self, model: dict[Stage, ArtifactRecord], *, run: Run) -> RegistryClaim:
        """Registers a model, as far as storage knows."""
        claim = RegistryClaim(root_hash=model[Stage.EXPORT].content_hash, model_name=self.config.name, run_id=run.layout.run_id)
        self.storage.create_exclusive(registry_claim(claim.root_hash), canonical_json(claim))
        return claim

    def finished(self) -> set[str]:
        """The artifacts that have a record."""
        return {path.parent.relative_to(self.storage.root).as_posix() for path in self.storage.root.glob("*/*/record.json")}


def _provenance(owner: str, *, age_s: float) -> Provenance:
    at = datetime.fromtimestamp(time.time() - age_s, UTC).isoformat(timespec="seconds")
    return Provenance(run_id="r", created_at=at, created_by=owner, argv=(), commit="", versions={})
