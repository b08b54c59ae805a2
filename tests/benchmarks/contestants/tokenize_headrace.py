"""The `tokenize` stage over an accepted corpus, in one process: reading, hashing, encoding, shadow check, packing, durable shards, manifest.

Usage: SITE_JSON OUT_FOLDER. SITE_JSON: `root`, `corpus` and `tokenizer` (records), `config`.
"""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from schemas.artifact import ArtifactRecord
from schemas.config import RunConfig
from schemas.manifest import ShardManifest
from schemas.stage import Stage
from tasks.tokenize.build import build
from tests.benchmarks.contestants.measuring import hash_of, measured
from tests.fakes.in_process_work import InProcessWork


def main() -> None:
    """Runs the stage once."""
    site = json.loads(Path(sys.argv[1]).read_text())
    root, key = Path(site["root"]), f"tokenize/bench-{os.getpid():012d}"
    inputs = {stage: ArtifactRecord.model_validate(site[name]) for stage, name in ((Stage.VALIDATE, "corpus"), (Stage.TOKENIZER, "tokenizer"))}
    work = InProcessWork(root, Stage.TOKENIZE, RunConfig.model_validate(site["config"]), inputs, key=key)
    import awkward  # noqa: F401  # off the clock, as what the peers import
    import gigatoken.gigatoken_rs  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import tokenizers  # noqa: F401

    try:
        measured(lambda: build(work), facts=lambda draft: facts(work, draft))
    finally:
        shutil.rmtree(work.output_dir, ignore_errors=True)


def facts(work: InProcessWork, draft: Any) -> dict[str, Any]:
    """Returns the hash of the ids of every group, read back from the shards, and what identifies the artifact."""
    from tasks.tokenize.shard_reader import ShardReader

    manifest = ShardManifest.model_validate_json((work.output_dir / "manifest.json").read_bytes())
    hashes = {}
    for group in sorted({shard.group for shard in manifest.shards}):
        own = manifest.model_copy(update={"shards": tuple(shard for shard in manifest.shards if shard.group == group)})
        reader = ShardReader(own, folder=work.output_dir, split="train")
        hashes[str(group)] = hash_of(_ids(reader, own))
    return {"hashes": hashes, "content_hash": draft.content_hash, "tokens": draft.summary["tokens"]["train"], "engine": draft.summary["engine"]}


def _ids(reader: Any, manifest: ShardManifest) -> Any:
    """Yields the ids of a group's shards as uint32, without padding."""
    import numpy as np

    start = 0
    for shard in manifest.of_split("train"):
        rows = reader.rows(np.arange(start, start + shard.rows)).reshape(-1)
        start += shard.rows
        yield rows[: shard.tokens].astype("<u4").tobytes()


if __name__ == "__main__":
    main()
