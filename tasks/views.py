"""Reads storage and says where a run stands. Reads only: it works for any run, whoever started it, wherever it runs."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cluster.attempt import read_heartbeats, read_incidents, read_notices, read_spec, read_submitted
from cluster.elastic import reduction
from cluster.launchers import launcher_for
from cluster.launchers.protocol import JobReport, JobState, Launcher
from cluster.layout import ArtifactLayout, AttemptLayout
from cluster.lease import holder_is_alive
from cluster.logs import last_lines
from cluster.storage import Storage
from schemas.cluster_config import ClusterKind
from schemas.config import RunConfig
from schemas.errors import ConfigError, UnreachableError
from schemas.frozen import thaw
from schemas.job import JobKind, JobSpec, WorkItem, WorkPlan
from schemas.journal import Event, EventKind
from schemas.progress import Heartbeat
from schemas.stage import Stage
from schemas.view import ArrayRate, JobProgress, QueuePlace, RunState, RunView, StageState, StageView
from tasks.cost_of_training import cost_so_far
from tasks.runs import Run
from tasks.train.bookkeeping import read_ledger

_FRESH_S = 15.0
"""A heartbeat older than this does not show life; agents beat every second or two."""

_STATE_AFTER: dict[EventKind, StageState] = {
    EventKind.STAGE_STARTED: StageState.RUNNING,
    EventKind.STAGE_REUSED: StageState.FOUND,
    EventKind.STAGE_FINISHED: StageState.MADE,
    EventKind.STAGE_FAILED: StageState.FAILED,
}

_OWN_WORK = frozenset({StageState.RUNNING, StageState.MADE, StageState.FAILED})
_LAST_LINES = 5


def view_of(run: Run, *, clock: Callable[[], float] = time.time) -> RunView:
    """Returns where the run stands. Raises InputError when there is no such run."""
    file, events = run.read(), run.events()
    stages = tuple(_stage_view(stage, events=events, storage=run.storage, now=clock()) for stage in file.stages)
    last = next((event for event in reversed(events) if event.kind in (EventKind.RUN_FINISHED, EventKind.RUN_FAILED)), None)
    reopened = any(event.kind is EventKind.RUN_RESUMED and (last is None or event.sequence > last.sequence) for event in events)
    ended = None if reopened else last
    return RunView(
        run_id=run.layout.run_id,
        run_name=run.name,
        state=_state(run, stages=stages, ended=ended),
        recipe=file.recipe,
        started_at=file.created_at,
        exit_code=int(ended.figures.get("exit_code", -1)) if ended else -1,
        message=ended.message if ended and ended.kind is EventKind.RUN_FAILED else "",
        stages=stages,
        incidents=tuple(event.figures for event in events if event.kind is EventKind.INCIDENT),
    )


def in_detail(
    view: RunView,
    *,
    storage: Storage,
    clock: Callable[[], float] = time.time,
    launcher_of: Callable[[RunConfig], Launcher] = launcher_for,
) -> RunView:
    """Returns the view with what takes more reading, and asking, of stages that this run makes itself.

    That is: notices of jobs, where a job stands with its scheduler, what it wrote last, and where training's time went. The scheduler is asked
    at most once, about the job that is under way, and only when that does not speak for itself.
    """
    stages = [
        _stage_in_detail(stage, storage=storage, now=clock(), launcher_of=launcher_of) if stage.state in _OWN_WORK else stage for stage in view.stages
    ]
    goes_on = any(stage.state is StageState.RUNNING and stage.job and stage.job.queue and stage.job.queue.state in _GOES_ON for stage in stages)
    state = RunState.DETACHED if view.state is RunState.INTERRUPTED and goes_on else view.state
    return view.model_copy(update={"stages": tuple(stages), "state": state})


_GOES_ON = frozenset({JobState.PENDING.value, JobState.RUNNING.value})


def _stage_in_detail(stage: StageView, *, storage: Storage, now: float, launcher_of: Callable[[RunConfig], Launcher]) -> StageView:
    layout, job = ArtifactLayout(stage.artifact_key), stage.job
    if job is not None:
        attempt = layout.attempt(job.job, job.attempt)
        more: dict[str, Any] = {"notices": read_notices(storage, attempt)}
        if stage.state is not StageState.MADE:
            first = min((rank.rank for beat in job.heartbeats for rank in beat.ranks), default=0)
            more["queue"] = _queue_place(storage, attempt, job=job, launcher_of=launcher_of)
            more["last_lines"] = last_lines(storage, attempt, rank=first, count=_LAST_LINES)
        job = job.model_copy(update=more)
    if stage.stage is not Stage.TRAIN:
        return stage.model_copy(update={"job": job})
    left_s = 0.0 if stage.state is StageState.MADE else job.eta_s if job is not None and job.eta_s >= 0 else None
    spent = {"ledger": read_ledger(storage, layout, now=now), "cost": cost_so_far(storage, layout, left_s=left_s)}
    return stage.model_copy(update={"job": job, **spent})


def _queue_place(storage: Storage, attempt: AttemptLayout, *, job: JobProgress, launcher_of: Callable[[RunConfig], Launcher]) -> QueuePlace | None:
    """Returns where an attempt stands with its scheduler; None when it has none: it runs on this machine."""
    spec, submitted = read_spec(storage, attempt), read_submitted(storage, attempt)
    cluster: Mapping[str, Any] = spec.config.get("cluster", {})
    kind = cluster.get("kind", ClusterKind.LOCAL)
    if kind == ClusterKind.LOCAL:
        return None
    known = QueuePlace(
        launcher=kind,
        state=JobState.RUNNING.value if job.alive else JobState.ENDED.value,
        job_id=submitted.job_id if submitted is not None else "",
        nodes=", ".join(beat.host for beat in job.heartbeats),
    )
    if job.alive or storage.exists(attempt.exit):
        return known
    try:
        report = launcher_of(RunConfig.model_validate(thaw(spec.config))).query([spec.key])[spec.key]
    except (UnreachableError, ConfigError) as error:
        return known.model_copy(update={"state": JobState.UNKNOWN.value, "problem": error.what})
    return known.model_copy(update=_told(report, kind=kind, known=known))


def _told(report: JobReport, *, kind: str, known: QueuePlace) -> Mapping[str, str]:
    """Returns what a scheduler's answer adds. Where it is silent, what the nodes told stands."""
    problems = {JobState.UNKNOWN: f"{kind} does not answer", JobState.ABSENT: f"{kind} knows no such job of this user's"}
    return {
        "state": report.state.value,
        "job_id": report.job_id or known.job_id,
        "told": report.told,
        "reason": report.told.partition(" (")[2].removesuffix(")"),
        "starts": report.starts,
        "nodes": report.nodes or known.nodes,
        "problem": problems.get(report.state, ""),
    }


def job_progress(storage: Storage, artifact_key: str, *, now: float) -> JobProgress | None:
    """Returns the newest attempt of the artifact's newest job, or None before there is one."""
    layout = ArtifactLayout(artifact_key)
    attempts = [AttemptLayout(f"{layout.attempts}/{name}") for name in storage.names(layout.attempts)]
    specs = [(JobSpec.model_validate_json(storage.read(attempt.spec)), attempt) for attempt in attempts if storage.exists(attempt.spec)]
    if not specs:
        return None
    beats = {attempt.key: read_heartbeats(storage, attempt) for _, attempt in specs}

    def newness(pair: tuple[JobSpec, AttemptLayout]) -> tuple[float, int]:
        spec, attempt = pair
        return max([spec.intended_at, *(beat.at for beat in beats[attempt.key])]), spec.attempt  # one that waits in a queue has not spoken yet

    spec, attempt = max(specs, key=newness)
    heartbeats = beats[attempt.key]
    alive = not storage.exists(attempt.exit) and any(now - beat.at < _FRESH_S for beat in heartbeats)
    items = WorkPlan.model_validate_json(storage.read(layout.plan(spec.step_name))).items if spec.kind is JobKind.ARRAY else ()
    array = _array_rate(items, heartbeats, alive=alive) if items else None
    ranks = [rank for beat in heartbeats for rank in beat.ranks]
    step = min((rank.step for rank in ranks), default=0)
    total = max((rank.total_steps for rank in ranks), default=0)
    first = next((rank for rank in ranks if rank.rank == 0), None)
    pace = float(first.figures.get("step_s", 0.0)) if first else 0.0
    return JobProgress(
        job=spec.step_name or "job",
        attempt=spec.attempt,
        alive=alive,
        epoch=max((beat.epoch for beat in heartbeats), default=-1),
        step=step,
        committed_step=max((rank.committed_step for rank in ranks), default=-1),
        total_steps=total,
        items_done=sum(beat.items_done for beat in heartbeats),
        items_total=len(items),
        array=array,
        heartbeats=heartbeats,
        incidents=read_incidents(storage, attempt),
        figures=dict(first.figures) if first else {},
        eta_s=(total - step) * pace if pace and total else _left_s(items, array),
        reduced=reduction(spec),
    )


def _stage_view(stage: Stage, *, events: tuple[Event, ...], storage: Storage, now: float) -> StageView:
    own = [event for event in events if event.stage is stage]
    turns = [event for event in own if event.kind in _STATE_AFTER]
    if not turns:
        return StageView(stage=stage, state=StageState.PENDING, artifact_key="", started_at=0.0, seconds=0.0, message="", figures={})
    last = turns[-1]
    started = next((event.at for event in reversed(turns) if event.kind is EventKind.STAGE_STARTED), last.at)
    running = last.kind is EventKind.STAGE_STARTED
    notes = [event.message for event in own if event.kind is EventKind.NOTE and event.sequence > last.sequence]
    return StageView(
        stage=stage,
        state=_STATE_AFTER[last.kind],
        artifact_key=last.artifact_key,
        started_at=started,
        seconds=now - started if running else float(last.figures.get("seconds", 0.0)),
        message=notes[-1] if running and notes else last.message,
        figures=thaw(last.figures),
        job=job_progress(storage, last.artifact_key, now=now),
    )


def _state(run: Run, *, stages: tuple[StageView, ...], ended: Event | None) -> RunState:
    if ended is not None and ended.kind is EventKind.RUN_FINISHED:
        return RunState.FINISHED
    if holder_is_alive(run.storage, run.layout.control):
        return RunState.RUNNING
    if any(stage.state is StageState.RUNNING and stage.job is not None and stage.job.alive for stage in stages):
        return RunState.DETACHED
    if ended is not None and ended.figures.get("exit_code") not in (75, 130):
        return RunState.FAILED
    return RunState.INTERRUPTED


def _array_rate(items: Sequence[WorkItem], beats: Sequence[Heartbeat], *, alive: bool) -> ArrayRate:
    """Returns how far and how fast all nodes are; of a job that is over, only how far."""
    told = [beat.array for beat in beats if beat.array is not None]
    bytes_total, files_total = sum(item.weight_bytes for item in items), sum(item.num_files for item in items)
    return ArrayRate(
        bytes_done=min(bytes_total, sum(array.bytes_done for array in told)),
        bytes_total=bytes_total,
        files_done=min(files_total, sum(array.files_done for array in told)),
        files_total=files_total,
        bytes_per_s=sum(array.bytes_per_s for array in told) if alive else 0.0,
        files_per_s=sum(array.files_per_s for array in told) if alive else 0.0,
    )


def _left_s(items: Sequence[WorkItem], array: ArrayRate | None) -> float:
    """Returns how long an array needs yet, at the pace it has; -1: not known, also when all is read and something is made of it.

    Less than a hundredth of the text says little of the rest: it may have been one small item beside a large one. One item alone promises
    nothing, unless it reads files one after the other: a tokenizer is trained once its text is read.
    """
    is_even = len(items) > 1 or any(item.num_files for item in items)
    if array is None or not is_even or array.bytes_per_s <= 0 or not array.bytes_total / 100 <= array.bytes_done < array.bytes_total:
        return -1.0
    return (array.bytes_total - array.bytes_done) / array.bytes_per_s
