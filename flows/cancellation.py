"""Stopping a run gracefully from another process: whoever controls it and its jobs are asked to commit and end, and the wait for that."""

import contextlib
import time

from cluster.layout import ArtifactLayout, AttemptLayout
from cluster.storage import AlreadyExistsError, Storage
from schemas.canonical import canonical_json
from schemas.job import CancelRequest
from schemas.view import RunState, RunView, StageState
from tasks.runs import Run
from tasks.views import view_of

_POLL_S = 0.3


def request_cancel(run: Run, *, reason: str) -> tuple[str, ...]:
    """Asks the run's control process to stop, and every unfinished attempt of its current stage to commit and stop. Returns the attempts' folders.

    The control process comes first, so that it starts no further job; it is also the only one to ask between two jobs. The
    attempts are asked as well: a job may go on while nobody controls the run.
    """
    run.ask_to_stop(reason)
    asked: list[str] = []
    for stage in view_of(run).stages:
        if stage.state is not StageState.RUNNING or not stage.artifact_key:
            continue
        for attempt in _unfinished(run.storage, stage.artifact_key):
            with contextlib.suppress(AlreadyExistsError):  # asked before: once is enough
                run.storage.create_exclusive(attempt.cancel, canonical_json(CancelRequest(reason=reason, at=time.time())))
            asked.append(attempt.key)
    return tuple(asked)


def wait_until_stopped(run: Run, *, timeout_s: float) -> RunView:
    """Returns the run's view once neither a process nor a job works on it, or after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while True:
        view = view_of(run)
        if view.state not in (RunState.RUNNING, RunState.DETACHED) or time.monotonic() > deadline:
            return view
        time.sleep(_POLL_S)


def _unfinished(storage: Storage, artifact_key: str) -> tuple[AttemptLayout, ...]:
    layout = ArtifactLayout(artifact_key)
    attempts = (AttemptLayout(f"{layout.attempts}/{name}") for name in storage.names(layout.attempts))
    return tuple(attempt for attempt in attempts if storage.exists(attempt.spec) and not storage.exists(attempt.exit))
