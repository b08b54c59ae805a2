"""The output of a run's ranks and work items, as their agents published it."""

from collections import deque
from collections.abc import Iterator
from itertools import chain

from cluster.layout import ArtifactLayout, AttemptLayout
from cluster.logs import LogLine, follow_logs, read_logs
from cluster.storage import Storage
from schemas.errors import InputError
from schemas.stage import Stage
from schemas.view import RunState, StageState
from tasks.runs import Run
from tasks.views import view_of

_NOT_RUNNING = (RunState.FINISHED, RunState.FAILED, RunState.INTERRUPTED)


def log_lines(run: Run, *, stage: Stage | None, rank: int | None, last: int | None, follow: bool) -> Iterator[LogLine]:
    """Yields lines of the run's output: of all attempts of a stage, oldest first.

    Args:
        stage: which stage; default: the one that runs, failed, or ran last.
        rank: one rank, or item; default: all.
        last: only so many lines of what is there already.
        follow: go on while the run works.

    Raises:
        InputError: the stage has no output: it did not start, or was found ready-made.
    """
    attempts = _attempts(run, stage=stage)
    lines: Iterator[LogLine] = chain.from_iterable(read_logs(run.storage, attempt, rank=rank) for attempt in (attempts[:-1] if follow else attempts))
    if not follow:
        yield from deque(lines, maxlen=last) if last is not None else lines
        return
    yield from deque(lines, maxlen=last) if last is not None else lines

    def is_over() -> bool:
        return run.storage.exists(attempts[-1].exit) or view_of(run).state in _NOT_RUNNING

    yield from follow_logs(run.storage, attempts[-1], rank=rank, is_over=is_over)


def _attempts(run: Run, *, stage: Stage | None) -> tuple[AttemptLayout, ...]:
    view = view_of(run)
    candidates = [shown for shown in view.stages if shown.artifact_key and stage in (None, shown.stage)]
    busy = [shown for shown in candidates if shown.state in (StageState.RUNNING, StageState.FAILED)]
    for shown in [*busy[-1:], *reversed(candidates)]:
        attempts = attempts_of(run.storage, shown.artifact_key)
        if attempts:
            return attempts
    where = f"stage {stage.value} of run" if stage is not None else "run"
    raise InputError(
        f"{where} {view.run_id} has no output", why="a stage has output once its first job started", mend=f"headrace status {view.run_id}"
    )


def attempts_of(storage: Storage, artifact_key: str) -> tuple[AttemptLayout, ...]:
    """Returns the attempts of an artifact, by name."""
    layout = ArtifactLayout(artifact_key)
    return tuple(AttemptLayout(f"{layout.attempts}/{name}") for name in storage.names(layout.attempts))
