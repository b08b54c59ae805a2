"""What `headrace logs` prints."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain

from cluster.logs import LogLine
from schemas.errors import InputError
from schemas.stage import Stage
from tasks.run_output import RunOutput
from tasks.runs import Run
from tasks.views import view_of


def log_lines(
    run: Run, *, stage: Stage | None, rank: int | None, last: int | None, follow: bool, sleep: Callable[[float], None] = time.sleep
) -> Iterator[LogLine]:
    """Yields lines of the run's output: of all attempts of a stage, oldest first.

    Args:
        stage: which stage; default: the one that runs, failed, or ran last, and with `follow` those that come after it.
        rank: one rank, or item; default: all.
        last: only so many lines of what is there already.
        follow: go on while the run works: through restarts, new attempts, new jobs.
        sleep: waits between two looks.

    Raises:
        InputError: the stage has no output: it did not start, or was found ready-made. With `follow` only once the run does not work any more.
    """
    output, view = RunOutput(run, stage=stage, rank=rank), view_of(run)
    goes_on = follow and not output.is_over(view)
    lines = output.read(view) if goes_on else chain(output.read(view), output.rest())
    yield from deque(lines, maxlen=last) if last is not None else lines
    if goes_on:
        yield from output.to_come(sleep)
    if not output.found:
        where = f"stage {stage.value} of run" if stage is not None else "run"
        why, mend = "a stage has output once its first job started", f"headrace status {run.layout.run_id}"
        raise InputError(f"{where} {run.layout.run_id} has no output", why=why, mend=mend)
