"""The `validate` stage over raw files, in one process: planning, hashing, reading, rules, duplicates, accepted corpus, judgement, Data Docs.

Usage: SOURCE_PATTERN OUT_FOLDER
"""

import shutil
import sys
from functools import cached_property
from pathlib import Path
from typing import Any

from schemas.errors import DataVerdictError
from schemas.manifest import CorpusManifest
from schemas.stage import Stage
from tasks.store import Identity
from tasks.validate import judge
from tasks.validate.build import build
from tests.benchmarks.contestants.measuring import measured, peak_mb
from tests.fakes.in_process_work import InProcessWork, config_with


class _Work(InProcessWork):
    """The stage's work with a folder for the cache of file hashes."""

    @cached_property
    def identity(self) -> Identity:
        """What the artifact is; like the stage's own work, it hashes the raw files for it once."""
        return super().identity

    @property
    def state_dir(self) -> Path:
        return self.root / "state"


def main() -> None:
    """Runs the stage once."""
    out = Path(sys.argv[2])
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    work = _Work(out, Stage.VALIDATE, config_with(corpus={"sources": [sys.argv[1]]}), {})
    judge.preload().join()  # off the clock, as what the peer imports
    import duckdb  # noqa: F401
    import pandas as pd  # noqa: F401
    import pyarrow.parquet  # noqa: F401

    def run() -> str:
        try:
            return str(build(work).summary["verdict"])
        except DataVerdictError:
            return "fail"

    try:
        measured(run, facts=lambda verdict: facts(work, verdict))
    finally:
        shutil.rmtree(out, ignore_errors=True)


def facts(work: _Work, verdict: str) -> dict[str, Any]:
    """Returns the verdict, and the refused records by reason."""
    manifest = CorpusManifest.model_validate_json((work.output_dir / "manifest.json").read_bytes())
    return {"verdict": verdict, "reasons": manifest.reasons, "accepted": manifest.accepted, "peak_mb": peak_mb()}


if __name__ == "__main__":
    main()
