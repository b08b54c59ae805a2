"""Puts one start of training together: ranks, model, engine, restored state, data, and what watches them."""

import logging
import mmap
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cluster.storage import path_below
from schemas.act import merged
from schemas.artifact import FileEntry
from schemas.checkpoint import CommitRecord, TrainingState
from schemas.errors import VerificationError
from schemas.frozen import thaw
from schemas.manifest import ShardManifest, Split
from schemas.progress import NoticeKind, RankPhase
from schemas.recipe_config import Precision
from schemas.stage import Stage
from tasks.entry import RankTask
from tasks.outside_inputs import verify_training_files
from tasks.recorded_file import verified_bytes
from tasks.tokenize.shard_reader import ShardReader
from tasks.train.acts import ActBook, withdraw_left_behind
from tasks.train.checkpoint.commit import CheckpointStore
from tasks.train.checkpoint.fragments import TrainingTensors
from tasks.train.checkpoint.interval import SaveRhythm
from tasks.train.checkpoint.loaded import verify_loaded
from tasks.train.checkpoint.local_reading import LocalFound, newest_local
from tasks.train.checkpoint.local_tier import LocalStep, LocalTier
from tasks.train.checkpoint.loss_scale import restore_loss_scale
from tasks.train.checkpoint.reader import CheckpointReader, Content, newest_verified
from tasks.train.checkpoint.snapshot import Snapshot
from tasks.train.checkpoint.writer import CheckpointFacts, CheckpointWriter
from tasks.train.consumed import ConsumedIds
from tasks.train.data import BatchSource, TrainingBatches
from tasks.train.deepspeed_config import deepspeed_config
from tasks.train.documents import check_documents_apart
from tasks.train.engine import Engine, check_precision, join_deepspeed, start_engine
from tasks.train.gang import Gang
from tasks.train.host_memory import HostMemory
from tasks.train.interruption import Interruption
from tasks.train.loop import Progress, Session
from tasks.train.metrics import Efficiency, MetricsFile, flops_per_token
from tasks.train.model import BuiltModel, build_model
from tasks.train.numbers import RECENT_LOSSES, NumberGuard
from tasks.train.prescribed_order import order_of
from tasks.train.schedule import shared_steps
from tasks.train.validation import Sampler, Validator
from tasks.train.weights import WeightWatch

logger = logging.getLogger(__name__)

_DTYPES = {Precision.FP32: torch.float32, Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}


def open_session(task: RankTask, *, options: Mapping[str, Any] | None) -> Session:
    """Returns a session at the newest verified checkpoint, or at step 0 when nothing was ever committed. Collective.

    Raises:
        ConfigError: the configuration does not fit the machine, the tokens or DeepSpeed.
        VerificationError: there are checkpoints, but none verifies; or an input is, on this node, not what was recorded.
    """
    interruption = Interruption()
    interruption.listen()
    check_precision(task.config)
    manifest = _verified_inputs(task)
    gang = Gang.join(rank=task.rank, world_size=task.world_size, local_rank=task.local_rank, epoch=task.spec.epoch)
    book = ActBook.read(CheckpointStore(task.output_dir), gang=gang, epoch=task.spec.epoch)
    task = replace(task, config=book.in_force(task.config))
    training = task.config.training
    deepspeed_options = deepspeed_config(task.config, world_size=gang.world_size, options=options)
    store = book.store
    withdraw_left_behind(store, book.standing, gang=gang)
    listed = store.steps() if gang.rank == 0 else ()
    fresh = not gang.gather([len(listed)])[0][0]
    built, engine = _start(task, manifest=manifest, options=deepspeed_options, gang=gang, fresh=fresh)
    tensors = TrainingTensors(engine)
    snapshot = Snapshot(tensors.owned())
    progress = _restore(book, engine, tensors=tensors, task=task, listed=listed, memory=snapshot.buffer.memory)
    source = _source(task, manifest=manifest, split="train", gang=gang)
    epoch_sequences = training.epoch_sequences(manifest.sequences_by_source("train"))
    total_steps = training.total_steps(num_sequences=epoch_sequences, sequence_length=manifest.sequence_length)
    facts = CheckpointFacts(
        base_state=_base_state(task, engine, tensors=tensors),
        model_config=built.model_config,
        rules=task.config.checkpoint,
        verified_step=progress.verified_step,
        local_dir=tier.folder if (tier := _local_tier(task)) is not None else None,
        local_step=progress.committed_step if progress.committed_step != progress.verified_step else -1,
        shared_steps=shared_steps(total_steps, schedule=training.schedule),
    )
    return Session(
        task=task,
        total_steps=total_steps,
        engine=engine,
        tensors=tensors,
        batches=TrainingBatches(
            source,
            order=order_of(manifest, seed=training.seed, mixture=training.mixture, window_sequences=training.window_sequences),
            global_batch_size=training.global_batch_size,
            micro_batch_size=training.micro_batch_size,
            rank=gang.rank,
            world_size=gang.world_size,
            skipped=progress.skipped_batches,
        ),
        writer=CheckpointWriter(store, gang=gang, epoch=task.spec.epoch, snapshot=snapshot, facts=facts, tell=task.notice),
        rhythm=SaveRhythm(task.config.checkpoint.every_steps, mtbf_s=task.spec.mtbf_s, total_steps=total_steps, now=time.monotonic()),
        validator=_validator(task, engine, manifest=manifest),
        sampler=_sampler(task, engine, manifest=manifest),
        metrics=MetricsFile(task.scratch_dir, epoch=task.spec.epoch, from_step=progress.step) if gang.rank == 0 else None,
        base_state=facts.base_state,
        tokens_per_step=training.global_batch_size * manifest.sequence_length,
        efficiency=_efficiency(task, built, manifest=manifest, gang=gang),
        interruption=interruption,
        progress=progress,
        numbers=NumberGuard(task.config.restart, book=book, task=task, gang=gang),
        weights=WeightWatch(tensors, engine=engine, every_steps=task.config.checkpoint.check_weights_every_steps),
    )


def _verified_inputs(task: RankTask) -> ShardManifest:
    """Returns the shards' manifest, once this node's files are what the control half saw. Before the ranks meet: who refuses keeps none waiting."""
    files = tuple(FileEntry.model_validate(entry) for entry in thaw(task.options["outside_files"]))
    project_dir = Path(task.spec.job.project_dir)
    verify_training_files(task.config, files, project_dir=project_dir, part=task.local_rank, num_parts=task.local_world_size)
    return ShardManifest.model_validate_json(_recorded(task, Stage.TOKENIZE, option="manifest"))


def _recorded(task: RankTask, stage: Stage, *, option: str) -> bytes:
    """Returns the content of an input's file, whose entry the control half handed over as `option`."""
    entry = FileEntry.model_validate(thaw(task.options[option]))
    return verified_bytes(task.input_dirs[stage], entry, subject=f"input {stage.value}")


def _start(task: RankTask, *, manifest: ShardManifest, options: Mapping[str, Any], gang: Gang, fresh: bool) -> tuple[BuiltModel, Engine]:
    """Returns the model and its engine: at step 0, or, unless `fresh`, with trained weights that mean nothing until a checkpoint is loaded."""
    join_deepspeed(gang)
    partitioned = options if task.config.training.zero_stage == 3 else None
    built = build_model(task.config, manifest=manifest, deepspeed_options=partitioned, initialise=fresh)
    engine = start_engine(built, config=task.config, options=options, gang=gang, broadcast=fresh)
    if fresh and task.config.training.document_attention == "masked":
        check_documents_apart(engine.module, vocab_size=manifest.vocab_size, device=gang.device)
    return built, engine


def _restore(book: ActBook, engine: Engine, *, tensors: TrainingTensors, task: RankTask, listed: tuple[int, ...], memory: mmap.mmap) -> Progress:
    """Puts the newest verified checkpoint into the engine and returns where training stands. Collective.

    Args:
        book: where the checkpoints are, and what was done to the training.
        engine: at step 0.
        tensors: its state.
        task: this rank's.
        listed: the committed steps, on rank 0; where there are any, one of them is loaded, or it is an error.
        memory: of the snapshots to come: until the first of them it takes what is read.
    """
    task.progress(RankPhase.LOADING)
    store, standing = book.store, book.standing
    path_below(store.artifact_dir.parent, store.layout.checkpoints)  # refuses a link: what is written there would lie outside
    content = Content(memory)
    tell = partial(_tell_damage, task)
    commit = newest_verified(store, gang=engine.gang, epoch=task.spec.epoch, content=content, steps=listed, tell=tell)
    verified_step = commit.step if commit is not None else None
    held = Content()
    local = _newer_on_node(task, book, engine, tensors=tensors, above=-1 if verified_step is None else verified_step, content=held)
    if local is not None:
        reader = local.reader
        content.clear()  # shared storage's copy is not needed, and large
    elif commit is not None:
        reader = CheckpointReader(store, commit, content=content)
    else:
        tensors.refresh()
        return Progress(skipped_batches=standing.skipped_batches)
    reader.load(tensors)
    state = reader.state
    tensors.set_optimizer_step(state.optimizer_step)
    restore_loss_scale(engine.optimizer, state.loss_scale)
    tensors.refresh()
    stale = tensors.stale_parameters()
    if stale:
        findings = tuple(f"{name}: the forward copy is not cast(master weight)" for name in stale)
        raise VerificationError(findings, subject=f"rank {task.rank} after loading step {state.step}")
    figures = {"loss": state.loss, "validation_loss": state.validation_loss, "validation_bits_per_byte": state.validation_bits_per_byte}
    known = {name: value for name, value in figures.items() if value is not None}
    if local is not None:
        logger.info("goes on from step %d, which epoch %d left on the nodes' own disks", state.step, local.at.epoch)
    else:
        assert commit is not None
        logger.info("goes on from step %d, written by %d ranks in epoch %d", state.step, commit.world_size, commit.epoch)
        _note_size(book, engine, commit=commit, state=state, tensors=tensors)
    return Progress(
        step=state.step,
        skipped_steps=list(state.skipped_steps),
        skipped_batches=merged((*state.skipped_batches, *standing.skipped_batches)),
        recent_losses=deque(state.recent_losses, maxlen=RECENT_LOSSES),
        committed_step=state.step,
        verified_step=verified_step,
        consumed=ConsumedIds(state.consumed),
        figures=known,
    )


def _note_size(book: ActBook, engine: Engine, *, commit: CommitRecord, state: TrainingState, tensors: TrainingTensors) -> None:
    """Proves and records that the state came whole from another number of ranks or ZeRO stage, where it did. Collective."""
    sizes = {"was": (commit.world_size, state.zero_stage), "now": (engine.gang.world_size, engine.zero_stage)}
    if sizes["was"] != sizes["now"]:
        state_hash = verify_loaded(book.store, commit, tensors=tensors, gang=engine.gang)
        logger.info("the state of step %d is cut otherwise now, and is what was committed: %s", state.step, state_hash)
        book.note_size(step=state.step, state_hash=state_hash, gang=engine.gang, **sizes)


def _local_tier(task: RankTask) -> LocalTier | None:
    """Returns the artifact's folder on this node's own disk, where the recipe has one."""
    folder = task.config.checkpoint.local_dir
    return LocalTier.of(folder, artifact_dir=task.output_dir) if folder is not None else None


def _tell_damage(task: RankTask, step: int, findings: tuple[str, ...], chosen: int) -> None:
    """Says which checkpoint was passed over, and why."""
    more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
    message = f"the checkpoint of step {step} is damaged, training goes on from step {chosen}: {findings[0]}{more}"
    task.notice(NoticeKind.CHECKPOINT_DAMAGED, message, step=chosen, rank=-1)


def _newer_on_node(task: RankTask, book: ActBook, engine: Engine, *, tensors: TrainingTensors, above: int, content: Content) -> LocalFound | None:
    """Returns the newest checkpoint that the nodes' own disks hold above a step of shared storage; None without one. Collective."""
    tier = _local_tier(task)
    if tier is None:
        return None

    def is_void(at: LocalStep) -> bool:
        return book.standing.voids(step=at.step, epoch=at.epoch)

    found = newest_local(tier, gang=engine.gang, tensors=tensors, above=above, is_void=is_void, content=content)
    return found if found is not None and found.reader.state.zero_stage == engine.zero_stage else None


def _source(task: RankTask, *, manifest: ShardManifest, split: Split, gang: Gang) -> BatchSource:
    reader, masked = ShardReader(manifest, folder=task.input_dirs[Stage.TOKENIZE], split=split), task.config.training.document_attention == "masked"
    return BatchSource(reader, manifest=manifest, split=split, masked=masked, memory=HostMemory(gang.device))


def _validator(task: RankTask, engine: Engine, *, manifest: ShardManifest) -> Validator | None:
    if not manifest.num_sequences("validation"):
        return None
    training = task.config.training
    source = _source(task, manifest=manifest, split="validation", gang=engine.gang)
    return Validator(engine, source, manifest=manifest, tracking=task.config.tracking, micro_batch_size=training.micro_batch_size, seed=training.seed)


def _sampler(task: RankTask, engine: Engine, *, manifest: ShardManifest) -> Sampler | None:
    if not task.config.tracking.sample_tokens:
        return None
    tokenizer_json = _recorded(task, Stage.TOKENIZER, option="tokenizer")
    return Sampler(engine, tokenizer_json=tokenizer_json, manifest=manifest, tracking=task.config.tracking, seed=task.config.training.seed)


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


def _efficiency(task: RankTask, built: BuiltModel, *, manifest: ShardManifest, gang: Gang) -> Efficiency:
    tokens = task.config.training.global_batch_size * manifest.sequence_length
    per_token = flops_per_token(built.num_parameters, model_config=built.model_config, sequence_length=manifest.sequence_length)
    dtype = _DTYPES[task.config.training.precision]
    return Efficiency(flops_per_step=per_token * tokens, world_size=gang.world_size, device=gang.device, dtype=dtype)
