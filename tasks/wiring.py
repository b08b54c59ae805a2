"""From a run's handle to what its stages work with: configuration, storage, store, and where notes and job views go."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cluster.job_view import JobView
from cluster.layout import ArtifactLayout, is_named
from cluster.storage import open_storage
from schemas.artifact import ArtifactRecord, Provenance
from schemas.errors import HeadraceError, InputError, InterruptedRunError, storage_failure
from schemas.exit_code import ExitCode
from schemas.journal import EventKind, RunHandle
from schemas.stage import Stage
from tasks.identity import identity_of
from tasks.runs import Pointer, Run, provenance_of
from tasks.store import Identity, Store
from tasks.store_hygiene.sweep import wait_for_sweep
from tasks.work import Bench, Draft, Work, make

stop_requested = threading.Event()
"""Set by the first SIGTERM or Ctrl-C of a process that runs stages: jobs are asked to commit and stop."""


@dataclass(frozen=True)
class Listener:
    """Who else wants to hear of a stage: Prefect's task log, the tracker."""

    note: Callable[[str], None]
    view: Callable[[JobView], None]


def ignore_view(view: JobView) -> None:
    """A listener's `view` where nobody follows a job by views: its heartbeats are in storage."""
    del view


def bench_of(handle: RunHandle, *, listener: Listener) -> Bench:
    """Returns the bench of a run; notes go to its journal and to `listener`."""
    run = Run(open_storage(handle.storage_root), handle.run_id)
    file, config = run.read(), run.config()
    events = tuple(run.events())
    journalled = {(event.artifact_key, event.figures["epoch"], event.figures["at"]) for event in events if event.kind is EventKind.INCIDENT}
    noticed = {(event.figures["at"], event.message) for event in events if event.kind is EventKind.NOTE and "at" in event.figures}
    broken: list[str] = []
    began = max((event.at for event in events if event.kind in (EventKind.RUN_STARTED, EventKind.RUN_RESUMED)), default=time.time())

    def note(stage: Stage, message: str) -> None:
        run.append(EventKind.NOTE, message, stage=stage)
        listener.note(message)

    def on_view(stage: Stage, view: JobView) -> None:
        for incident in view.incidents:
            pointer = run.pointer(stage)
            place = (pointer.key if pointer else "", incident.epoch, incident.at)
            if place in journalled:  # also when the process before this one wrote it
                continue
            journalled.add(place)
            who = (
                f"{incident.item}: {incident.cause.value}"
                if incident.item
                else f"rank {incident.rank}: {incident.cause.value} at step {incident.step}"
            )
            message = f"{who}; {incident.decision}: {incident.reason}"
            run.append(EventKind.INCIDENT, message, stage=stage, artifact_key=place[0], figures=incident.model_dump(mode="json"))
            listener.note(message)
        for notice in view.notices:
            if (notice.at, notice.message) not in noticed:
                noticed.add((notice.at, notice.message))
                run.append(EventKind.NOTE, notice.message, stage=stage, figures=notice.model_dump(mode="json"))
                listener.note(notice.message)
        if broken:
            return
        try:
            listener.view(view)
        except Exception as error:  # noqa: BLE001  # whoever looks on, however broken, must not stop the job's own control
            broken.append(str(error))
            run.append(EventKind.NOTE, f"the job is no longer shown: {type(error).__name__}: {error}", stage=stage)

    return Bench(
        run_id=handle.run_id,
        run_name=handle.run_name,
        config=config,
        storage=run.storage,
        store=Store(run.storage),
        state_dir=Path(file.state_dir),
        project_dir=Path(file.project_dir),
        provenance=Provenance(**provenance_of(handle.run_id)),
        note=note,
        on_view=on_view,
        stop_requested=lambda: stop_requested.is_set() or run.stop_asked(since=began),
    )


def find_or_make(stage: Stage, *, bench: Bench, build: Callable[[Work], Draft]) -> ArtifactRecord:
    """Returns the stage's artifact for this run: found by content, or built, and says so in the run's journal.

    The inputs are the artifacts that the run's pointers name. A run that was asked to rebuild from an earlier stage
    builds anew; when it is resumed it goes on in the folder that its pointer fixed.
    """
    run = Run(bench.storage, bench.run_id)
    started = time.time()
    inputs = {source: _input_record(run, bench.store, source) for source in bench.config.inputs_of(stage)}
    with bench.hashes(stage) as hashes:
        contents = {source: record.content_hash for source, record in inputs.items()}
        identity = identity_of(stage, config=bench.config, inputs=contents, hashes=hashes, project_dir=bench.project_dir)
    from_stage = run.read().from_stage
    rebuild = from_stage is not None and stage in from_stage.following
    key = _fixed_key(run, identity, store=bench.store, rebuild=rebuild)
    wait_for_sweep(bench.storage, key, stop_requested=bench.stop_requested)
    if from_stage is not None and not rebuild and not bench.storage.exists(ArtifactLayout(key).record):
        mend = f"run without --from, or with --from {stage.value}"
        raise InputError(f"--from {from_stage.value} needs the stages before it finished; {stage.value} is not", mend=mend)
    if bench.storage.exists(ArtifactLayout(key).record):
        record = bench.store.read(key)
        run.append(EventKind.STAGE_REUSED, f"found {key}", stage=stage, artifact_key=key, figures=dict(record.summary))
        return record
    if not is_named(key, identity.name):
        why = "it was made under another recipe's name, and was removed since this run found it"
        raise InputError(f"{key} is not there any more", why=why, mend="headrace run starts a new run, which makes its own")
    if bench.stop_requested():
        raise InterruptedRunError(f"stopped before {stage.value}, as asked", mend="headrace resume goes on")
    run.append(EventKind.STAGE_STARTED, f"making {key}", stage=stage, artifact_key=key)
    try:
        record = make(identity, bench=bench, key=key, inputs=inputs, build=build, is_rebuild=rebuild)
    except BaseException as error:
        failure = storage_failure(error) if isinstance(error, OSError) else None
        shown = failure or error
        figures = {"exit_code": int(exit_code_of(shown)), "seconds": time.time() - started}
        run.append(EventKind.STAGE_FAILED, str(shown) or type(shown).__name__, stage=stage, artifact_key=key, figures=figures)
        if failure is not None:
            raise failure from error
        raise
    figures = {**record.summary, "seconds": time.time() - started}
    run.append(EventKind.STAGE_FINISHED, f"made {key}", stage=stage, artifact_key=key, figures=figures)
    return record


def _fixed_key(run: Run, identity: Identity, *, store: Store, rebuild: bool) -> str:
    """The folder that this run uses for the stage. A pointer from before holds while it fits: inputs may have changed since."""
    pointer = run.pointer(identity.stage)
    if pointer is not None and pointer.fingerprint == identity.fingerprint:
        return pointer.key
    found = None if rebuild else store.find(identity)
    key = found.key if found is not None else store.place(identity, rebuild=rebuild)
    if pointer is not None:  # raw inputs changed between the run's start and its resumption
        raise InputError(
            f"{identity.stage.value}: what run {run.layout.run_id} began with is not there any more",
            why=f"it began with {pointer.key}; its inputs, or Headrace itself, changed, and now lead to {key}",
            mend="headrace run starts a new run with the inputs as they are",
        )
    return run.point(identity.stage, Pointer(key=key, fingerprint=identity.fingerprint)).key


def _input_record(run: Run, store: Store, stage: Stage) -> ArtifactRecord:
    pointer = run.pointer(stage)
    assert pointer is not None, f"{stage.value} runs before the stages that read it"
    return store.read(pointer.key)


@contextmanager
def stopping_on_signals() -> Iterator[None]:
    """While its body runs, the first SIGTERM or Ctrl-C asks jobs to commit and stop; a second Ctrl-C ends the process at once.

    Outside of the main thread signals cannot be caught, and nothing changes.
    """

    def ask(number: int, _frame: object) -> None:
        if stop_requested.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop_requested.set()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def exit_code_of(error: BaseException) -> ExitCode:
    """Returns the exit code that an error means."""
    if isinstance(error, HeadraceError):
        return error.exit_code
    return ExitCode.CTRL_C if isinstance(error, KeyboardInterrupt) else ExitCode.BUG
