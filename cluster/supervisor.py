"""Sees a job through: submits or adopts, follows, reports, decides, submits again, cancels. It computes nothing and owns no state:
everything it knows lies in storage, so that it may die at any moment and another goes on.

| what storage says of the newest attempt | what happens |
|---|---|
| there is none | a new attempt |
| spec, never submitted, not claimed, launcher does not know it | submitted again when the request is the same; else closed, and a new attempt |
| claimed by a supervisor to be closed, no exit record | taken out of the launcher's queue and closed, then as below |
| spec, no exit record | adopted: followed while alive or unknown; closed when gone, then as below |
| exit record, no verdict | decided: a new attempt, or the end |
| exit record and verdict `restart` | a new attempt |
| exit record and verdict `stop` | done: the end. Anything else: somebody asks again, a new attempt with fresh budgets |
"""

import contextlib
import logging
import time
from collections.abc import Callable

from cluster.attempt import claimant, list_attempts, read_claim, read_exit, read_heartbeats, read_spec, read_submitted, read_verdict
from cluster.closing import claim_to_close, close, close_gone, is_to_close
from cluster.job_view import JobView, JobViews
from cluster.launchers.protocol import JobReport, JobState, Launcher
from cluster.layout import ArtifactLayout, AttemptLayout
from cluster.liveness import Life, Signs, Silence, judge
from cluster.next_attempt import is_of, next_attempt
from cluster.process import is_dead
from cluster.remains import Remains
from cluster.restart import Decision
from cluster.storage import AlreadyExistsError, Storage
from cluster.submission import Patience, note_verdict, submit_attempt
from cluster.verdict import KNOWN, verdict_on
from cluster.withdrawal import QueueWatch
from schemas.attempt import CancelRequest, Cause, Claim, ExitRecord
from schemas.canonical import canonical_json
from schemas.errors import ConfigError, InterruptedRunError, UnreachableError
from schemas.exit_code import ExitCode
from schemas.job import JobKind, JobSpec

logger = logging.getLogger(__name__)

_ASK_AFTER_S = 3.0
"""The launcher is asked only when the heartbeat has been silent for so long: a scheduler is a shared resource."""
_ASK_ABOUT_NODE_S = 10.0
"""The same when only one of its nodes has been silent for so long."""
_CANCEL_AGAIN_S = 5.0
"""A job that has not started cannot hear of its cancellation from storage: the launcher is told again so often."""


def _no_view(_view: JobView) -> None:
    """Nobody looks."""


def run_job(
    request: JobSpec,
    *,
    storage: Storage,
    launcher: Launcher,
    on_view: Callable[[JobView], None] = _no_view,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    wall: Callable[[], float] = time.time,
    poll_s: float = 0.25,
    stop_requested: Callable[[], bool] = lambda: False,
    is_complete: Callable[[], bool] = lambda: True,
) -> ExitRecord:
    """Sees a job through to its end and returns how it ended. A running attempt of the same job is adopted.

    Args:
        request: the job; `attempt`, `key` and the last part of `scratch_dir` are filled in here.
        storage: shared storage.
        launcher: how attempts get onto machines.
        on_view: takes the state of the job at every poll.
        clock: monotonic seconds.
        sleep: waits.
        wall: seconds since the Unix epoch.
        poll_s: seconds between polls.
        stop_requested: whether to stop gracefully; asked at every poll.
        is_complete: asked when an earlier attempt says that all is done; False makes another attempt due.

    Raises:
        UnreachableError: the launcher did not take the job.
        InterruptedRunError: a stop was requested before anything was submitted.
    """
    patience = Patience(clock=clock, sleep=sleep, poll_s=poll_s, stop_requested=stop_requested, wall=wall)
    return _Supervision(request, storage=storage, launcher=launcher, patience=patience, on_view=on_view, is_complete=is_complete).run()


def cancel_attempt(storage: Storage, attempt: AttemptLayout, *, key: str, launcher: Launcher, reason: str) -> None:
    """Asks an attempt to stop gracefully: a cancel object for its agents wherever they run, and the launcher's signal, which is faster."""
    with contextlib.suppress(AlreadyExistsError):  # asked before
        storage.create_exclusive(attempt.cancel, canonical_json(CancelRequest(reason=reason, at=time.time())))
    launcher.cancel(key)


def clear_up(storage: Storage, layout: ArtifactLayout, *, step_name: str, launcher: Callable[[], Launcher]) -> None:
    """Lets go of what a job whose work is done may have left with its launcher: who saw it through may have died before. Never raises for a launcher.

    Args:
        storage: shared storage.
        layout: the job's artifact.
        step_name: the job's step; empty: a gang.
        launcher: returns that of the job; asked only when there is something to let go.
    """
    numbers = list_attempts(storage, layout, step_name=step_name)
    if not numbers:
        return
    key = read_spec(storage, layout.attempt(step_name, numbers[-1])).key
    try:
        launcher().release(key)
    except (ConfigError, UnreachableError) as error:
        logger.warning("what job %s may have left is not removed: %s", key, error)


class _Supervision:
    """One call of `run_job`."""

    def __init__(
        self,
        request: JobSpec,
        *,
        storage: Storage,
        launcher: Launcher,
        patience: Patience,
        on_view: Callable[[JobView], None],
        is_complete: Callable[[], bool],
    ) -> None:
        self._request, self._storage, self._launcher, self._patience = request, storage, launcher, patience
        self._on_view, self._is_complete = on_view, is_complete
        self._layout = ArtifactLayout(request.artifact_key)
        self._cancelled: dict[str, float] = {}
        """Attempt key → when its launcher was told last."""
        self._vouched_at: float | None = None
        """When the launcher said last that the followed attempt lives; of one that has not begun, at the latest when it is first looked at."""
        self._queue: QueueWatch
        self._remains: Remains
        self._views = JobViews(storage)

    def run(self) -> ExitRecord:
        """Adopts or submits until the policy says that it is over."""
        number, ended = self._begin()
        while ended is None:
            record = self._follow(number)
            spec = read_spec(self._storage, self._attempt(number))
            decision = verdict_on(record, spec=spec, storage=self._storage, launcher=self._launcher, patience=self._patience)
            self._launcher.release(spec.key)
            if decision.action == "stop" or self._patience.stop_requested():
                return self._final(record, decision)
            self._patience.pause(decision.delay_s)
            if self._patience.stop_requested():
                return self._final(record, decision)
            number = self._submit_next(number)
        return ended

    # ---- what is due -------------------------------------------------------------------------------------------------

    def _begin(self) -> tuple[int, ExitRecord | None]:
        """Returns the attempt to follow, or the exit record when nothing is due."""
        numbers = list_attempts(self._storage, self._layout, step_name=self._request.step_name)
        if not numbers:
            return self._submit_next(-1), None
        newest = numbers[-1]
        attempt = self._attempt(newest)
        record, verdict = read_exit(self._storage, attempt), read_verdict(self._storage, attempt)
        if record is None:
            return self._adopt(newest), None
        if verdict is not None or record.exit_code is ExitCode.DONE:  # who decided it may have died before it had cleared up
            self._launcher.release(record.key)
        if record.exit_code is ExitCode.DONE and self._is_complete() and self._has_all_items():
            return newest, record
        if verdict is None and record.cause is not Cause.CANCELLED and record.exit_code is not ExitCode.DONE:
            return newest, None  # nobody has decided yet
        if verdict is None:
            note_verdict(self._storage, self._attempt(newest), Decision("stop", "asked for again"))
        return self._submit_next(newest), None

    def _adopt(self, number: int) -> int:
        """Returns the attempt to follow when the newest has no exit record."""
        attempt = self._attempt(number)
        spec = read_spec(self._storage, attempt)
        submitted = self._storage.exists(attempt.submitted) or self._storage.exists(attempt.claim)
        if submitted or self._launcher.query([spec.key])[spec.key].state is not JobState.ABSENT:
            logger.info("adopting attempt %s", spec.key)
            return number
        if is_of(spec, self._request):
            submit_attempt(spec, storage=self._storage, launcher=self._launcher, patience=self._patience)
            return number
        if claim_to_close(self._storage, attempt, spec=spec):
            close(self._storage, spec, cause=Cause.CANCELLED, evidence=("never submitted; the request has changed since",))
            return self._submit_next(number)
        return number

    def _submit_next(self, number: int) -> int:
        """Writes the intent for the next attempt and submits it. When another supervisor was faster, its attempt is followed."""
        if self._patience.stop_requested():
            raise InterruptedRunError(f"{self._request.stage.value} stopped before its job was submitted", mend="headrace resume goes on")
        number += 1
        spec = next_attempt(self._request, number=number, storage=self._storage, now=self._patience.wall())
        try:
            self._storage.create_exclusive(self._attempt(number).spec, canonical_json(spec))
        except AlreadyExistsError:
            return self._adopt(number)
        submit_attempt(spec, storage=self._storage, launcher=self._launcher, patience=self._patience)
        return number

    def _has_all_items(self) -> bool:
        """Whether every item of an array has its record: one may have been removed since, to be made again."""
        items = (self._layout.item(self._request.step_name, index) for index in range(self._request.num_items))
        return self._request.kind is JobKind.GANG or all(self._storage.exists(item) for item in items)

    # ---- following ---------------------------------------------------------------------------------------------------

    def _follow(self, number: int) -> ExitRecord:
        """Watches an attempt until it has an exit record, its own or ours. A storage that does not answer is asked again."""
        attempt, silence = self._attempt(number), Silence()
        self._views.follow(attempt)
        spec = read_spec(self._storage, attempt)
        self._queue = QueueWatch(spec, storage=self._storage, launcher=self._launcher, patience=self._patience)
        self._remains = Remains(spec, launcher=self._launcher, patience=self._patience)
        answered_at, self._vouched_at = self._patience.clock(), None
        while True:
            try:
                record = self._look(spec, attempt, silence)
                answered_at = self._patience.clock()
                if record is not None:
                    return record
            except (OSError, UnreachableError) as error:
                logger.warning("storage does not answer: %s", error)
                if self._patience.clock() - answered_at > spec.lost_after_s:
                    what = f"{self._storage.url} has not answered for {spec.lost_after_s:g} s"
                    raise UnreachableError(what, why=str(error), mend="the job goes on; headrace resume follows it again") from error
            self._patience.sleep(self._patience.poll_s)

    def _look(self, spec: JobSpec, attempt: AttemptLayout, silence: Silence) -> ExitRecord | None:
        """Looks at an attempt once, tells the caller, and closes it when it is gone. Returns its exit record, if there is one."""
        submitted, claim, beats = read_submitted(self._storage, attempt), read_claim(self._storage, attempt), read_heartbeats(self._storage, attempt)
        self._cancel_if_wished(spec, claimed=claim is not None)
        wall = self._patience.wall()
        began_at = submitted.at if submitted else wall
        silent_s = silence.observe(beats, claimed=claim is not None, now=self._patience.clock(), wall=wall, began_at=began_at)
        closed = claim is not None and is_to_close(claim)
        process_dead = claim is not None and not closed and is_dead(claimant(claim))
        job: JobReport | None = None
        node_is_silent = not beats or silence.of_one_node_s(self._patience.clock(), num_nodes=spec.num_nodes) > _ASK_ABOUT_NODE_S
        if process_dead or silent_s > _ASK_AFTER_S or node_is_silent:
            job = self._launcher.query([spec.key])[spec.key]
        record = read_exit(self._storage, attempt)  # last: a job that ended meanwhile has left it
        if record is not None:
            beats = read_heartbeats(self._storage, attempt)  # its last ones: nobody looks at this attempt again
        state = JobState.RUNNING if job is None else job.state
        if state in KNOWN or (self._vouched_at is None and not beats):
            self._vouched_at = self._patience.clock()
        if state is JobState.ABSENT and self._vouched_at is not None:  # a launcher that forgets or lies for a moment ends nothing
            silent_s = min(silent_s, self._patience.clock() - self._vouched_at)
        signs = Signs(job=state, has_exit_record=record is not None, silent_s=silent_s, has_started=bool(beats or claim), process_dead=process_dead)
        life = judge(signs, lost_after_s=spec.lost_after_s)
        self._on_view(self._views.of(spec, life, beats=beats, record=record, job=job))
        if record is not None:
            return record
        record = self._close(spec, claim, signs=signs, job=job) if closed or life is Life.GONE else None
        if record is not None:  # what it says happened is news, and nobody looks at this attempt again
            self._on_view(self._views.of(spec, Life.ENDED, beats=beats, record=record, job=job))
        elif claim is None and job is not None:
            self._queue.see(job, submitted)
        if record is None and node_is_silent:
            self._remains.see(job)
        return record

    def _close(self, spec: JobSpec, claim: Claim | None, *, signs: Signs, job: JobReport | None) -> ExitRecord | None:
        """Closes an attempt that is gone, or that was claimed to be closed. None: not yet."""
        if claim is not None and is_to_close(claim):
            assert job is not None, "asked about whatever does not speak"
            return self._queue.finish(job, claim)
        return close_gone(self._storage, spec, launcher=self._launcher, claim=claim, signs=signs, job=job)

    def _cancel_if_wished(self, spec: JobSpec, *, claimed: bool) -> None:
        if not self._patience.stop_requested():
            return
        if spec.key not in self._cancelled:
            cancel_attempt(self._storage, self._attempt(spec.attempt), key=spec.key, launcher=self._launcher, reason="stop requested")
        elif claimed or self._patience.clock() - self._cancelled[spec.key] < _CANCEL_AGAIN_S:
            return
        else:
            self._launcher.cancel(spec.key)
        self._cancelled[spec.key] = self._patience.clock()

    # ---- ends --------------------------------------------------------------------------------------------------------

    def _final(self, record: ExitRecord, decision: Decision) -> ExitRecord:
        """Returns the record as the caller shall see it: what the policy made of it."""
        if decision.action == "stop" and record.exit_code is not ExitCode.DONE and decision.reason != record.message:
            return record.model_copy(update={"exit_code": decision.exit_code, "message": f"{record.message}; {decision.reason}"})
        return record

    def _attempt(self, number: int) -> AttemptLayout:
        return self._layout.attempt(self._request.step_name, number)
