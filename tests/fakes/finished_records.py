"""Finished artifacts of all stages without the work: records as a run leaves them, for tests that plan."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.layout import RunLayout
from cluster.storage import FileStorage
from schemas.artifact import ArtifactRecord
from schemas.canonical import canonical_json
from schemas.config import RunConfig
from schemas.journal import RunFile
from schemas.stage import Stage
from tasks.identity import identity_of
from tasks.register.promotion import CHAMPION, Promotion
from tasks.store import Store
from tasks.work import Draft
from tests.fakes.in_process_work import commit
from tests.fakes.plain_hashes import PlainHashes

_SUMMARIES: Mapping[Stage, Mapping[str, Any]] = {
    Stage.REGISTER: {"model_name": "test", "version": 1, "aliases": ["candidate", "champion"]},
}


def finish(
    config: RunConfig, *, run_id: str = "test", made: str = "", summaries: Mapping[Stage, Mapping[str, Any]] | None = None
) -> dict[Stage, ArtifactRecord]:
    """Commits an artifact for every stage, as this configuration identifies it now, and leaves the run that made them.

    Args:
        made: tells the content of these artifacts from others'.
        summaries: over those that say just enough.
    """
    store = Store(FileStorage(Path(config.storage.root)))
    records: dict[Stage, ArtifactRecord] = {}
    for stage in config.stages:
        contents = {source: records[source].content_hash for source in config.inputs_of(stage)}
        identity = identity_of(stage, config=config, inputs=contents, hashes=PlainHashes())
        summary = {**_SUMMARIES.get(stage, {}), **(summaries or {}).get(stage, {})}
        key = store.place(identity, rebuild=False)
        record = commit(Path(config.storage.root), stage, Draft(files=(), summary=summary, content_hash=f"{stage.value}{made}"), key=key)
        inputs = tuple(records[source].ref() for source in config.inputs_of(stage))
        known = {"name": config.name, "fingerprint": identity.fingerprint, "inputs": inputs, "outside": identity.outside, "recipe": identity.recipe}
        provenance = record.provenance.model_copy(update={"run_id": run_id})
        records[stage] = store.find(identity) or store.commit(record.model_copy(update={**known, "provenance": provenance}))
    file = RunFile(
        run_id=run_id,
        recipe="r.yaml",
        overrides=(),
        from_stage=None,
        project_dir="/",
        state_dir=config.state,
        config=config.model_dump(mode="json"),
        created_at=0.0,
        argv=(),
    )
    store.storage.create_exclusive(RunLayout(run_id).config, canonical_json(file))
    return records


def promote(config: RunConfig, *, version: int, number: int = 0) -> None:
    """Logs that the champion is this version now."""
    move = Promotion(
        number=number, model_name=config.model_name, alias=CHAMPION, version=version, previous=None, root_hash="0", run_id="test", reason="", at=0.0
    )
    FileStorage(Path(config.storage.root)).create_exclusive(f"registry/promotions/{config.model_name}/{number:06d}.json", canonical_json(move))
