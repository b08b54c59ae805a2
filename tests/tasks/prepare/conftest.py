"""Accepted corpora as `validate` leaves them, and the stage at work on them in this process."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cluster.storage import file_entry, make_folder
from schemas.artifact import ArtifactRecord
from schemas.canonical import canonical_json
from schemas.manifest import SPLITS, AcceptedFile, CorpusManifest, Split
from schemas.stage import Stage
from tasks.prepare.build import build
from tasks.prepare.stats import PreparationStats
from tasks.validate.corpus_files import ACCEPTED_SCHEMA, ROW_OVERHEAD_BYTES, AcceptedRow, TableFile, accepted_name
from tasks.work import Draft
from tests.fakes.in_process_work import InProcessWork, commit, config_with, doc_id

Documents = Mapping[tuple[int, Split], Sequence[str]]
"""Texts by (group, split)."""

VALIDATED = "validate/test-000000000000"


def write_accepted(root: Path, documents: Documents, *, key: str = VALIDATED) -> ArtifactRecord:
    """Writes an accepted corpus, with all of its columns, and returns its record."""
    folder = root / key
    files = []
    for (group, split), texts in sorted(documents.items(), key=lambda item: (item[0][0], SPLITS.index(item[0][1]))):
        name = accepted_name(group, split)
        make_folder((folder / name).parent)
        table = TableFile(name, output_dir=folder, temporary=lambda name: folder / f"{name}.unfinished", schema=ACCEPTED_SCHEMA)
        for row, text in enumerate(texts):
            data = text.encode()
            table.add(
                AcceptedRow(doc_id(text).encode(), b"source-0", f"g{group}.jsonl".encode(), row, data, None), size=len(data) + ROW_OVERHEAD_BYTES
            )
        entry = table.publish()
        assert entry is not None
        files.append(AcceptedFile(group=group, split=split, file=entry, documents=len(texts), text_bytes=sum(len(text.encode()) for text in texts)))
    total = sum(file.documents for file in files)
    manifest = CorpusManifest(files=tuple(files), inputs=(), read=total, accepted=total, quarantined=0, reasons={})
    (folder / "manifest.json").write_bytes(canonical_json(manifest))
    entries = (*(file.file for file in files), file_entry(folder / "manifest.json", relative_to=folder))
    return commit(root, Stage.VALIDATE, Draft(files=entries, summary={}), key=key)


class Prepared:
    """A prepared corpus."""

    def __init__(self, work: InProcessWork, draft: Draft) -> None:
        self.work, self.draft = work, draft
        self.folder = work.output_dir
        self.manifest = CorpusManifest.model_validate_json((self.folder / "manifest.json").read_bytes())
        self.stats = PreparationStats.model_validate_json((self.folder / "stats.json").read_bytes())

    def rows(self, split: Split | None = None) -> list[dict[str, Any]]:
        """All documents that are left, in the manifest's order."""
        files = [file for file in self.manifest.files if split in (None, file.split)]
        return [row for file in files for row in pq.read_table(self.folder / file.file.path).to_pylist()]

    def texts(self, split: Split | None = None) -> list[str]:
        return [row["text"] for row in self.rows(split)]

    @property
    def quarantined(self) -> list[dict[str, Any]]:
        return [
            row for entry in self.draft.files if entry.path.startswith("quarantine/") for row in pq.read_table(self.folder / entry.path).to_pylist()
        ]

    @property
    def files(self) -> dict[str, str]:
        """Hash by name of all that the artifact consists of, but for the page about it, which names its folder."""
        return {entry.path: entry.xxh3 for entry in self.draft.files if not entry.path.startswith("report/")}


Prepare = Callable[..., Prepared]


@pytest.fixture
def prepare(tmp_path: Path) -> Prepare:
    """Prepares documents by the steps that are given, in a folder of its own."""
    runs = 0

    def run(documents: Documents, **preparation: Any) -> Prepared:
        nonlocal runs
        runs += 1
        work = work_on(tmp_path / f"root-{runs}", documents, **preparation)
        return Prepared(work, build(work))  # type: ignore[arg-type]  # as far as a stage asks, it is a Work

    return run


def work_on(root: Path, documents: Documents, **preparation: Any) -> InProcessWork:
    """Returns the stage's work on documents."""
    config = config_with(corpus={"sources": ["nowhere"], "preparation": preparation})
    return InProcessWork(root, Stage.PREPARE, config, {Stage.VALIDATE: write_accepted(root, documents)})
