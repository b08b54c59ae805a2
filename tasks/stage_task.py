"""What the Prefect tasks of all stages share: one stage of one run, with its notes in the task's log."""

import logging
from collections.abc import Callable

from prefect.logging import get_run_logger

from schemas.artifact import ArtifactRef
from schemas.journal import RunHandle
from schemas.stage import Stage
from tasks.wiring import Listener, bench_of, find_or_make, ignore_view
from tasks.work import Draft, Work


def run_stage(stage: Stage, handle: RunHandle, *, build: Callable[[Work], Draft]) -> ArtifactRef:
    """Finds or makes the stage's artifact. Called inside a Prefect task; raises HeadraceError when the stage fails."""
    bench = bench_of(handle, listener=Listener(note=get_run_logger().info, view=ignore_view))
    return find_or_make(stage, bench=bench, build=build).ref()


def task_logger() -> logging.LoggerAdapter[logging.Logger]:
    """Returns the logger of the running Prefect task."""
    logger: logging.LoggerAdapter[logging.Logger] = get_run_logger()  # type: ignore[assignment]  # a plain Logger only outside of runs
    return logger
