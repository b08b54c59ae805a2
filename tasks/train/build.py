"""The control half of `train`: checks that model and tokens fit, goes on from a shorter sibling where there is one, runs the gang, verifies."""

import json
import time
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from cluster.acts import read_acts
from cluster.budget import used_device_s
from schemas.artifact import FileEntry, content_hash_of
from schemas.checkpoint import CommitRecord, TrainingState
from schemas.config import RunConfig
from schemas.cost import HOUR_S
from schemas.errors import ConfigError, Problem, UnsafeFileError, VerificationError
from schemas.manifest import ShardManifest
from schemas.mixture import check_mixture
from schemas.sizing import training_size
from schemas.stage import Stage
from tasks.recorded_file import entry_of, verified_bytes
from tasks.tokenizer.corpus import MANIFEST_NAME
from tasks.tokenizer.existing import TOKENIZER_NAME
from tasks.train.bookkeeping import keep_ledger
from tasks.train.checkpoint.commit import STATE_NAME, checkpoint_folder, committed_steps, parse_commit, verify
from tasks.train.checkpoint.room import measure_room, refuse_without_room
from tasks.train.compatibility import check_compatibility, check_storage
from tasks.train.deepspeed_config import deepspeed_config
from tasks.train.sibling import TRAJECTORY_NAME, Trajectory, import_from_sibling
from tasks.work import Draft, Work


def build(work: Work) -> Draft:
    """Trains to the last step and returns the draft: the files of the final commit.

    Raises:
        ConfigError: model, tokens, DeepSpeed section and ranks do not fit together; nothing was run.
        VerificationError: the final checkpoint is not what was committed, or an input is not what was recorded.
        UnreachableError: there is no room for checkpoints; nothing was run.
    """
    config = work.config
    recorded = entry_of(work.inputs[Stage.TOKENIZE], MANIFEST_NAME)
    manifest = ShardManifest.model_validate_json(
        verified_bytes(work.input_dir(Stage.TOKENIZE, recorded), recorded, subject=work.inputs[Stage.TOKENIZE].key)
    )
    check_training_data(config, manifest)
    shape, *_ = config.gang_shapes
    check_storage(config)
    raw = raw_deepspeed_section(config)
    for size in config.gang_shapes:
        deepspeed_config(config, world_size=size.world_size, options=raw)
    epoch_sequences = config.training.epoch_sequences(manifest.sequences_by_source("train"))
    total_steps = config.training.total_steps(num_sequences=epoch_sequences, sequence_length=manifest.sequence_length)
    trajectory = Trajectory.of(config, inputs=work.identity.inputs, total_steps=total_steps)
    files = (work.publish_json(TRAJECTORY_NAME, trajectory),)
    imported = import_from_sibling(work.storage, layout=work.layout, name=config.name, trajectory=trajectory)
    if imported is not None:
        work.note(f"goes on from step {imported.step} of {imported.key}: under {config.training.schedule.kind.value}, how long is not what")
    final = _final_commit(work, total_steps)
    if final is None:
        _look_for_room(work, manifest)
        work.run_gang(
            module="tasks.train.job",
            num_nodes=shape.num_nodes,
            ranks_per_node=shape.ranks_per_node,
            preload=_preload(config),
            options=_options(work, raw=raw),
            is_complete=lambda: _final_commit(work, total_steps) is not None,
        )
        final = _final_commit(work, total_steps)
    else:
        work.clear_up()
    if final is None:
        finding = f"{work.layout.commit(total_steps)}: missing or damaged, though the job ended well"
        raise VerificationError((finding,), subject=work.key, mend="headrace resume writes it again")
    return _draft(work, final, files=files, manifest=manifest)


def _look_for_room(work: Work, manifest: ShardManifest) -> None:
    """Says when checkpoints will not fit, before anything is computed. Raises UnreachableError when not even two do."""
    counts = manifest.sequences_by_source("train")
    size = training_size(work.config, vocab_size=manifest.vocab_size, train_sequences=sum(counts.values()), source_sequences=counts)
    room = measure_room(work.output_dir, size=size)
    if room is not None and (warning := refuse_without_room(room, folder=work.output_dir)):
        work.note(f"warning: {warning}")


def _preload(config: RunConfig) -> tuple[str, ...]:
    """Returns the modules that the zygote imports, the model's own among them."""
    model_type = (config.model.config or {}).get("model_type", "")
    return ("tasks.train.preload", *((f"transformers.models.{model_type}.modeling_{model_type}",) if model_type else ()))


def _options(work: Work, *, raw: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Returns what ranks need beyond the config: see `tasks.train.job`."""
    return {
        "deepspeed": raw,
        "manifest": entry_of(work.inputs[Stage.TOKENIZE], MANIFEST_NAME).model_dump(mode="json"),
        "tokenizer": entry_of(work.inputs[Stage.TOKENIZER], TOKENIZER_NAME).model_dump(mode="json"),
        "outside_files": [entry.model_dump(mode="json") for entry in work.identity.outside_files],
    }


def check_training_data(config: RunConfig, manifest: ShardManifest) -> None:
    """Refuses tokens that the model cannot take, and a training split that is empty, or lacks what is to be mixed. Cheap: configurations alone.

    Raises:
        ConfigError: naming the keys and numbers.
    """
    check_compatibility(config.model, vocab_size=manifest.vocab_size, sequence_length=manifest.sequence_length)
    if not manifest.num_sequences("train"):
        message = "leave no training sequence; give more text, or smaller held-out shares"
        raise ConfigError((Problem("corpus.splits", repr(config.corpus.splits.model_dump()), message),))
    if config.training.mixture is not None:
        check_mixture(config.training.mixture, manifest.sequences_by_source("train"))


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
    if commit is None:
        return None
    try:
        folder = checkpoint_folder(commit, artifact_dir=work.made(*_entries(commit)))
    except UnsafeFileError:
        raise
    except VerificationError as error:
        work.note(f"the checkpoint of step {total_steps} is made again: {'; '.join(error.findings)}")
        return None
    return commit if not verify(commit, folder=folder) else None


def _entries(commit: CommitRecord) -> tuple[FileEntry, ...]:
    """Returns the files of a commit, relative to the artifact's folder."""
    return tuple(entry.model_copy(update={"path": f"{commit.folder}/{entry.path}"}) for entry in commit.files)


def _draft(work: Work, commit: CommitRecord, *, files: tuple[FileEntry, ...], manifest: ShardManifest) -> Draft:
    """Returns the draft; its content hash is over paths relative to the checkpoint, so that epoch numbers do not matter."""
    committed = next(entry for entry in commit.files if entry.path == STATE_NAME)
    folder = checkpoint_folder(commit, artifact_dir=work.made(*_entries(commit)))
    state = TrainingState.model_validate_json(verified_bytes(folder, committed, subject=work.key))
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
        **({"acts": [str(act) for act in acts]} if (acts := read_acts(work.storage, work.layout)) else {}),
        **({"goodput": ledger.goodput} if (ledger := keep_ledger(work.storage, work.layout, now=time.time())) is not None else {}),
        **_spending(work),
        "num_restarts": max(0, len(work.storage.names(work.layout.epochs)) - 1),
    }
    return Draft(files=(*files, *_entries(commit)), summary=summary, content_hash=content_hash_of(commit.files))


def _spending(work: Work) -> Mapping[str, float]:
    """Returns the device-hours that all its jobs took, and what they cost where a price is known."""
    hours, price = used_device_s(work.storage, work.layout) / HOUR_S, work.config.cluster.price_per_gpu_hour
    return {"device_hours": round(hours, 6), **({"cost": round(price * hours, 4)} if price is not None else {})}
