"""Stopping a run gracefully from another process: whoever controls it and its jobs are asked to commit and end, and the wait for that."""

import contextlib
import logging
import time

from cluster.attempt import read_spec
from cluster.closing import claim_to_close, close
from cluster.launchers import launcher_for
from cluster.layout import ArtifactLayout, AttemptLayout
from cluster.process import is_own
from cluster.storage import AlreadyExistsError, Storage
from schemas.attempt import CancelRequest, Cause
from schemas.canonical import canonical_json
from schemas.config import RunConfig
from schemas.errors import HeadraceError, InputError
from schemas.frozen import thaw
from schemas.view import RunState, RunView, StageState
from tasks.runs import Run
from tasks.store_hygiene.roots import owner_of
from tasks.views import view_of

logger = logging.getLogger(__name__)

_POLL_S = 0.3


def refuse_foreign(run: Run, *, command: str = "cancel") -> None:
    """Raises InputError for a run that another user began. `command`: what was called."""
    owner = owner_of(run)
    if owner and not is_own(owner):
        what = f"{run.layout.run_id} is a run of {owner}"
        raise InputError(what, why="only who began a run stops it", mend=f"ask {owner}, or headrace {command} {run.layout.run_id} --force")


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
            _withdraw(run.storage, attempt)
            asked.append(attempt.key)
    return tuple(asked)


def _withdraw(storage: Storage, attempt: AttemptLayout) -> None:
    """Ends an attempt that has not begun: perhaps it waits in a scheduler's queue, and nobody controls it. One that has begun hears by itself."""
    spec = read_spec(storage, attempt)
    if storage.exists(attempt.claim) or not claim_to_close(storage, attempt, spec=spec):
        return
    try:
        launcher_for(RunConfig.model_validate(thaw(spec.config))).cancel(spec.key)
    except HeadraceError as error:  # no scheduler's commands here, say: a job that still starts finds its attempt claimed, and ends
        logger.warning("job %s stays in its queue: %s", spec.key, error.what)
    close(storage, spec, cause=Cause.CANCELLED, evidence=("cancelled before it began",))


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
