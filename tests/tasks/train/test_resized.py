"""Ranks that go on where another number of them, under another ZeRO stage, left off: what they load, what they use, and where they end."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from cluster.acts import read_acts
from schemas.act import ActKind
from schemas.checkpoint import CommitRecord, TrainingState
from schemas.config import RunConfig
from schemas.exit_code import ExitCode
from tasks.train.checkpoint.commit import CheckpointStore
from tasks.train.checkpoint.state_hash import as_hex, hash_checkpoint
from tasks.train.consumed import prescribed
from tasks.train.order import GlobalOrder

pytestmark = pytest.mark.slow

MakeConfig = Callable[..., RunConfig]
MakeGang = Callable[[str], Any]

PROGRAMS = Path(__file__).parent / "rank_programs.py"
TOLERANCE = {"fp32": 1e-5, "bf16": 1e-3}


def committed(artifact_dir: Path) -> tuple[CommitRecord, TrainingState]:
    store = CheckpointStore(artifact_dir)
    commit = store.read(store.steps()[-1])
    assert commit is not None
    return commit, TrainingState.model_validate_json((store.folder(commit) / "state.json").read_bytes())


def without_dropout(make_config: MakeConfig) -> Mapping[str, Any]:
    return {"config": dict(make_config().model.config or {}) | {"attention_dropout": 0.0}}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_stages_and_sizes_change_and_nothing_is_lost(gang: MakeGang, make_config: MakeConfig, precision: str) -> None:
    """Stages 1, 3, 2 on 2, 1, 2 ranks: each loads the very state that was committed, and begins with the loss of who wrote it."""
    common = {"training__precision": precision, "model": without_dropout(make_config), "checkpoint__every_steps": 100}
    resized, ahead, calm = gang("resized"), gang("ahead"), gang("calm")
    before: list[float] = []
    acts_seen = 0
    for steps, stage, world_size in ((3, 1, 2), (6, 3, 1), (9, 2, 2)):
        config = make_config(training__steps=steps, training__zero_stage=stage, **common)
        was = committed(resized.artifact_dir)[0] if before else None
        resized.run(config, world_size=world_size)
        if was is not None:
            acts = read_acts(CheckpointStore(resized.artifact_dir).storage, CheckpointStore(resized.artifact_dir).layout)
            acts_seen += 1
            assert (len(acts), acts[-1].kind, acts[-1].world_size, acts[-1].zero_stage) == (acts_seen, ActKind.RESIZED, world_size, stage)
            assert acts[-1].state_hash == as_hex(hash_checkpoint(was, folder=resized.artifact_dir / was.folder))
            (first, *_) = resized.metrics()
            assert (first["from_step"], first["step"]) == (was.step, was.step + 1)
            assert first["values"]["loss"] == pytest.approx(before[-1], rel=TOLERANCE[precision])
        before.append(loss_ahead(ahead, config, of=resized.artifact_dir, world_size=world_size))
    calm.run(make_config(training__steps=9, training__zero_stage=1, **common))
    _, state = committed(resized.artifact_dir)
    assert state.consumed == committed(calm.artifact_dir)[1].consumed == prescribed(9, order=GlobalOrder(41, 7), global_batch_size=12)


def loss_ahead(ahead: Any, config: RunConfig, *, of: Path, world_size: int) -> float:
    """Returns the loss of one more step by the same ranks under the same stage, from a copy of the newest checkpoint."""
    import shutil

    shutil.rmtree(ahead.artifact_dir, ignore_errors=True)
    shutil.copytree(of, ahead.artifact_dir)
    steps = (config.training.steps or 0) + 1
    ahead.run(config.model_copy(update={"training": config.training.model_copy(update={"steps": steps})}), world_size=world_size)
    return float(ahead.metrics()[-1]["values"]["loss"])


def test_ranks_that_hold_other_state_than_was_committed_do_not_train(gang: MakeGang, make_config: MakeConfig) -> None:
    trained = gang("trained")
    trained.run(make_config(training__steps=2))
    trained.run(make_config(training__steps=4), world_size=1, program=f"{PROGRAMS}:one_bit_off", expect=ExitCode.VERIFICATION)
    assert "in the files and" in trained.logs()
    assert CheckpointStore(trained.artifact_dir).steps() == (2,)
    assert not (trained.artifact_dir / "acts").exists()
