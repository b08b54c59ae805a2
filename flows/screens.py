"""What the command line shows: from data to lines of text. Pure, so that screens are kept as golden files."""

from collections.abc import Mapping, Sequence
from typing import Any

from flows.figure import (
    comparison_lines,
    cost_line,
    incident_line,
    items_line,
    ledger_line,
    model_uri,
    of_bytes,
    of_count,
    of_moment,
    of_seconds,
    source_row,
    stage_detail,
    table,
)
from schemas.config import RunConfig
from schemas.cost import TrainingCost, of_hours
from schemas.frozen import thaw
from schemas.plan import FINGERPRINT, KEY, RUN, Action, Plan
from schemas.sizing import TrainingSize
from schemas.stage import Stage
from schemas.view import RunView, StageState, StageView

_WIDTH = 100
_MOST_NOTICES = 5
"""Lines that notices take in `status`."""

_NEXT_DOCUMENT, _SHOWN = "\n---\n", 2
"""Of manifests the first, which owns the rest, and the last, the first node's pod, are shown."""

# ---- plan ------------------------------------------------------------------------------------------------------------


def plan_screen(plan: Plan, *, config: RunConfig, warnings: Sequence[str] = ()) -> list[str]:
    """Returns the plan: what happens to each stage and why, then every derived number with its formula."""
    lines = [f"{plan.name}: artifacts in {plan.storage_root}", ""]
    rows = []
    for stage in plan.stages:
        detail = stage_detail(stage.stage, stage.summary)
        reasons = stage.reasons[1:] if stage.action is Action.REUSE and detail else stage.reasons  # it goes without saying: "found by content"
        first, *others = [*([detail] if detail else []), *reasons]
        rows.append((stage.stage.value, stage.action.value, first))
        rows += [("", "", other) for other in others]
    lines += [f"  {line}" for line in table(rows)]
    numbers = _number_rows(config, plan.size) + (_price_rows(plan.cost) if plan.cost is not None else [])
    lines += ["", *(f"  {line}" for line in table(numbers, right=(1,)))]
    lines += ["", *(f"warning: {warning}" for warning in (*warnings, *plan.warnings))] if warnings or plan.warnings else []
    return [*lines, *_script_lines(plan)]


def _script_lines(plan: Plan) -> list[str]:
    """The script of the training's job, as it is: it can be copied. Of the other stages, where to see theirs."""
    script, others = plan.scripts.get(Stage.TRAIN), ", ".join(stage.value for stage in plan.scripts if stage is not Stage.TRAIN)
    if script is None:
        return ["", f"what is submitted for {others}: --json"] if others else []
    words = " and ".join((RUN, KEY)) if FINGERPRINT not in script else f"{RUN}, {KEY} and {FINGERPRINT}"
    documents = script.split(_NEXT_DOCUMENT)
    title = f"{'manifests' if len(documents) > 1 else 'batch script'} of train; {words} are filled in when it is submitted"
    notes = [f"those of {others}: --json"] if others else []
    if len(documents) > _SHOWN:
        notes.append(f"pods are alike but for name and rank: {_SHOWN} of {len(documents)} documents are shown")
        script = _NEXT_DOCUMENT.join((*documents[: _SHOWN - 1], documents[-1]))
    return ["", title, *notes, "", *script.splitlines()]


def _number_rows(config: RunConfig, size: TrainingSize) -> list[tuple[str, str, str]]:
    training, length = config.training, config.tokenization.sequence_length
    world = ", ".join(map(str, size.feasible_world_sizes[:12])) + (", …" if len(size.feasible_world_sizes) > 12 else "")
    rows = [
        ("ranks", str(size.world_size), f"of {size.ranks} asked for; feasible: {world}"),
        *_shape_rows(config, size),
        (
            "accumulation steps",
            str(size.accumulation_steps),
            f"global batch {training.global_batch_size} / (micro-batch {training.micro_batch_size} x {size.world_size} ranks)",
        ),
        ("tokens per step", f"{size.tokens_per_step:,}", f"{training.global_batch_size} sequences x {length}"),
    ]
    if size.total_steps is None:
        rows.append(("steps", "?", f"{training.epochs:g} epochs: known once the text is tokenized"))
    else:
        rows.append(("steps", f"{size.total_steps:,}", _steps_from(config)))
        rows.append(("training tokens", of_count(size.total_tokens or 0), f"{size.total_steps:,} steps x {size.tokens_per_step:,}"))
    if size.epochs is not None:
        of = "the training split" if training.mixture is None else f"what training.mixture.{training.mixture.kind} makes an epoch"
        rows.append(("epochs", f"{size.epochs:.2f}", f"passes over {of}"))
    rows += [source_row(source) for source in size.sources]
    if size.model is None:
        rows.append(("parameters", "?", "known to the model's own code only: no estimate of memory and disk"))
        return rows
    rows.append(("parameters", of_count(size.model.parameters), f"{size.model.layers} layers of {size.model.hidden}, {size.model.vocab_size:,} ids"))
    return rows + _cost_rows(config, size)


def _shape_rows(config: RunConfig, size: TrainingSize) -> list[tuple[str, str, str]]:
    """What attempts may have when the queue does not give back all nodes; nothing where they are always as many."""
    largest, *smaller = size.attempt_shapes
    if not smaller:
        return []
    shown = ", ".join(f"{shape.num_nodes} x {shape.ranks_per_node}" for shape in smaller[:12]) + (", …" if len(smaller) > 12 else "")
    memory = f"; memory per rank up to {of_bytes(size.most_memory.total)}" if size.most_memory is not None else ""
    row = (
        "nodes x ranks",
        f"{largest.num_nodes} x {largest.ranks_per_node}",
        f"or {shown} after {config.restart.smaller_after} in the queue{memory}",
    )
    return [row]


def _steps_from(config: RunConfig) -> str:
    training = config.training
    if training.steps is not None:
        return "training.steps"
    return f"{of_count(training.tokens)} tokens, rounded up" if training.tokens is not None else f"{training.epochs:g} epochs, rounded up"


def _cost_rows(config: RunConfig, size: TrainingSize) -> list[tuple[str, str, str]]:
    memory, rows = size.memory, list[tuple[str, str, str]]()
    if memory is not None:
        parts = f"weights {of_bytes(memory.weights)} + gradients {of_bytes(memory.gradients)} + optimizer {of_bytes(memory.optimizer)}"
        rows.append(
            ("memory per rank", of_bytes(memory.total), f"{parts} + activations {of_bytes(memory.activations)}; ZeRO-{config.training.zero_stage}")
        )
    if size.checkpoint_bytes is not None:
        rows.append(("checkpoint", of_bytes(size.checkpoint_bytes), "12 bytes per parameter"))
        if size.kept_checkpoints is not None:
            rows.append(
                ("disk for checkpoints", of_bytes(size.checkpoint_bytes * size.kept_checkpoints), f"{size.kept_checkpoints} at most at a time")
            )
    if size.operations is not None:
        rows.append(("operations", f"{size.operations:.2g} FLOP", "forward and backward; 5.4e17 are one GPU-hour at 150 TFLOP/s"))
    return rows


def _price_rows(cost: TrainingCost) -> list[tuple[str, str, str]]:
    """What training takes in hours and money; nothing where neither a pace, a budget nor a price is known."""
    rows = list[tuple[str, str, str]]()
    counted = "; a rank counts as a device" if cost.device == "rank" else ""
    if cost.total_hours is not None:
        used = f"{of_hours(cost.used_hours)} used so far; " if cost.used_hours else ""
        rows.append((cost.unit, of_hours(cost.total_hours), f"{used}at the pace of {cost.paced_by}{counted}"))
    elif cost.budget_hours is not None or cost.price_per_hour is not None:
        why = "the number of steps is not known yet" if cost.paced_by else "no training of this model was measured in this storage"
        rows.append((cost.unit, "?", f"{why}{counted}"))
    if cost.budget_hours is not None:
        rows.append(("budget", f"{cost.budget_hours:g}", f"{cost.unit} at most; budget.gpu_hours"))
    if cost.price_per_hour is not None:
        shown = "?" if cost.cost_total is None else f"{cost.cost_total:,.2f}"
        rows.append(("cost", shown, f"{cost.unit} x {cost.price_per_hour:g}; cluster.price_per_gpu_hour"))
    return rows


# ---- status ----------------------------------------------------------------------------------------------------------


def runs_screen(views: Sequence[RunView]) -> list[str]:
    """Returns the table of runs, as given."""
    if not views:
        return ["no runs yet"]
    rows = [("RUN", "STATE", "STARTED", "STAGE", "")]
    for view in views:
        stage = current_stage(view)
        rows.append(
            (view.run_id, view.state.value, of_moment(view.started_at), stage.stage.value if stage else "", _position(stage) if stage else "")
        )
    return table(rows)


def current_stage(view: RunView) -> StageView | None:
    """Returns the stage that runs or failed, or the last one that ended; None before the first."""
    started = [stage for stage in view.stages if stage.state is not StageState.PENDING]
    busy = [stage for stage in started if stage.state in (StageState.RUNNING, StageState.FAILED)]
    latest = busy or started
    return latest[-1] if latest else None


def status_screen(view: RunView) -> list[str]:
    """Returns one run: its stages, its job, its incidents, and what to do next."""
    lines = [f"{view.run_id}: {view.state.value}, started {of_moment(view.started_at)}, recipe {view.recipe}"]
    lines += [f"  {line}" for line in view.message.splitlines()[:6]]
    rows = [("STAGE", "STATE", "TIME", "ATTEMPT", "")]
    for stage in view.stages:
        time_taken = of_seconds(stage.seconds) if stage.state in (StageState.RUNNING, StageState.MADE, StageState.FAILED) else ""
        rows.append((stage.stage.value, stage.state.value, time_taken, _attempt(stage), _position(stage)))
    lines += ["", *(f"  {line}" for line in table(rows, right=(2,)))]
    incidents = [incident_line(thaw(incident)) for incident in view.incidents]
    ledgers = [ledger_line(stage.ledger) for stage in view.stages if stage.ledger is not None]
    ledgers += [cost_line(stage.cost) for stage in view.stages if stage.cost is not None]
    for part in (_queue_lines(view), incidents, _notice_lines(view), ledgers, _log_lines(view), [_next_step(view)]):
        lines += ["", *(f"  {line}" for line in part)] if any(part) else []
    return lines


def _attempt(stage: StageView) -> str:
    """Which submission a stage is at, and which start of its ranks."""
    if stage.job is None or stage.state is StageState.FOUND:
        return ""
    return str(stage.job.attempt) + (f", epoch {stage.job.epoch}" if stage.job.epoch >= 0 else "")


def _queue_lines(view: RunView) -> list[str]:
    """Where the current job stands with the scheduler that has it."""
    stage = current_stage(view)
    if stage is None or stage.job is None or stage.job.queue is None or stage.state not in (StageState.RUNNING, StageState.FAILED):
        return []
    queue = stage.job.queue
    who = f"{queue.launcher} job {queue.job_id}" if queue.job_id else f"{queue.launcher} job"
    if queue.problem:
        return [f"{who}: not known what became of it: {queue.problem}"]
    parts = [queue.told or queue.state, *([f"on {queue.nodes}"] if queue.nodes else [])]
    reduced = [stage.job.reduced] if stage.job.reduced else []
    return [f"{who}: {' '.join(parts)}" + (f", expected to start {queue.starts}" if queue.starts else ""), *reduced]


def _log_lines(view: RunView) -> list[str]:
    """What the current job wrote last."""
    stage = current_stage(view)
    if stage is None or stage.job is None or stage.state not in (StageState.RUNNING, StageState.FAILED):
        return []
    return [_one_line(f"| {line}") for line in stage.job.last_lines]


def _notice_lines(view: RunView) -> list[str]:
    """What ranks have to say beside incidents: the newest few of the stage that runs, failed, or ran last."""
    stage = current_stage(view)
    if stage is None or stage.job is None or stage.state is StageState.FOUND:
        return []
    notices = stage.job.notices
    hidden = len(notices) - _MOST_NOTICES
    earlier = [f"{hidden} earlier notices are in --json"] if hidden > 0 else []
    return [*earlier, *(f"{notice.kind.value}: {notice.message}" for notice in notices[-_MOST_NOTICES:])]


def _position(stage: StageView) -> str:
    """Where a stage is: step, loss and time to go while it trains, items while it works through them, figures once it is done."""
    job = stage.job
    if stage.state is StageState.FAILED:
        return next(iter(stage.message.splitlines()), "")[:_WIDTH]
    if stage.state is not StageState.RUNNING or job is None:
        return stage_detail(stage.stage, stage.figures)
    if job.items_total:
        return items_line(job)
    if not job.heartbeats:
        return "not started yet"
    return training_line(step=job.step, total=job.total_steps, figures=job.figures, eta_s=job.eta_s)


def training_line(*, step: int, total: int, figures: Mapping[str, Any], eta_s: float) -> str:
    """Returns `step 402/600, loss 2.413, 21.3 k tokens/s, 1 min 20 s to go`."""
    parts = [f"step {step:,}/{total:,}" if total else f"step {step:,}"]
    parts += [f"loss {figures['loss']:.3f}"] if "loss" in figures else []
    parts += [f"{of_count(figures['tokens_per_s'])} tokens/s"] if "tokens_per_s" in figures else []
    parts += [f"{of_seconds(eta_s)} to go"] if eta_s >= 0 else []
    return ", ".join(parts)


def _next_step(view: RunView) -> str:
    match view.state.value:
        case "running":
            return f"headrace logs {view.run_id} --follow    headrace cancel {view.run_id}"
        case "detached" | "interrupted" | "failed":
            return f"headrace resume {view.run_id}"
        case _:
            uri = model_uri(view.stages[-1].figures)
            return f"headrace verify {uri}" if uri else ""


# ---- the demo's last screen --------------------------------------------------------------------------------------------


def demo_screen(view: RunView, *, sample: tuple[str, str] | None, commands: Sequence[tuple[str, str]]) -> list[str]:
    """Returns the demo's last screen, at most 20 lines: stages, incident, model, comparison, sample, next commands.

    Args:
        sample: a prompt and its continuation.
        commands: (what for, command), after the one that verifies the model.
    """
    rows = []
    for stage in view.stages:
        taken = of_seconds(stage.seconds) if stage.state is not StageState.FOUND else "found"
        rows.append((stage.stage.value, taken, stage_detail(stage.stage, stage.figures)))
    lines = [f"{view.run_id}: {of_seconds(sum(stage.seconds for stage in view.stages))}", *(f"  {line}" for line in table(rows, right=(1,)))]
    lines += [f"  {incident_line(thaw(incident))}" for incident in view.incidents[:1]]
    if len(view.incidents) > 1:
        lines.append(f"  and {len(view.incidents) - 1} more: headrace status {view.run_id}")
    figures = {stage.stage: stage.figures for stage in view.stages}
    lines.append(f"model      {model_uri(figures[Stage.REGISTER])}, version {figures[Stage.REGISTER].get('version')}")
    lines += comparison_lines(figures[Stage.EVALUATE])
    if sample is not None:
        lines.append(_one_line(f"sample     {sample[0]!r} -> {sample[1]!r}"))
    lines += [f"{purpose:<9}  {command}" for purpose, command in commands]
    return lines


def _one_line(text: str) -> str:
    return text if len(text) <= _WIDTH else text[: _WIDTH - 1] + "…"
