"""Puts one start of training together: ranks, model, engine, restored state, data, and what watches them."""

import logging
from collections.abc import Mapping
from typing import Any

import torch

from schemas.checkpoint import TrainingState
from schemas.config import Precision
from schemas.errors import VerificationError
from schemas.job import RankPhase
from schemas.manifest import ShardManifest
from schemas.stage import Stage
from tasks.entry import RankTask
from tasks.tokenize.shard_reader import ShardReader
from tasks.train.checkpoint.commit import CheckpointStore
from tasks.train.checkpoint.fragments import TrainingTensors
from tasks.train.checkpoint.loss_scale import restore_loss_scale
from tasks.train.checkpoint.reader import CheckpointReader, newest_verified
from tasks.train.checkpoint.retention import Retention
from tasks.train.checkpoint.writer import CheckpointWriter, Snapshot
from tasks.train.data import BatchSource, TrainingBatches
from tasks.train.deepspeed_config import deepspeed_config
from tasks.train.engine import Engine, check_precision, join_deepspeed, start_engine
from tasks.train.gang import Gang
from tasks.train.interruption import Interruption
from tasks.train.loop import Progress, Session
from tasks.train.metrics import MetricsFile, flops_per_token, peak_flops
from tasks.train.model import BuiltModel, build_model
from tasks.train.schedule import shared_steps
from tasks.train.validation import Sampler, Validator

logger = logging.getLogger(__name__)

_DTYPES = {Precision.FP32: torch.float32, Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}


def open_session(task: RankTask, *, options: Mapping[str, Any] | None) -> Session:
    """Returns a session at the newest verified checkpoint, or at step 0 when nothing was ever committed. Collective.

    Raises:
        ConfigError: the configuration does not fit the machine, the tokens or DeepSpeed.
        VerificationError: there are checkpoints, but none verifies.
    """
    interruption = Interruption()
    interruption.listen()
    check_precision(task.config)
    manifest = ShardManifest.model_validate_json((task.input_dirs[Stage.TOKENIZE] / "manifest.json").read_bytes())
    gang = Gang.join(rank=task.rank, world_size=task.world_size, local_rank=task.local_rank, epoch=task.spec.epoch)
    training = task.config.training
    deepspeed_options = deepspeed_config(task.config, world_size=gang.world_size, options=options)
    built, engine = _start(task, manifest=manifest, options=deepspeed_options, gang=gang)
    tensors = TrainingTensors(engine)
    store = CheckpointStore(task.output_dir)
    progress = _restore(store, engine, tensors=tensors, task=task)
    source = BatchSource(ShardReader(manifest, folder=task.input_dirs[Stage.TOKENIZE], split="train"), manifest=manifest, split="train")
    total_steps = training.total_steps(num_sequences=source.num_sequences, sequence_length=manifest.sequence_length)
    return Session(
        task=task,
        total_steps=total_steps,
        engine=engine,
        tensors=tensors,
        batches=TrainingBatches(
            source,
            global_batch_size=training.global_batch_size,
            micro_batch_size=training.micro_batch_size,
            seed=training.seed,
            rank=gang.rank,
            world_size=gang.world_size,
        ),
        writer=CheckpointWriter(store, gang=gang, epoch=task.spec.epoch, snapshot=Snapshot(tensors.owned()), model_config=built.model_config),
        retention=Retention(
            store,
            config=task.config.checkpoint,
            epoch=task.spec.epoch,
            verified_step=progress.step or None,
            shared_steps=shared_steps(total_steps, schedule=training.schedule),
        ),
        validator=_validator(task, engine, manifest=manifest),
        sampler=_sampler(task, engine, manifest=manifest),
        metrics=MetricsFile(task.scratch_dir, epoch=task.spec.epoch) if gang.rank == 0 else None,
        base_state=_base_state(task, engine, tensors=tensors),
        figures=_figures(task, built, manifest=manifest, gang=gang),
        interruption=interruption,
        progress=progress,
    )


def _start(task: RankTask, *, manifest: ShardManifest, options: Mapping[str, Any], gang: Gang) -> tuple[BuiltModel, Engine]:
    """Returns the model and its engine, at step 0."""
    join_deepspeed(gang)
    partitioned = options if task.config.training.zero_stage == 3 else None
    built = build_model(task.config, manifest=manifest, deepspeed_options=partitioned)
    return built, start_engine(built, config=task.config, options=options, gang=gang)


def _restore(store: CheckpointStore, engine: Engine, *, tensors: TrainingTensors, task: RankTask) -> Progress:
    """Puts the newest verified checkpoint into the engine and returns where training stands. Collective."""
    task.progress(RankPhase.LOADING)
    commit = newest_verified(store, gang=engine.gang, epoch=task.spec.epoch)
    if commit is None:
        tensors.refresh()
        return Progress()
    reader = CheckpointReader(store, commit)
    reader.load(tensors)
    state = reader.state
    tensors.set_optimizer_step(state.optimizer_step)
    restore_loss_scale(engine.optimizer, state.loss_scale)
    tensors.refresh()
    stale = tensors.stale_parameters()
    if stale:
        findings = tuple(f"{name}: the forward copy is not cast(master weight)" for name in stale)
        raise VerificationError(findings, subject=f"rank {task.rank} after loading step {state.step}")
    logger.info("goes on from step %d, written by %d ranks in epoch %d", state.step, commit.world_size, commit.epoch)
    figures = {"loss": state.loss, "validation_loss": state.validation_loss, "validation_bits_per_byte": state.validation_bits_per_byte}
    known = {name: value for name, value in figures.items() if value is not None}
    return Progress(step=state.step, skipped_steps=list(state.skipped_steps), committed_step=state.step, figures=known)


def _validator(task: RankTask, engine: Engine, *, manifest: ShardManifest) -> Validator | None:
    if not manifest.num_sequences("validation"):
        return None
    training = task.config.training
    reader = ShardReader(manifest, folder=task.input_dirs[Stage.TOKENIZE], split="validation")
    source = BatchSource(reader, manifest=manifest, split="validation")
    return Validator(engine, source, manifest=manifest, tracking=task.config.tracking, micro_batch_size=training.micro_batch_size, seed=training.seed)


def _sampler(task: RankTask, engine: Engine, *, manifest: ShardManifest) -> Sampler | None:
    if not task.config.tracking.sample_tokens:
        return None
    tokenizer_file = task.input_dirs[Stage.TOKENIZER] / "tokenizer.json"
    return Sampler(engine, tokenizer_file=tokenizer_file, manifest=manifest, tracking=task.config.tracking, seed=task.config.training.seed)


def _base_state(task: RankTask, engine: Engine, *, tensors: TrainingTensors) -> TrainingState:
    training = task.config.training
    return TrainingState(
        step=0,
        optimizer_step=0,
        skipped_steps=(),
        loss_scale={},
        parameters=tensors.parameters,
        seed=training.seed,
        zero_stage=engine.zero_stage,
        precision=training.precision.value,
    )


def _figures(task: RankTask, built: BuiltModel, *, manifest: ShardManifest, gang: Gang) -> dict[str, float]:
    tokens = task.config.training.global_batch_size * manifest.sequence_length
    per_token = flops_per_token(built.num_parameters, model_config=built.model_config, sequence_length=manifest.sequence_length)
    peak = peak_flops(gang.device, dtype=_DTYPES[task.config.training.precision]) if gang.rank == 0 else 1.0
    return {"tokens_per_step": float(tokens), "flops_per_step": per_token * tokens, "peak_flops": peak * gang.world_size}
