"""A stand-in for `tasks.work.Work` that runs a stage's items in this process, and makers of the corpora that token stages read."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from pydantic import BaseModel

from cluster.layout import ArtifactLayout
from cluster.storage import AlreadyExistsError, FileStorage, file_entry
from schemas.artifact import ArtifactRecord, FileEntry, Provenance, content_hash_of
from schemas.canonical import canonical_json
from schemas.config import RunConfig
from schemas.job import FileRead, ItemRecord, JobKind, JobSpec, RestartLimits, TaskSpec, WorkPlan
from schemas.manifest import AcceptedFile, CorpusManifest, Split
from schemas.stage import Stage
from tasks.entry import run_item
from tasks.file_hashes import FileHashes
from tasks.identity import identity_of
from tasks.store import Identity
from tasks.work import Draft, Work
from tests.fakes.plain_hashes import PlainHashes

Documents = Mapping[tuple[int, Split], Sequence[str]]
"""Texts by (group, split)."""

_PROVENANCE = Provenance(run_id="test", created_at="2026-01-01T00:00:00+00:00", created_by="me@here", argv=(), commit="", versions={})


def config_with(**sections: Any) -> RunConfig:
    """Returns a small valid configuration with the given sections."""
    base: dict[str, Any] = {
        "name": "test",
        "corpus": {"sources": ["nowhere"]},
        "model": {"config": {"model_type": "llama"}},
        "training": {"steps": 200, "global_batch_size": 8, "micro_batch_size": 4},
    }
    return RunConfig.model_validate(base | sections)


def commit(root: Path, stage: Stage, draft: Draft, *, key: str) -> ArtifactRecord:
    """Returns the record of a finished artifact (no file is written)."""
    return ArtifactRecord(
        stage=stage,
        stage_version=stage.version,
        name="test",
        key=key,
        fingerprint="0" * 64,
        content_hash=draft.content_hash or content_hash_of(draft.files),
        inputs=(),
        recipe={},
        files=draft.files,
        summary=json.loads(canonical_json(draft.summary)),
        provenance=_PROVENANCE,
    )


def write_corpus(root: Path, documents: Documents, *, key: str = "validate/test-000000000000", sources: Documents | None = None) -> ArtifactRecord:
    """Writes an accepted corpus as `validate` leaves it, and returns its record. `sources`: the documents' sources; default: all of `test`."""
    folder = root / key
    (folder / "accepted").mkdir(parents=True)
    files = []
    for (group, split), texts in documents.items():
        path = folder / f"accepted/g{group:04d}-{split}.parquet"
        names = ["test"] * len(texts) if sources is None else list(sources[group, split])
        columns = {"doc_id": [doc_id(text) for text in texts], "source": names, "path": ["a.txt"] * len(texts), "text": list(texts)}
        pq.write_table(pa.table(columns), path, compression="zstd")
        size = sum(len(text.encode()) for text in texts)
        files.append(AcceptedFile(group=group, split=split, file=file_entry(path, relative_to=folder), documents=len(texts), text_bytes=size))
    total = sum(file.documents for file in files)
    manifest = CorpusManifest(files=tuple(files), inputs=(), read=total, accepted=total, quarantined=0, reasons={})
    (folder / "manifest.json").write_bytes(canonical_json(manifest))
    entries = (*(file.file for file in files), file_entry(folder / "manifest.json", relative_to=folder))
    return commit(root, Stage.VALIDATE, Draft(files=entries, summary={}), key=key)


def doc_id(text: str) -> str:
    """Returns a document's id."""
    return xxhash.xxh3_128(text.encode()).hexdigest()


@dataclass
class InProcessWork:
    """What a stage's `build` asks of its `Work`, without jobs, leases or a store."""

    root: Path
    stage: Stage
    config: RunConfig
    inputs: Mapping[Stage, ArtifactRecord]
    key: str = ""
    epoch: int = 0
    notes: list[str] = field(default_factory=list)
    items_run: list[int] = field(default_factory=list)
    mirror: None = None
    is_rebuild: bool = False
    still_held: Callable[[], bool] = lambda: True

    def __post_init__(self) -> None:
        self.key = self.key or f"{self.stage.value}/test-000000000000"
        self.layout = ArtifactLayout(self.key)
        self.storage = FileStorage(self.root)

    @property
    def identity(self) -> Identity:
        """What the artifact is, from the real recipe and inputs."""
        contents = {stage: record.content_hash for stage, record in self.inputs.items()}
        return identity_of(self.stage, config=self.config, inputs=contents, hashes=PlainHashes())

    @property
    def output_dir(self) -> Path:
        return self.root / self.key

    def input_dir(self, stage: Stage, *files: FileEntry) -> Path:
        return self.root / self.inputs[stage].key

    def made(self, *files: FileEntry) -> Path:
        return self.output_dir

    def hashes(self) -> FileHashes:
        return FileHashes(self.state_dir / "file-hashes.sqlite")

    def note(self, message: str) -> None:
        self.notes.append(message)

    check_lease = Work.check_lease

    def publish_json(self, name: str, value: BaseModel | Mapping[str, Any]) -> FileEntry:
        data = canonical_json(value)
        try:
            self.storage.create_exclusive(f"{self.key}/{name}", data)
        except AlreadyExistsError:
            assert self.storage.read(f"{self.key}/{name}") == data
        return FileEntry(path=name, size=len(data), xxh3=xxhash.xxh3_128(data).hexdigest())

    def run_array(
        self, plan: WorkPlan, *, module: str, options: Mapping[str, Any] | None = None, reads: Iterable[FileRead] = (), loader: str = ""
    ) -> tuple[ItemRecord, ...]:
        for item in plan.items:
            if not self.storage.exists(self.layout.item(plan.step_name, item.index)):
                self.items_run.append(item.index)
                run_item(_job(module), spec=self.task_spec(plan.step_name, options=options or {}), index=item.index)
        return tuple(ItemRecord.model_validate_json(self.storage.read(self.layout.item(plan.step_name, item.index))) for item in plan.items)

    def task_spec(self, step_name: str, *, options: Mapping[str, Any]) -> TaskSpec:
        """Returns the spec that an item's program reads."""
        scratch = self.root / "scratch"
        scratch.mkdir(exist_ok=True)
        self.output_dir.mkdir(parents=True, exist_ok=True)
        job = JobSpec(
            run_id="test",
            stage=self.stage,
            step_name=step_name,
            artifact_key=self.key,
            attempt=0,
            key="attempt",
            kind=JobKind.ARRAY,
            argv=("-m", "x"),
            limits=RestartLimits(max_failures=0, max_interruptions=0, max_attempts_without_progress=1, backoff_s=0.0),
            storage_root=str(self.root),
            scratch_dir=str(scratch),
            project_dir=str(self.root),
            inputs={stage: record.key for stage, record in self.inputs.items()},
            config=self.config.model_dump(mode="json"),
            options=json.loads(canonical_json(options)),
        )
        return TaskSpec(
            job=job,
            epoch=self.epoch,
            input_dirs={stage: str(self.input_dir(stage)) for stage in self.inputs},
            output_dir=str(self.output_dir),
            scratch_dir=str(scratch),
        )


def _job(module: str) -> Any:
    import importlib

    return importlib.import_module(module).run
