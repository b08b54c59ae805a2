"""Ranks that train on a mixture of sources: killed, resized, refused. What was used is what the recipe prescribes, and nothing else."""

import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.storage import file_entry
from schemas.checkpoint import BatchWindow, TrainingState
from schemas.config import RunConfig
from schemas.errors import ConfigError
from schemas.stage import Stage
from tasks.train.checkpoint.commit import CheckpointStore
from tasks.train.consumed import prescribed
from tasks.train.prescribed_order import order_of

pytestmark = pytest.mark.slow

MakeConfig = Callable[..., RunConfig]
MakeGang = Callable[[str], Any]
WEIGHTS = {"web": 1, "code": 3}
MIXED: dict[str, Any] = {
    "corpus": {"sources": [{"path": "/w", "name": "web"}, {"path": "/c", "name": "code"}]},
    "tokenization__by_source": True,
    "training__mixture": {"weights": WEIGHTS},
}


@pytest.fixture
def mixed_gang(gang: MakeGang, tmp_path: Path) -> MakeGang:
    """Gangs on the same shards, of which the first is of one source and the second of another."""

    def make(name: str) -> Any:
        made = gang(name)
        folder = tmp_path / "by-source"
        if not folder.exists():
            shutil.copytree(made.inputs.dirs[Stage.TOKENIZE], folder)
        manifest = made.inputs.manifest
        shards = tuple(shard.model_copy(update={"source": ("web", "code")[shard.group]}) for shard in manifest.shards)
        manifest = manifest.model_copy(update={"shards": shards, "by_source": True})
        (folder / "manifest.json").write_text(manifest.model_dump_json())
        entries = {**made.inputs.entries, Stage.TOKENIZE: file_entry(folder / "manifest.json", relative_to=folder)}
        return replace(made, inputs=replace(made.inputs, dirs={**made.inputs.dirs, Stage.TOKENIZE: folder}, manifest=manifest, entries=entries))

    return make


def final(gang: Any) -> tuple[dict[str, bytes], TrainingState]:
    store = CheckpointStore(gang.artifact_dir)
    commit = store.read(store.steps()[-1])
    assert commit is not None
    files = {entry.path: (store.folder(commit) / entry.path).read_bytes() for entry in commit.files}
    return files, TrainingState.model_validate_json(files["state.json"])


def prescribed_for(gang: Any, config: RunConfig, *, skipped: tuple[BatchWindow, ...] = ()) -> str:
    training = config.training
    order = order_of(gang.inputs.manifest, seed=training.seed, mixture=training.mixture)
    return prescribed(training.steps or 0, order=order, global_batch_size=training.global_batch_size, skipped=skipped)


def test_a_killed_mixed_run_ends_with_the_bytes_of_a_calm_one(mixed_gang: MakeGang, make_config: MakeConfig) -> None:
    config = make_config(**MIXED)
    calm, killed = mixed_gang("calm"), mixed_gang("killed")
    calm.run(config)
    assert killed.kill_at(config, step=3)[1] == -signal.SIGKILL
    killed.run(config)
    (expected, state), (found, _) = final(calm), final(killed)
    assert found == expected
    assert state.consumed == prescribed_for(calm, config)
    assert state.consumed != prescribed_for(calm, make_config())


@pytest.mark.exhaustive
def test_another_number_of_ranks_uses_the_same_sequences(mixed_gang: MakeGang, make_config: MakeConfig) -> None:
    resized = mixed_gang("resized")
    for steps, world_size in ((2, 2), (4, 1), (6, 3)):
        config = make_config(training__steps=steps, **MIXED)
        resized.run(config, world_size=world_size)
        assert final(resized)[1].consumed == prescribed_for(resized, config)


def test_a_source_without_sequences_is_refused_before_anything_runs(mixed_gang: MakeGang, make_config: MakeConfig) -> None:
    from tasks.train.build import check_training_data

    manifest = mixed_gang("refused").inputs.manifest
    web_alone = manifest.model_copy(update={"shards": manifest.shards[:1]})
    with pytest.raises(ConfigError, match=r"training\.mixture\.weights\.code"):
        check_training_data(make_config(**MIXED), web_alone)
