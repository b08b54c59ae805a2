"""`prepare` on the accepted corpora of a folder, in this process; and as a program, to be killed.

    python -m tests.fakes.preparing FOLDER PREPARATION

PREPARATION: the recipe's section as JSON.
"""

import json
import sys
from pathlib import Path
from typing import Any

from cluster.storage import file_entry
from schemas.artifact import ArtifactRecord
from schemas.config import RunConfig
from schemas.manifest import CorpusManifest
from schemas.stage import Stage
from tasks.prepare.build import build
from tasks.work import Draft
from tests.fakes.in_process_work import InProcessWork, commit, config_with


def key_of(stage: Stage, number: int = 0) -> str:
    """Returns the folder of the test's artifact of a stage with this number."""
    return f"{stage.value}/test-{number:012d}"


def prepared_config(preparation: Any) -> RunConfig:
    """Returns a recipe that declares these preparation steps."""
    return config_with(corpus={"sources": ["nowhere"], "preparation": preparation})


def accepted_record(root: Path, number: int = 0) -> ArtifactRecord:
    """Returns the record of an accepted corpus below `root`."""
    key = key_of(Stage.VALIDATE, number)
    manifest = CorpusManifest.model_validate_json((root / key / "manifest.json").read_bytes())
    entries = (*(file.file for file in manifest.files), file_entry(root / key / "manifest.json", relative_to=root / key))
    return commit(root, Stage.VALIDATE, Draft(files=entries, summary={}), key=key)


def work_in(root: Path, preparation: Any, *, number: int = 0) -> InProcessWork:
    """Returns the stage's work on the accepted corpus with this number."""
    inputs = {Stage.VALIDATE: accepted_record(root, number)}
    return InProcessWork(root, Stage.PREPARE, prepared_config(preparation), inputs, key=key_of(Stage.PREPARE, number))


def finish(work: InProcessWork, draft: Draft) -> ArtifactRecord:
    """Writes the artifact's record, so that the store finds it, and returns it."""
    record = commit(work.root, work.stage, draft, key=work.key).sealed()
    (work.output_dir / "record.json").write_bytes(record.to_bytes())
    return record


if __name__ == "__main__":
    build(work_in(Path(sys.argv[1]), json.loads(sys.argv[2])))  # type: ignore[arg-type]  # as far as a stage asks, it is a Work
