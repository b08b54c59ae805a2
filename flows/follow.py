"""Following a run at the terminal while it works: every event of its journal as a line, and how far the running job is.

Reads storage only, in a thread of its own, so it works the same for a run of this process and of another, and a slow
terminal stalls nothing. On a terminal the running job is a bar with the time to go; elsewhere it is a line every few
seconds.
"""

import contextlib
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TextIO

from flows.figure import incident_line, items_line, of_seconds, stage_detail
from flows.screens import training_line
from schemas.errors import HeadraceError
from schemas.exit_code import ExitCode
from schemas.frozen import thaw
from schemas.journal import Event, EventKind
from schemas.progress import RankPhase
from schemas.stage import Stage
from schemas.view import JobProgress
from tasks.runs import Run
from tasks.views import job_progress

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_POLL_S = 0.5
_LINE_EVERY_S = 5.0
_PACE_POLLS = 60
"""Polls over which the pace is taken: half a minute."""


@contextlib.contextmanager
def following(run: Run, *, stream: TextIO | None = None) -> Iterator[None]:
    """Shows the run's events and progress on `stream` (default: stdout) while the body works."""
    stream = stream or sys.stdout
    ended = threading.Event()
    show = _bars if stream.isatty() else _lines
    first = max((event.sequence for event in run.events()), default=-1)
    thread = threading.Thread(target=show, args=(run, ended, stream, first), name="follow", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=10 * _POLL_S)


def follow(run: Run, *, until: Callable[[], bool], stream: TextIO | None = None) -> None:
    """Shows the run's events and progress until `until` says so: for runs of another process."""
    with following(run, stream=stream):
        while not until():
            time.sleep(_POLL_S)


def event_line(event: Event) -> str:
    """Returns the line that people see of an event; empty when they see nothing of it."""
    stage = f"{event.stage.value:<9}" if event.stage is not None else ""
    match event.kind:
        case EventKind.RUN_STARTED:
            return f"run {event.message}"
        case EventKind.RUN_RESUMED:
            return f"run {event.message} goes on"
        case EventKind.STAGE_STARTED:
            return f"{stage} …"
        case EventKind.STAGE_REUSED:
            return f"{stage} found       {stage_detail_of(event)}".rstrip()
        case EventKind.STAGE_FINISHED:
            return f"{stage} {of_seconds(float(event.figures.get('seconds', 0.0))):>10}  {stage_detail_of(event)}".rstrip()
        case EventKind.STAGE_FAILED:
            stopped = event.figures.get("exit_code") in (ExitCode.INTERRUPTED, ExitCode.CTRL_C)
            return f"{stage} {'stopped' if stopped else 'failed'}"
        case EventKind.INCIDENT:
            return f"{stage} {incident_line(thaw(event.figures), stage=event.stage or Stage.TRAIN)}"
        case EventKind.NOTE:
            return f"{stage} {event.message}"
        case _:
            return ""


def stage_detail_of(event: Event) -> str:
    """Returns the figures of a finished stage."""
    return stage_detail(event.stage, event.figures) if event.stage is not None else ""


def job_line(job: JobProgress) -> str:
    """Returns how far a job is, in one line."""
    if job.items_total:
        return items_line(job)
    phases = {rank.phase for beat in job.heartbeats for rank in beat.ranks}
    if phases and RankPhase.STEPPING not in phases and not job.step:
        return min(phases, key=list(RankPhase).index).value
    return training_line(step=job.step, total=job.total_steps, figures=job.figures, eta_s=job.eta_s)


# ---- the two ways of showing ------------------------------------------------------------------------------------------


def _poll(run: Run, ended: threading.Event, after: int) -> Iterator[tuple[list[Event], JobProgress | None]]:
    """Yields the new events and the running stage's job, again and again, and a last time once `ended` is set."""
    running, seen = "", deque[tuple[float, int]](maxlen=_PACE_POLLS)
    while True:
        last = ended.wait(_POLL_S)
        events: list[Event] = []
        job: JobProgress | None = None
        # Storage that does not answer for a moment must not end the display: the run itself decides what is an error.
        with contextlib.suppress(OSError, HeadraceError):
            events = list(run.events(after=after))
            for event in events:
                after = event.sequence
                if event.kind is EventKind.STAGE_STARTED:
                    running = event.artifact_key
                elif event.kind in (EventKind.STAGE_FINISHED, EventKind.STAGE_FAILED, EventKind.STAGE_REUSED):
                    running = ""
            job = with_eta(job_progress(run.storage, running, now=time.time()), seen) if running else None
        yield events, job
        if last:
            return


def with_eta(job: JobProgress | None, seen: deque[tuple[float, int]]) -> JobProgress | None:
    """Returns the job with the time to go by the pace that was seen here, where the job itself does not tell."""
    if job is None or job.eta_s >= 0 or not job.total_steps:
        return job
    if seen and job.step < seen[-1][1]:
        seen.clear()  # restarted from a checkpoint
    seen.append((time.monotonic(), job.step))
    (began, first), (now, step) = seen[0], seen[-1]
    return job.model_copy(update={"eta_s": (job.total_steps - step) * (now - began) / (step - first)}) if step > first else job


def _lines(run: Run, ended: threading.Event, stream: TextIO, after: int) -> None:
    """One line per event, and at most one about the job every few seconds."""
    spoken = time.monotonic()
    for events, job in _poll(run, ended, after):
        for event in events:
            line = event_line(event)
            if line and event.kind is not EventKind.STAGE_STARTED:
                print(line, file=stream, flush=True)
                spoken = time.monotonic()
        if job is not None and job.alive and time.monotonic() - spoken > _LINE_EVERY_S and (job.step or job.items_done):
            print(f"{'':<9} {job_line(job)}", file=stream, flush=True)
            spoken = time.monotonic()


def _bars(run: Run, ended: threading.Event, stream: TextIO, after: int) -> None:
    """Lines of events above one bar for the running stage."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=30), TimeElapsedColumn(), TextColumn("{task.fields[detail]}"))
    console = Console(file=stream, highlight=False, markup=False, soft_wrap=True)
    with Progress(*columns, console=console, transient=True, refresh_per_second=4) as progress:
        bar = _new_bar(progress, None, "starting")  # Prefect and its server take seconds
        for events, job in _poll(run, ended, after):
            for event in events:
                if event.kind is EventKind.STAGE_STARTED and event.stage is not None:
                    bar = _new_bar(progress, bar, event.stage.value)
                    continue
                if event.kind in (EventKind.STAGE_FINISHED, EventKind.STAGE_FAILED, EventKind.STAGE_REUSED):
                    bar = _new_bar(progress, bar, "")
                line = event_line(event)
                if line:
                    console.print(line)
            if bar is not None and job is not None:
                done, total = (job.array.bytes_done, job.array.bytes_total) if job.array is not None else (job.step, job.total_steps)
                progress.update(bar, completed=done, total=total or None, detail=job_line(job))


def _new_bar(progress: "Progress", old: "TaskID | None", stage: str) -> "TaskID | None":
    if old is not None:
        progress.remove_task(old)
    return progress.add_task(stage, total=None, detail="") if stage else None
