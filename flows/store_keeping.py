"""What `headrace store` does between its arguments and its screens."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from cluster.file_system import NETWORK_FILE_SYSTEMS, file_system_of, mounts_here
from cluster.process import owner_here
from cluster.storage import Storage
from flows.cancellation import refuse_foreign
from flows.lookup import find_run, find_storage_of_model, storages
from flows.store_screens import gc_screen, list_screen, use_screen
from flows.terminal import show, show_json
from schemas.errors import InputError, UnreachableError, storage_failure
from schemas.exit_code import ExitCode
from schemas.journal import EventKind
from schemas.safe_path import is_below
from schemas.stage import Stage
from schemas.view import RunState
from tasks.store_hygiene.collection import Collector
from tasks.store_hygiene.listing import list_store
from tasks.store_hygiene.pin_log import add_pin, find_pins, remove_pin, standing_pins
from tasks.store_hygiene.roots import keys_of
from tasks.verify import resolve
from tasks.views import in_detail, view_of

_SETTLE_S = 75.0
"""On a network file system another machine may see an old state of a folder for a minute (`acdirmax` of nfs(5))."""


def list_stores(*, storage: str | None, keep_runs: int, measured: bool, as_json: bool) -> None:
    """Shows what the stores hold; `measured`: what takes the disk. Raises VerificationError where that cannot be told."""
    listings = [list_store(place, keep_runs=keep_runs, measured=measured) for place in storages(storage)]
    if as_json:
        show_json(listings)
        return
    for listing in listings:
        show(use_screen(listing) if measured else list_screen(listing))


def pin_what(what: str, *, reason: str, storage: str | None, as_json: bool) -> None:
    """Pins what a run uses, or a model, or an artifact. Raises InputError when nothing is called so."""
    place, keys = _named(what, storage=storage)
    with _refusals_told():
        pin = add_pin(place, subject=what, keys=keys, reason=reason)
    if as_json:
        show_json(pin)
    else:
        show([f"pin {pin.number} keeps, with all they were made from:", *(f"  {key}" for key in pin.keys)])


def unpin_what(what: str, *, force: bool, storage: str | None, as_json: bool) -> None:
    """Takes out every pin that `what` names. Raises InputError when there is none, or it is another user's."""
    found = [(place, pin) for place in storages(storage) for pin in find_pins(standing_pins(place), what)]
    if not found:
        raise InputError(f"nothing is pinned as {what!r}", mend="`headrace store ls` shows the pins")
    with _refusals_told():
        for place, pin in found:
            remove_pin(place, pin, force=force)
    if as_json:
        show_json([pin for _, pin in found])
    else:
        show([f"pin {pin.number} ({pin.subject}) is out" for _, pin in found])


def give_up(name: str, *, storage: str | None, force: bool, as_json: bool) -> None:
    """Notes that a run will not go on, so that it keeps nothing. Raises InputError while it works, or for another user's without `force`."""
    run = find_run(name, storage=storage)
    view = in_detail(view_of(run), storage=run.storage)
    if view.state in (RunState.RUNNING, RunState.DETACHED):
        raise InputError(f"{view.run_id} is {view.state.value}", mend=f"headrace cancel {view.run_id}, then again")
    if not force:
        refuse_foreign(run, command="store give-up")
    if view.state is not RunState.FINISHED:
        run.append(EventKind.RUN_GIVEN_UP, f"by {owner_here()}")
    if as_json:
        show_json(view)
    elif view.state is RunState.FINISHED:
        show([f"nothing to do: {view.run_id} is finished"])
    else:
        show([f"{view.run_id} is given up: `headrace store gc` removes what only it keeps", f"until then: headrace resume {view.run_id}"])


def collect_stores(*, storage: str | None, keep_runs: int, force: bool, dry_run: bool, as_json: bool) -> None:
    """Removes what nothing keeps, and says what went and what stays.

    Raises:
        InputError: this project has several stores, and none of them is named.
        UnreachableError: MLflow does not answer, or something could not be removed.
        VerificationError: what is wanted cannot be told.
    """
    places = storages(storage)
    if len(places) > 1:
        why = ", ".join(place.url for place in places)
        raise InputError(f"this project has {len(places)} stores", why=why, mend="name the one that is meant with --storage")
    collector = Collector(places[0], keep_runs=keep_runs, force=force, settle_s=_settle_s(places[0]))
    with _refusals_told():
        report = collector.collect(dry_run=dry_run)
    if as_json:
        show_json(report)
    else:
        show(gc_screen(report))
    if report.failed:
        sys.exit(int(ExitCode.UNREACHABLE))


def _settle_s(place: Storage) -> float:
    folder = place.local_path("runs")
    is_seen_by_others = folder is not None and file_system_of(folder, mounts=mounts_here()) in NETWORK_FILE_SYSTEMS
    return _SETTLE_S if is_seen_by_others else 0.0


def _named(what: str, *, storage: str | None) -> tuple[Storage, tuple[str, ...]]:
    """Returns the store that knows `what`, and the artifacts that it names: all that a run uses, else the one that `verify` would begin with."""
    for place in storages(storage):
        if what.partition("/")[0] in set(Stage) and is_below(what) and place.names(what):
            return place, (what,)
    try:
        run = find_run(what, storage=storage)
    except InputError as no_run:
        try:
            place = find_storage_of_model(what, storage=storage)
        except (InputError, UnreachableError) as error:
            mend = "`headrace store ls` lists artifacts, `headrace status` runs"
            raise InputError(f"nothing is called {what!r}", why=no_run.why, mend=mend) from error
        return place, (resolve(place, what),)
    if not (keys := keys_of(run)):
        raise InputError(f"{run.layout.run_id} uses nothing yet", why="its first stage has not begun")
    return run.storage, keys


@contextmanager
def _refusals_told() -> Iterator[None]:
    """Tells what the file system refuses without a stack trace."""
    try:
        yield
    except OSError as error:
        failure = storage_failure(error)
        if failure is None:
            raise
        raise failure from error
