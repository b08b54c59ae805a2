"""Around the stories: which run a flow works on, who controls it, and what Prefect shows of it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from prefect import get_client, runtime
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.logging import get_run_logger

from cluster.launchers import launcher_for
from cluster.layout import flow_run_link
from cluster.lease import PATIENCE_S, Lease
from cluster.storage import AlreadyExistsError, open_storage
from schemas.canonical import canonical_json
from schemas.errors import HeadraceError, UnreachableError
from schemas.exit_code import ExitCode
from schemas.journal import EventKind, RunHandle
from schemas.recipe import LoadedRecipe, load_recipe
from schemas.stage import Stage
from tasks.runs import Run, create_run, open_run
from tasks.wiring import exit_code_of, stopping_on_signals


def open_or_create(recipe: str, *, overrides: Sequence[str], from_stage: Stage | None, run_id: str | None, storage_root: str | None) -> RunHandle:
    """Returns the run to work on: the named one, the one this Prefect flow run began with (a retry), or a new one."""
    known = known_run(recipe, overrides=overrides, run_id=run_id, storage_root=storage_root)
    return known or new_run(load_recipe(recipe_path(recipe), tuple(overrides)), from_stage=from_stage)


def known_run(recipe: str, *, overrides: Sequence[str], run_id: str | None, storage_root: str | None) -> RunHandle | None:
    """Returns the named run, or the one this Prefect flow run began with (a retry); None: it has not begun any.

    With `run_id` and `storage_root` the recipe's file is not read: a run goes on with what it stored.
    """
    if run_id is not None and storage_root is not None:
        return RunHandle(run_id=run_id, storage_root=storage_root, state_dir=Run(open_storage(storage_root), run_id).read().state_dir)
    storage = open_storage(load_recipe(recipe_path(recipe), tuple(overrides)).config.storage.root)
    if run_id is not None:
        return RunHandle(run_id=run_id, storage_root=storage.url, state_dir=Run(storage, run_id).read().state_dir)
    link = flow_run_link(runtime.flow_run.id)
    return RunHandle.model_validate_json(storage.read(link)) if storage.exists(link) else None


def new_run(loaded: LoadedRecipe, *, from_stage: Stage | None) -> RunHandle:
    """Creates the run that this Prefect flow run works on, and returns it; the one of a retry that was faster, when there is one."""
    launcher_for(loaded.config)  # refuses what nothing here can run, before a run is made
    storage, link = open_storage(loaded.config.storage.root), flow_run_link(runtime.flow_run.id)
    handle = create_run(loaded.config, project_dir=loaded.project_dir, recipe=str(loaded.path), overrides=loaded.overrides, from_stage=from_stage)
    try:
        storage.create_exclusive(link, canonical_json(handle))
    except AlreadyExistsError:
        return RunHandle.model_validate_json(storage.read(link))
    return handle


def recipe_path(recipe: str) -> Path:
    """Returns where a recipe lies: a relative path that is not in this folder starts at the checkout."""
    path = Path(recipe)
    return path if path.is_absolute() or path.exists() else Path(__file__).resolve().parent.parent / recipe  # a worker's folder is not the checkout


@contextmanager
def controlled(handle: RunHandle) -> Iterator[None]:
    """Holds the run's control lease, keeps its journal's beginning and end, and leaves the stage table in Prefect.

    Raises:
        LeaseHeldError: another live process controls this run.
    """
    run = open_run(handle)
    logger = get_run_logger()
    with Lease.take(run.storage, run.layout.control, watch_s=PATIENCE_S), stopping_on_signals():
        resumed = bool(run.events())
        run.append(EventKind.RUN_RESUMED if resumed else EventKind.RUN_STARTED, handle.run_name)
        _show(_name_flow_run, run)
        logger.info("run %s", handle.run_id)
        try:
            yield
        except BaseException as error:
            code = exit_code_of(error)
            message = str(error) if isinstance(error, HeadraceError) else f"{type(error).__name__}: {error}"
            run.append(EventKind.RUN_FAILED, message, figures={"exit_code": int(code)})
            _end_tracking(run, handle, code=code)
            _show(_show_stages, run)
            raise
        _end_tracking(run, handle, code=ExitCode.DONE)
        run.append(EventKind.RUN_FINISHED, handle.run_name, figures={"exit_code": 0})
        _show(_show_stages, run)


def _show(what: Callable[[Run], None], run: Run) -> None:
    """Shows something in Prefect. A Prefect server that went away must not change how the run ended."""
    try:
        what(run)
    except Exception as error:  # noqa: BLE001  # httpx and Prefect raise many kinds; the journal has all that is shown
        run.append(EventKind.NOTE, f"Prefect could not be told: {type(error).__name__}: {error}")


def _name_flow_run(run: Run) -> None:
    """Gives the Prefect flow run the run's own readable name, and its tag, so that both are found by either.

    Not its task runs: for a tagged one Prefect asks its server for a concurrency slot, which costs seconds where the server is busy.
    """
    with get_client(sync_client=True) as client:
        client.update_flow_run(runtime.flow_run.id, name=run.name, tags={*runtime.flow_run.tags, run.name})


def _end_tracking(run: Run, handle: RunHandle, *, code: ExitCode) -> None:
    """Says in MLflow how the run ended, where it got as far as having an MLflow run."""
    if run.pointer(Stage.TRAIN) is None:
        return
    from tasks.tracking import RunStatus, tracker_of

    stopped = code in (ExitCode.INTERRUPTED, ExitCode.CTRL_C)
    status = RunStatus.FINISHED if code is ExitCode.DONE else RunStatus.KILLED if stopped else RunStatus.FAILED
    try:
        tracker_of(run.config(), handle).end_if_begun(status)
    except UnreachableError as error:
        run.append(EventKind.NOTE, f"tracking is down, the run stays open there: {error.what}")


def _show_stages(run: Run) -> None:
    """Leaves the table of stages, and where the run lies, as Prefect artifacts."""
    ends = {EventKind.STAGE_FINISHED: "made", EventKind.STAGE_REUSED: "found", EventKind.STAGE_FAILED: "failed"}
    rows = [
        {
            "stage": event.stage.value,
            "outcome": ends[event.kind],
            "seconds": round(float(event.figures.get("seconds", 0.0)), 1),
            "artifact": event.artifact_key,
        }
        for event in run.events()
        if event.kind in ends and event.stage is not None
    ]
    name = run.layout.run_id
    create_table_artifact(table=rows, key="stages", description=f"Stages of {name}")
    create_markdown_artifact(
        markdown=f"Run `{name}` in `{run.storage.url}`\n\nLook: `headrace status {name}` · go on: `headrace resume {name}`",
        key="run",
    )
