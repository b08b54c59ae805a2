"""A project in which everything is finished, without anything having been made: the record of every stage, as the plan looks for it."""

import contextlib
from collections.abc import Sequence

from cluster.layout import artifact_key
from cluster.storage import open_storage
from schemas.artifact import ArtifactRecord, Provenance
from schemas.canonical import sha256
from schemas.recipe import load_recipe
from schemas.stage import Stage
from tasks.identity import identity_of
from tasks.store import Store
from tests.fakes.plain_hashes import PlainHashes
from tests.fakes.tiny_pipeline import Project

_SUMMARY = {
    Stage.TOKENIZE: {"vocab_size": 400, "sequences": {"train": 900}},
    Stage.REGISTER: {"model_name": "tiny", "version": "1", "aliases": ["candidate", "champion"], "gate_passed": True},
}


def finish_store(project: Project, overrides: Sequence[str] = (), *, rebuild: int = 0, gate_passed: bool = True) -> dict[Stage, ArtifactRecord]:
    """Writes the records that a run of the project's recipe with `overrides` would leave, and returns them."""
    with contextlib.chdir(project.folder):
        loaded = load_recipe(project.recipe, overrides)
    config = loaded.config
    store = Store(open_storage(config.storage.root))
    made: dict[Stage, ArtifactRecord] = {}
    for stage in config.stages:
        contents = {source: made[source].content_hash for source in config.inputs_of(stage)}
        identity = identity_of(stage, config=config, inputs=contents, hashes=PlainHashes(), project_dir=loaded.project_dir)
        record = ArtifactRecord(
            stage=stage,
            stage_version=stage.version,
            name=config.name,
            key=artifact_key(stage, name=config.name, fingerprint=identity.fingerprint, rebuild=rebuild),
            fingerprint=identity.fingerprint,
            content_hash=sha256(f"{identity.fingerprint} made".encode()),
            inputs=tuple(made[source].ref() for source in config.inputs_of(stage)),
            outside=identity.outside,
            recipe=identity.recipe,
            files=(),
            summary={**_SUMMARY.get(stage, {}), **({"gate_passed": gate_passed} if stage is Stage.REGISTER else {})},
            provenance=Provenance(run_id="tiny-run", created_at="2026-01-01T00:00:00Z", created_by="me@here", argv=(), commit="", versions={}),
        )
        made[stage] = store.commit(record)
    return made
