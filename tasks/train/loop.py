"""The training loop, read from top to bottom. Everything clever is elsewhere.

A step is one update of the weights; `step` counts the updates made, so it is also the index of the next batch.
"""

import logging
import math
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from cluster.agent.preload import record_modules
from schemas.checkpoint import BatchWindow, TrainingState
from schemas.config import RunConfig
from schemas.errors import InterruptedRunError, UnreachableError
from schemas.progress import RankPhase
from schemas.recipe_config import Precision
from tasks.entry import RankTask
from tasks.train.agreement import Agreement, RankWord, agree
from tasks.train.checkpoint.fragments import TrainingTensors
from tasks.train.checkpoint.interval import SaveRhythm
from tasks.train.checkpoint.loss_scale import loss_scale_numbers
from tasks.train.checkpoint.writer import CheckpointWriter, Tier
from tasks.train.clock import StepClock
from tasks.train.consumed import ConsumedIds
from tasks.train.data import TrainingBatches
from tasks.train.engine import Engine
from tasks.train.interruption import Interruption
from tasks.train.metrics import Efficiency, MetricsFile, memory_bytes
from tasks.train.numbers import RECENT_LOSSES, NumberGuard
from tasks.train.order import stream_seed
from tasks.train.schedule import learning_rate
from tasks.train.validation import Sampler, Validator
from tasks.train.weights import WeightWatch

logger = logging.getLogger(__name__)

_SHOWN_FIGURES = ("loss", "step_s", "tokens_per_s", "validation_loss", "learning_rate", "checkpoint_write_s")
"""What a rank's progress shows; the time that is left is estimated from `step_s`, and how long a graceful stop takes."""
_KEPT_FIGURES = ("loss", "validation_loss", "validation_bits_per_byte")


@dataclass
class Progress:
    """How far training is: the part of its state that is not in the engine."""

    step: int = 0
    """Updates asked for: the index of the next batch."""
    skipped_steps: list[int] = field(default_factory=list)
    """Steps whose update was skipped: gradients overflowed, or numbers were bad."""
    skipped_batches: tuple[BatchWindow, ...] = ()
    """Batches that are never used, because training went back over them: ascending, disjoint."""
    recent_losses: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT_LOSSES))
    """Mean losses of the last applied updates, oldest first."""
    committed_step: int = -1
    """Newest committed step, on shared storage or on the nodes' own disks; -1: none."""
    verified_step: int | None = None
    """The step of shared storage that was verified at this start; None: there is none."""
    consumed: ConsumedIds = field(default_factory=ConsumedIds)
    """Which sequences all steps so far have used."""
    figures: dict[str, float] = field(default_factory=dict)
    """`loss`, `validation_loss` and `validation_bits_per_byte`, the newest of each."""

    @property
    def optimizer_step(self) -> int:
        """Updates applied."""
        return self.step - len(self.skipped_steps)


@dataclass(frozen=True)
class Session:
    """Everything that one start of training works with; `tasks.train.job` puts it together."""

    task: RankTask
    total_steps: int
    engine: Engine
    tensors: TrainingTensors
    batches: TrainingBatches
    writer: CheckpointWriter
    rhythm: SaveRhythm
    validator: Validator | None
    """None without a validation split."""
    sampler: Sampler | None
    metrics: MetricsFile | None
    """Rank 0 only."""
    base_state: TrainingState
    """Template of `state.json`."""
    tokens_per_step: int
    """Over all ranks."""
    efficiency: Efficiency
    interruption: Interruption
    progress: Progress
    numbers: NumberGuard
    weights: WeightWatch
    seen_phases: set[RankPhase] = field(default_factory=set)
    costs: dict[str, float] = field(default_factory=dict)
    """Seconds of what is not part of every step, the last of each: told with the progress, so that the agent can stop training in time."""

    @property
    def config(self) -> RunConfig:
        """The run's configuration."""
        return self.task.config


def train(session: Session) -> None:
    """Trains from `session.progress` to the last step and leaves its checkpoint committed.

    Raises:
        InterruptedRunError: asked to stop; everything so far is committed.
        NumericError: loss or gradients cannot be right, and the recipe does not say skip; the weights are as they were.
        CorruptStateError: weights changed by themselves.
        UnreachableError: the last checkpoint could not be written.
    """
    config, engine, progress, clock = session.config, session.engine, session.progress, StepClock()
    session.task.progress(RankPhase.COMPILING, step=progress.step, committed_step=progress.committed_step, total_steps=session.total_steps)
    while progress.step < session.total_steps:
        clock.start(progress.step)
        agreed = agree(engine.gang, _word(session, loss=_accumulate(session, clock)))
        session.writer.advance(agreed)
        progress.committed_step = session.writer.newest_step
        clock.lap("agree_s")
        if session.writer.before_update():
            clock.lap("checkpoint_s")
            session.rhythm.cost(clock.parts["checkpoint_s"] + session.writer.copy_s)
        rate = learning_rate(
            progress.step, total_steps=session.total_steps, peak=config.training.optimizer.learning_rate, schedule=config.training.schedule
        )
        values = {"learning_rate": rate, **_update(session, loss=agreed.mean_loss, rate=rate)}
        progress.consumed.end_step(agreed.consumed)
        progress.step += 1
        session.weights.after_update(progress.step)
        clock.lap("optimizer_s")
        _finish_step(session, values, clock=clock, agreed=agreed)
        if agreed.stopping and progress.step < session.total_steps:
            what = f"stopped after step {progress.step} of {session.total_steps}, as asked; step {progress.committed_step} is committed"
            raise InterruptedRunError(what, mend="headrace resume goes on")


def _accumulate(session: Session, clock: StepClock) -> float:
    """Runs forward and backward over this rank's micro-batches of the step and returns their mean loss."""
    engine, progress = session.engine, session.progress
    engine.seed(stream_seed(session.config.training.seed, step=progress.step, rank=engine.gang.rank))
    micro_batches = session.batches.at(progress.step)
    clock.lap("data_s")
    session.weights.before_use()
    losses = torch.zeros((), device=engine.gang.device)
    for position, batch in enumerate(micro_batches):
        loss = engine.loss(batch)
        clock.lap("forward_s")
        engine.backward(loss, last=position == len(micro_batches) - 1)
        losses += loss.detach()
        progress.consumed.note(batch.indices)
        clock.lap("backward_s")
    return float(losses) / len(micro_batches)


def _update(session: Session, *, loss: float, rate: float) -> dict[str, float]:
    """Updates the weights, or skips the update where numbers are bad, and returns what there is to tell of it.

    Args:
        session: the training.
        loss: mean over all ranks, nats per token.
        rate: learning rate.
    """
    engine, progress, numbers = session.engine, session.progress, session.numbers
    what = numbers.trouble(loss, recent=progress.recent_losses)
    if what:
        numbers.answer(progress.step, f"the loss {what}")
    result = engine.skip() if progress.step in numbers.skipped else engine.step(learning_rate=rate)
    if not result.applied and session.config.training.precision is not Precision.FP16:  # fp16 lowers its loss scale and goes on
        numbers.answer(progress.step, "the global gradient norm is not finite")
    values = {"loss": loss} if math.isfinite(loss) else {}
    if result.applied:
        progress.recent_losses.append(loss)
        values["gradient_norm"] = result.gradient_norm
    else:
        progress.skipped_steps.append(progress.step)
    return values | {"loss_scale": engine.loss_scale}


def _word(session: Session, *, loss: float) -> RankWord:
    """Returns what this rank has to say at this update."""
    next_step = session.progress.step + 1
    due = session.rhythm.is_due(next_step, now=time.monotonic(), write_s=session.writer.write_s)
    save, committed_step = session.writer.word()
    return RankWord(
        loss=loss,
        stop=session.interruption.requested,
        save=save,
        committed_step=committed_step,
        wants_save=due,
        consumed=session.progress.consumed.words,
    )


def _finish_step(session: Session, values: dict[str, float], *, clock: StepClock, agreed: Agreement) -> None:
    """Validates, saves and reports after an update, as far as each is due."""
    config, progress = session.config, session.progress
    text: dict[str, str] = {}
    last = progress.step == session.total_steps
    step_s = sum(clock.parts.values())
    if last or progress.step % config.tracking.validate_every_steps == 0:
        validated, text = _validate(session)
        values |= validated
        clock.lap("validation_s")
        session.costs["validation_s"] = clock.parts["validation_s"]
    progress.figures |= {name: values[name] for name in _KEPT_FIGURES if name in values}
    if _local_is_due(session, agreed=agreed):
        session.weights.before_save()
        session.writer.begin(_state(session), tier=Tier.LOCAL)
        clock.lap("checkpoint_s")
    if agreed.save_due or agreed.stopping:
        _save(session, must_succeed=last or agreed.stopping)
        clock.lap("checkpoint_s")
    if not (last or agreed.stopping) and session.writer.prepare():
        clock.lap("checkpoint_s")
    values |= {"step_s": step_s, "tokens_per_s": session.tokens_per_step / step_s}
    values |= session.writer.figures()
    _report(session, RankPhase.STEPPING, values)
    if session.metrics is not None and (last or agreed.stopping or text or progress.step % config.tracking.log_every_steps == 0):
        measured = {**values, "mfu": session.efficiency.mfu(step_s), **clock.parts, **memory_bytes(session.engine.gang.device)}
        session.metrics.append(progress.step, measured, text=text, seconds=clock.take_totals())


def _validate(session: Session) -> tuple[dict[str, float], dict[str, str]]:
    """Returns figures and texts of a validation."""
    _report(session, RankPhase.VALIDATING, {})
    values: dict[str, float] = {}
    if session.validator is not None:
        loss, bits_per_byte = session.validator.loss()
        values["validation_loss"] = loss
        if bits_per_byte:
            values["validation_bits_per_byte"] = bits_per_byte
    sample = session.sampler.sample(session.progress.step) if session.sampler is not None else ""
    return values, {"sample": sample} if sample else {}


def _state(session: Session) -> TrainingState:
    """Returns the present state, but for what is cut into fragments."""
    progress = session.progress
    return session.base_state.model_copy(
        update={
            "step": progress.step,
            "optimizer_step": progress.optimizer_step,
            "skipped_steps": tuple(progress.skipped_steps),
            "skipped_batches": progress.skipped_batches,
            "recent_losses": tuple(progress.recent_losses),
            "consumed": progress.consumed.chain,
            "loss_scale": loss_scale_numbers(session.engine.optimizer),
            **progress.figures,
        }
    )


def _local_is_due(session: Session, *, agreed: Agreement) -> bool:
    """Whether the present state goes to the nodes' own disks: not when it goes to shared storage, nor while a checkpoint is under way."""
    every, writer = session.config.checkpoint.local_every_steps, session.writer
    due = every is not None and session.progress.step % every == 0 and not agreed.save_due and not agreed.stopping
    return due and writer.pending is None


def _save(session: Session, *, must_succeed: bool) -> None:
    """Has the present state saved. What `must_succeed` is waited for; any other may fail, or be skipped, and a later one makes up for it."""
    progress, writer, rules = session.progress, session.writer, session.config.checkpoint
    wait = must_succeed or not rules.background
    behind_local = writer.pending is not None and writer.pending[1] is Tier.LOCAL  # which is quick, and of less use
    if wait or behind_local or (rules.keep_every_steps is not None and progress.step % rules.keep_every_steps == 0):
        writer.settle(on_wait=lambda: _report(session, RankPhase.SAVING, {}))  # of what is under way; what is kept for ever is not skipped
    began = time.monotonic()
    session.rhythm.begun(now=began)
    if not writer.is_free(progress.step):
        return
    session.weights.before_save()
    _report(session, RankPhase.SAVING, {})
    writer.begin(_state(session))
    session.rhythm.stalled(time.monotonic() - began)
    if wait:
        writer.settle(on_wait=lambda: _report(session, RankPhase.SAVING, {}))
        progress.committed_step = writer.newest_step
    if must_succeed and writer.committed_step != progress.step:
        why = f"the newest committed step is {writer.committed_step}; the ranks' logs name the path and the reason"
        mend = "free space or restore access, then headrace resume"
        raise UnreachableError(f"the checkpoint of step {progress.step} could not be written", why=why, mend=mend)
    if must_succeed:
        writer.close(forget_local=progress.step == session.total_steps)


def _report(session: Session, phase: RankPhase, values: Mapping[str, float]) -> None:
    shown = {key: values[key] for key in _SHOWN_FIGURES if key in values} | session.costs
    progress = session.progress
    if phase not in session.seen_phases:
        session.seen_phases.add(phase)
        record_modules()  # what this phase imported, later starts find imported
    session.task.progress(phase, step=progress.step, committed_step=progress.committed_step, total_steps=session.total_steps, figures=shown)
