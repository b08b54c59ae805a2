"""The control half of `train`: checks that model and tokens fit, goes on from a shorter sibling where there is one, runs the gang, verifies."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from schemas.artifact import FileEntry, content_hash_of
from schemas.checkpoint import CommitRecord, TrainingState
from schemas.config import RunConfig, TrainingConfig
from schemas.errors import ConfigError, Problem, VerificationError
from schemas.manifest import ShardManifest
from schemas.stage import Stage
from tasks.train.checkpoint.commit import STATE_NAME, committed_steps, parse_commit, verify
from tasks.train.compatibility import check_compatibility
from tasks.train.deepspeed_config import deepspeed_config
from tasks.train.sibling import TRAJECTORY_NAME, Trajectory, import_from_sibling
from tasks.work import Draft, Work


@dataclass(frozen=True)
class GangShape:
    """How many processes train, and where."""

    num_nodes: int
    ranks_per_node: int

    @property
    def world_size(self) -> int:
        """Ranks."""
        return self.num_nodes * self.ranks_per_node


def build(work: Work) -> Draft:
    """Trains to the last step and returns the draft: the files of the final commit.

    Raises:
        ConfigError: model, tokens, DeepSpeed section and ranks do not fit together; nothing was run.
        VerificationError: the final checkpoint is not what was committed.
    """
    config = work.config
    manifest = ShardManifest.model_validate_json((work.input_dir(Stage.TOKENIZE) / "manifest.json").read_bytes())
    check_training_data(config, manifest)
    shape = gang_shape(config)
    raw = raw_deepspeed_section(config)
    deepspeed_config(config, world_size=shape.world_size, options=raw)
    total_steps = config.training.total_steps(num_sequences=manifest.num_sequences("train"), sequence_length=manifest.sequence_length)
    trajectory = Trajectory.of(config, inputs=work.identity.inputs, total_steps=total_steps)
    files = (work.publish_json(TRAJECTORY_NAME, trajectory),)
    imported = import_from_sibling(work.storage, layout=work.layout, name=config.name, trajectory=trajectory)
    if imported is not None:
        work.note(f"goes on from step {imported.step} of {imported.key}: under {config.training.schedule.kind.value}, how long is not what")
    final = _final_commit(work, total_steps)
    if final is None:
        model_type = (config.model.config or {}).get("model_type", "")
        preload = ("tasks.train.preload", *((f"transformers.models.{model_type}.modeling_{model_type}",) if model_type else ()))
        work.run_gang(
            module="tasks.train.job",
            num_nodes=shape.num_nodes,
            ranks_per_node=shape.ranks_per_node,
            preload=preload,
            options={"deepspeed": raw},
            is_complete=lambda: _final_commit(work, total_steps) is not None,
        )
        final = _final_commit(work, total_steps)
    if final is None:
        finding = f"{work.layout.commit(total_steps)}: missing or damaged, though the job ended well"
        raise VerificationError((finding,), subject=work.key, mend="headrace resume writes it again")
    return _draft(work, final, files=files, manifest=manifest)


def check_training_data(config: RunConfig, manifest: ShardManifest) -> None:
    """Refuses tokens that the model cannot take, and a training split without sequences. Cheap: configurations alone.

    Raises:
        ConfigError: naming the keys and numbers.
    """
    check_compatibility(config.model, vocab_size=manifest.vocab_size, sequence_length=manifest.sequence_length)
    if not manifest.num_sequences("train"):
        message = "leave no training sequence; give more text, or smaller held-out shares"
        raise ConfigError((Problem("corpus.splits", repr(config.corpus.splits.model_dump()), message),))


def gang_shape(config: RunConfig) -> GangShape:
    """Returns the largest gang that gives every rank equal work and fits the nodes; with as few nodes as possible."""
    resources = config.cluster.resources(Stage.TRAIN)
    most_nodes = resources.nodes or 1
    most_per_node = config.ranks(Stage.TRAIN) // most_nodes
    return _largest_shape(config.training, most_nodes=most_nodes, most_per_node=most_per_node)


def _largest_shape(training: TrainingConfig, *, most_nodes: int, most_per_node: int) -> GangShape:
    for world_size in sorted(training.feasible_world_sizes, reverse=True):
        for num_nodes in range(1, most_nodes + 1):
            if world_size % num_nodes == 0 and world_size // num_nodes <= most_per_node:
                return GangShape(num_nodes, ranks_per_node=world_size // num_nodes)
    raise AssertionError("a single rank is always feasible")


def raw_deepspeed_section(config: RunConfig) -> Mapping[str, Any] | None:
    """Returns the raw `deepspeed` section as plain data, read from its JSON file where the recipe names one.

    Raises:
        ConfigError: the file cannot be read or holds no JSON object.
    """
    if not isinstance(config.deepspeed, str):
        return None  # a mapping travels with the config
    try:
        values = json.loads(Path(config.deepspeed).read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError((Problem("deepspeed", repr(config.deepspeed), f"cannot be read: {error}"),)) from error
    if not isinstance(values, dict):
        raise ConfigError((Problem("deepspeed", repr(config.deepspeed), f"must hold a JSON object, holds {type(values).__name__}"),))
    return values


def _final_commit(work: Work, total_steps: int) -> CommitRecord | None:
    """Returns the commit of the last step when every file of it verifies; None sends the gang to write it (again)."""
    if total_steps not in committed_steps(work.storage, work.layout):
        return None
    commit = parse_commit(work.storage.read(work.layout.commit(total_steps)), step=total_steps)
    return commit if commit is not None and not verify(commit, folder=work.output_dir / commit.folder) else None


def _draft(work: Work, commit: CommitRecord, *, files: tuple[FileEntry, ...], manifest: ShardManifest) -> Draft:
    """Returns the draft; its content hash is over paths relative to the checkpoint, so that epoch numbers do not matter."""
    state = TrainingState.model_validate_json((work.output_dir / commit.folder / STATE_NAME).read_bytes())
    entries = tuple(entry.model_copy(update={"path": f"{commit.folder}/{entry.path}"}) for entry in commit.files)
    training = work.config.training
    summary = {
        "steps": commit.step,
        "commit_step": commit.step,
        "checkpoint": commit.folder,
        "loss": state.loss,
        "validation_loss": state.validation_loss,
        "validation_bits_per_byte": state.validation_bits_per_byte,
        "skipped_steps": len(state.skipped_steps),
        "parameters": sum(prod(parameter.shape) for parameter in state.parameters),
        "tokens": commit.step * training.global_batch_size * manifest.sequence_length,
        "world_size": commit.world_size,
        "zero_stage": state.zero_stage,
        "precision": state.precision,
        "num_restarts": max(0, len(work.storage.names(work.layout.epochs)) - 1),
    }
    return Draft(files=(*files, *entries), summary=summary, content_hash=content_hash_of(commit.files))
