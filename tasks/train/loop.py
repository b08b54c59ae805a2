"""The training loop, read from top to bottom. Everything clever is elsewhere.

A step is one update of the weights; `step` counts the updates made, so it is also the index of the next batch.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from cluster.agent.preload import record_modules
from schemas.checkpoint import TrainingState
from schemas.config import RunConfig
from schemas.errors import InterruptedRunError, PolicyStopError, UnreachableError
from schemas.job import RankPhase
from tasks.entry import RankTask
from tasks.train.agreement import Agreement, RankWord, agree
from tasks.train.checkpoint.fragments import TrainingTensors
from tasks.train.checkpoint.loss_scale import loss_scale_numbers
from tasks.train.checkpoint.retention import Retention
from tasks.train.checkpoint.writer import CheckpointWriter
from tasks.train.clock import StepClock
from tasks.train.data import TrainingBatches
from tasks.train.engine import Engine, StepResult
from tasks.train.interruption import Interruption
from tasks.train.metrics import MetricsFile, memory_bytes
from tasks.train.order import stream_seed
from tasks.train.schedule import learning_rate
from tasks.train.validation import Sampler, Validator

logger = logging.getLogger(__name__)

_SHOWN_FIGURES = ("loss", "step_s", "tokens_per_s", "validation_loss", "learning_rate")
"""What a rank's progress shows; the time that is left is estimated from `step_s`."""
_KEPT_FIGURES = ("loss", "validation_loss", "validation_bits_per_byte")


@dataclass
class Progress:
    """How far training is: the part of its state that is not in the engine."""

    step: int = 0
    """Updates asked for: the index of the next batch."""
    skipped_steps: list[int] = field(default_factory=list)
    """Steps whose update was skipped because gradients overflowed."""
    committed_step: int = -1
    """Newest committed step; -1: none."""
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
    retention: Retention
    validator: Validator | None
    """None without a validation split."""
    sampler: Sampler | None
    metrics: MetricsFile | None
    """Rank 0 only."""
    base_state: TrainingState
    """Template of `state.json`."""
    figures: Mapping[str, float]
    """`tokens_per_step`, and `flops_per_step` and `peak_flops` over all ranks."""
    interruption: Interruption
    progress: Progress
    seen_phases: set[RankPhase] = field(default_factory=set)

    @property
    def config(self) -> RunConfig:
        """The run's configuration."""
        return self.task.config


def train(session: Session) -> None:
    """Trains from `session.progress` to the last step and leaves its checkpoint committed.

    Raises:
        InterruptedRunError: asked to stop; everything so far is committed.
        PolicyStopError: the loss or the gradients are not finite.
        UnreachableError: the last checkpoint could not be written.
    """
    config, engine, progress, clock = session.config, session.engine, session.progress, StepClock()
    while progress.step < session.total_steps:
        clock.start()
        agreed = agree(engine.gang, _word(session, loss=_accumulate(session, clock)))
        clock.lap("agree_s")
        rate = learning_rate(
            progress.step, total_steps=session.total_steps, peak=config.training.optimizer.learning_rate, schedule=config.training.schedule
        )
        result = engine.step(learning_rate=rate)
        clock.lap("optimizer_s")
        _refuse_numeric_failure(progress.step, loss=agreed.mean_loss, result=result)
        if not result.applied:
            progress.skipped_steps.append(progress.step)
        progress.step += 1
        values = {"loss": agreed.mean_loss, "learning_rate": rate, "loss_scale": engine.loss_scale}
        if result.applied:
            values["gradient_norm"] = result.gradient_norm
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
    losses = torch.zeros((), device=engine.gang.device)
    for position, batch in enumerate(micro_batches):
        loss = engine.loss(batch)
        clock.lap("forward_s")
        engine.backward(loss, last=position == len(micro_batches) - 1)
        losses += loss.detach()
        clock.lap("backward_s")
    return float(losses) / len(micro_batches)


def _word(session: Session, *, loss: float) -> RankWord:
    """Returns what this rank has to say at this update."""
    next_step = session.progress.step + 1
    due = next_step == session.total_steps or next_step % session.config.checkpoint.every_steps == 0
    return RankWord(loss=loss, stop=session.interruption.requested, committed_step=session.progress.committed_step, wants_save=due)


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
    progress.figures |= {name: values[name] for name in _KEPT_FIGURES if name in values}
    if agreed.save_due or agreed.stopping:
        _save(session, must_succeed=last or agreed.stopping)
        clock.lap("checkpoint_s")
    values |= {"step_s": step_s, "tokens_per_s": session.figures["tokens_per_step"] / step_s}
    if session.writer.num_failures:
        values["checkpoint_failures"] = session.writer.num_failures
    values["mfu"] = session.figures["flops_per_step"] / step_s / session.figures["peak_flops"]
    _report(session, RankPhase.STEPPING, values)
    if session.metrics is not None and (last or agreed.stopping or text or progress.step % config.tracking.log_every_steps == 0):
        measured = {**values, **clock.parts, **memory_bytes(session.engine.gang.device)}
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


def _save(session: Session, *, must_succeed: bool) -> None:
    """Commits the present state. A failure is survived where a later checkpoint can make up for it."""
    progress = session.progress
    _report(session, RankPhase.SAVING, {})
    state = session.base_state.model_copy(
        update={
            "step": progress.step,
            "optimizer_step": progress.optimizer_step,
            "skipped_steps": tuple(progress.skipped_steps),
            "loss_scale": loss_scale_numbers(session.engine.optimizer),
            **progress.figures,
        }
    )
    if session.writer.save(state):
        progress.committed_step = progress.step
        if session.engine.gang.rank == 0:
            session.retention.apply()
    elif must_succeed:
        why = f"the newest committed step is {progress.committed_step}; the ranks' logs name the path and the reason"
        mend = "free space or restore access, then headrace resume"
        raise UnreachableError(f"the checkpoint of step {progress.step} could not be written", why=why, mend=mend)


def _refuse_numeric_failure(step: int, *, loss: float, result: StepResult) -> None:
    """Stops before weights that are not finite can be committed; a calm restart would only come here again."""
    bad = "loss" if not math.isfinite(loss) else "gradient norm" if result.applied and not math.isfinite(result.gradient_norm) else ""
    if bad:
        raise PolicyStopError(
            f"the {bad} of step {step} is not finite",
            why="the update has spoiled the weights, and the same batch would do so again",
            mend="lower training.optimizer.learning_rate, lengthen the warm-up, or use bf16 or fp32; committed checkpoints are intact",
        )


def _report(session: Session, phase: RankPhase, values: Mapping[str, float]) -> None:
    shown = {key: values[key] for key in _SHOWN_FIGURES if key in values}
    progress = session.progress
    if phase not in session.seen_phases:
        session.seen_phases.add(phase)
        record_modules()  # what this phase imported, later starts find imported
    session.task.progress(phase, step=progress.step, committed_step=progress.committed_step, total_steps=session.total_steps, figures=shown)
