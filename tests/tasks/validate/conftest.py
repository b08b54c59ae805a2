"""Recipes, groups scanned in this process, and raw files of every kind."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.storage import make_folder
from schemas.config import RunConfig
from schemas.manifest import CorpusPlan
from schemas.stage import Stage
from tasks.validate.grouping import plan_groups
from tasks.validate.scan import ScanOutput, scan_group
from tasks.validate.sources import plan_inputs
from tests.fakes.in_process_work import InProcessWork, config_with
from tests.fakes.plain_hashes import PlainHashes


@pytest.fixture
def recipe() -> Callable[..., RunConfig]:
    """Gives recipes over some sources."""
    return make_recipe


def make_recipe(
    *sources: Mapping[str, Any] | str, group_bytes: int = 64_000_000, splits: Mapping[str, float] | None = None, **rules: Any
) -> RunConfig:
    """Returns a recipe over some sources; keywords are `corpus.rules`."""
    corpus = {"sources": list(sources), "rules": rules, "group_bytes": group_bytes} | ({"splits": splits} if splits else {})
    return config_with(corpus=corpus)


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


@pytest.fixture
def scan(tmp_path: Path) -> Scan:
    """Scans a recipe as one group, into a folder of its own."""
    runs = 0

    def run(config: RunConfig, plan: CorpusPlan | None = None) -> Scanned:
        nonlocal runs
        runs += 1
        folder = tmp_path / f"scan-{runs}"
        corpus = config.corpus
        plan = plan or plan_groups(plan_inputs(config, PlainHashes()), group_bytes=10**12, source_names=corpus.source_names)
        output = scan_group(plan.groups[0], corpus=corpus, output_dir=folder, temporary=temporary_in(folder), report=lambda _: None)
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


class CorpusWork(InProcessWork):
    """The `validate` stage over a recipe, run in this process."""

    @property
    def state_dir(self) -> Path:
        return self.root / "state"


@pytest.fixture
def work_on(tmp_path: Path) -> Callable[..., CorpusWork]:
    """Gives the stage over a recipe; one storage for all of a test."""

    def work_on(config: RunConfig, *, key: str = "", epoch: int = 0) -> CorpusWork:
        make_folder(tmp_path / "storage")
        return CorpusWork(tmp_path / "storage", Stage.VALIDATE, config, {}, key=key, epoch=epoch)

    return work_on


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Callable[..., Path]:
    """Writes records (dicts, or bytes for what is no JSON) as lines."""

    def write(name: str, *records: dict[str, Any] | bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"".join((record if isinstance(record, bytes) else json.dumps(record).encode()) + b"\n" for record in records))
        return path

    return write


@pytest.fixture
def write_parquet(tmp_path: Path) -> Callable[..., Path]:
    """Writes columns as a Parquet file."""

    def write(name: str, columns: Mapping[str, Any], **options: Any) -> Path:
        path = tmp_path / name
        pq.write_table(pa.table(columns), path, **options)
        return path

    return write
