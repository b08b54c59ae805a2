"""Ranks on a node that sees other files than the training was planned with: they stop, and say which."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from schemas.exit_code import ExitCode
from schemas.stage import Stage
from tests.tasks.train.trained_state import MakeConfig, MakeGang, newest_commit

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("stage", "name", "old", "new"),
    [(Stage.TOKENIZE, "manifest.json", b'"vocab_size":64', b'"vocab_size":65'), (Stage.TOKENIZER, "tokenizer.json", b"\n", b" ")],
)
def test_a_flipped_byte_that_only_the_node_sees_stops_every_rank(
    gang: MakeGang, make_config: MakeConfig, tmp_path: Path, stage: Stage, name: str, old: bytes, new: bytes
) -> None:
    """Both files stay readable: without the check training would go on with them."""
    refused = gang("refused")
    dirs = {source: shutil.copytree(folder, tmp_path / "node" / source.value) for source, folder in refused.inputs.dirs.items()}
    path = dirs[stage] / name
    assert old in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(old, new, 1))
    refused.inputs = dataclasses.replace(refused.inputs, dirs=dirs)
    refused.run(make_config(), expect=ExitCode.VERIFICATION)
    assert f"VerificationError: input {stage.value}: verification failed" in refused.logs()
    assert f"{path}: xxh3" in refused.logs()
    assert not (refused.artifact_dir / "commits").exists()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_pretrained_model_that_is_another_on_the_node_is_refused(gang: MakeGang, make_config: MakeConfig, tmp_path: Path, name: str) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path / "pretrained"
    shape = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=64, **shape)).save_pretrained(folder)
    config = make_config(model={"pretrained": str(folder)}, training__steps=2)
    refused = gang("refused")
    planned = refused.inputs.options(config)
    refused.run(config, world_size=1, options=planned)
    shutil.rmtree(refused.artifact_dir)
    path = folder / name
    data = path.read_bytes()
    path.write_bytes(data.replace(b"\n", b" ", 1) if name == "config.json" else data[:-1] + bytes([data[-1] ^ 1]))
    refused.run(config, world_size=1, expect=ExitCode.VERIFICATION, options=planned)
    assert f"{path}: its content is not what this training was planned with" in refused.logs()
    assert not (refused.artifact_dir / "commits").exists()


def test_a_factory_whose_source_is_another_on_the_node_is_never_run(gang: MakeGang, make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(model={"factory": "hr_node_model:build"})
    (tmp_path / "hr_node_model.py").write_text("raise AssertionError('planned')\n")
    refused = gang("refused")
    planned = refused.inputs.options(config, project_dir=tmp_path)
    (tmp_path / "hr_node_model.py").write_text("raise AssertionError('run')\n")
    refused.run(config, world_size=1, expect=ExitCode.VERIFICATION, options=planned)
    assert "hr_node_model.py: its content is not what this training was planned with" in refused.logs()
    assert "AssertionError" not in refused.logs()


def test_ranks_read_and_write_no_checkpoint_through_a_link(gang: MakeGang, make_config: MakeConfig, tmp_path: Path) -> None:
    config, outside = make_config(), tmp_path / "outside"
    fresh = gang("fresh")
    fresh.artifact_dir.mkdir()
    outside.mkdir()
    (fresh.artifact_dir / "checkpoints").symlink_to(outside)
    fresh.run(config, world_size=1, expect=ExitCode.VERIFICATION)
    assert "checkpoints is a symbolic link" in fresh.logs()
    assert list(outside.iterdir()) == []

    started = gang("started")
    started.run(make_config(training__steps=2), world_size=1)
    folder = started.artifact_dir / newest_commit(started.artifact_dir).folder
    folder.rename(outside / "moved")
    folder.symlink_to(outside / "moved")
    started.run(config, world_size=1, expect=ExitCode.VERIFICATION)
    assert f"{folder.name} is a symbolic link" in started.logs()
