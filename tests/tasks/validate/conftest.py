"""Recipes, groups and a control half without launchers: work items run in this process, through the same entry as in a job."""

import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from pydantic import BaseModel

from cluster.layout import ArtifactLayout
from cluster.storage import AlreadyExistsError, FileStorage, hash_file, make_folder
from schemas.artifact import FileEntry
from schemas.canonical import canonical_json
from schemas.config import RunConfig
from schemas.job import ItemRecord, JobKind, JobSpec, RestartLimits, TaskSpec, WorkPlan
from schemas.manifest import CorpusPlan
from schemas.stage import Stage
from tasks.entry import run_item
from tasks.validate.grouping import plan_groups
from tasks.validate.scan import ScanOutput, scan_group
from tasks.validate.sources import plan_inputs

GROUP = 0


def make_recipe(*sources: Mapping[str, Any] | str, group_bytes: int = 64_000_000, splits: Mapping[str, float] | None = None, **rules: Any) -> RunConfig:
    """Returns a recipe over some sources; keywords are `corpus.rules`."""
    corpus = {"sources": list(sources), "rules": rules, "group_bytes": group_bytes} | ({"splits": splits} if splits else {})
    return RunConfig.model_validate({"name": "tested", "corpus": corpus, "model": {"config": {"model_type": "llama"}}, "training": {"steps": 2000}})


@dataclass(frozen=True)
class Scanned:
    """A scanned group."""

    output: ScanOutput
    folder: Path

    @property
    def accepted(self) -> list[dict[str, Any]]:
        """Accepted rows of all splits, by (path, row)."""
        rows = [row for file in self.output.accepted for row in pq.read_table(self.folder / file.file.path).to_pylist()]
        return sorted(rows, key=lambda row: (row["source"], row["path"], row["row"]))

    @property
    def texts(self) -> list[str]:
        return [row["text"] for row in self.accepted]

    @property
    def quarantined(self) -> list[dict[str, Any]]:
        entry = self.output.quarantine
        return [] if entry is None else pq.read_table(self.folder / entry.path).to_pylist()

    @property
    def refused(self) -> list[tuple[int, str]]:
        """(row, reason) of every quarantined record."""
        return [(row["row"], row["reason"]) for row in self.quarantined]

    @property
    def read(self) -> int:
        return sum(part.read for part in self.output.stats)


Scan = Callable[..., Scanned]


@pytest.fixture()
def scan(tmp_path: Path) -> Scan:
    """Scans a recipe as one group, into a folder of its own."""
    runs = 0

    def run(config: RunConfig, plan: CorpusPlan | None = None) -> Scanned:
        nonlocal runs
        runs += 1
        folder = tmp_path / f"scan-{runs}"
        corpus = config.corpus
        plan = plan or plan_groups(plan_inputs(config, hash_file), group_bytes=10**12, source_names=corpus.source_names)
        output = scan_group(plan.groups[GROUP], corpus=corpus, output_dir=folder, temporary=temporary_in(folder), report=lambda _: None)
        leftovers = [path.name for path in folder.rglob(".tmp-*")]
        assert not leftovers
        return Scanned(output, folder)

    return run


def temporary_in(folder: Path) -> Callable[[str], Path]:
    """Returns what gives paths for unfinished files, as a work item does."""

    def temporary(name: str) -> Path:
        final = folder / name
        make_folder(final.parent)
        return final.with_name(f".tmp-{final.name}")

    return temporary


@dataclass
class InProcessWork:
    """Stands for `tasks.work.Work`: the same folders and records, but items run here, one after the other."""

    root: Path
    config: RunConfig
    key: str = "validate/tested-000000000000"
    stage: Stage = Stage.VALIDATE
    notes: list[str] = field(default_factory=list)
    ran: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.storage = FileStorage(self.root)
        self.layout = ArtifactLayout(self.key)
        self.state_dir = self.root / "state"
        self.output_dir = self.root / self.key
        make_folder(self.output_dir)

    def note(self, message: str) -> None:
        self.notes.append(message)

    def publish_json(self, name: str, value: BaseModel | Mapping[str, Any]) -> FileEntry:
        return self._publish(f"{self.key}/{name}", canonical_json(value), name=name)

    def run_array(self, plan: WorkPlan, *, module: str, options: Mapping[str, Any] | None = None) -> tuple[ItemRecord, ...]:
        self._publish(self.layout.plan(plan.step_name), canonical_json(plan), name="")
        spec = self._spec(plan, module=module, options=options or {})
        records = []
        for item in plan.items:
            key = self.layout.item(plan.step_name, item.index)
            if not self.storage.exists(key):
                run_item(importlib.import_module(module).run, spec=spec, index=item.index)
                self.ran.append(f"{plan.step_name} {item.label}")
            records.append(ItemRecord.model_validate_json(self.storage.read(key)))
        return tuple(records)

    def _spec(self, plan: WorkPlan, *, module: str, options: Mapping[str, Any]) -> TaskSpec:
        scratch = self.root / "scratch"
        make_folder(scratch)
        job = JobSpec(
            run_id="run",
            stage=self.stage,
            step_name=plan.step_name,
            artifact_key=self.key,
            attempt=0,
            key="key",
            kind=JobKind.ARRAY,
            argv=("-m", module),
            limits=RestartLimits(max_failures=0, max_interruptions=0, max_attempts_without_progress=1, backoff_s=0.0),
            storage_root=self.storage.url,
            scratch_dir=str(scratch),
            project_dir=str(self.root),
            inputs={},
            config=self.config.model_dump(mode="json"),
            options=json.loads(canonical_json(options)),
        )
        spec = TaskSpec(job=job, epoch=0, input_dirs={}, output_dir=str(self.output_dir), scratch_dir=str(scratch))
        return TaskSpec.model_validate_json(spec.model_dump_json())

    def _publish(self, key: str, data: bytes, *, name: str) -> FileEntry:
        try:
            self.storage.create_exclusive(key, data)
        except AlreadyExistsError:
            assert self.storage.read(key) == data, f"{key} is there with other bytes"
        return FileEntry(path=name, size=len(data), xxh3=xxhash.xxh3_128(data).hexdigest())


@pytest.fixture()
def write_jsonl(tmp_path: Path) -> Callable[..., Path]:
    """Writes records (dicts, or bytes for what is no JSON) as lines."""

    def write(name: str, *records: dict[str, Any] | bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"".join((record if isinstance(record, bytes) else json.dumps(record).encode()) + b"\n" for record in records))
        return path

    return write


@pytest.fixture()
def write_parquet(tmp_path: Path) -> Callable[..., Path]:
    """Writes columns as a Parquet file."""

    def write(name: str, columns: Mapping[str, Any], **options: Any) -> Path:
        path = tmp_path / name
        pq.write_table(pa.table(columns), path, **options)
        return path

    return write
