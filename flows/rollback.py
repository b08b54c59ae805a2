"""Moving a model's alias back to the version before, and the log of its moves."""

import socket

from flows.figure import of_moment, table
from flows.lookup import storages
from flows.terminal import show, show_json
from schemas.errors import InputError
from tasks.register.promotion import CHAMPION, history
from tasks.runs import Run


def roll_back(model: str, *, alias: str | None, storage: str | None, as_json: bool) -> None:
    """Points the alias back to the version it had before, and says so; as JSON the log's entry of that move.

    Raises:
        InputError: no such model, or nothing to go back to.
        UnreachableError: MLflow does not answer.
    """
    name, alias = name_and_alias(model, alias=alias)
    run = _newest_run(name, storage=storage)
    from cluster.process import user_name
    from tasks.mlflow_connection import MlflowConnection, TrackingTarget
    from tasks.mlflow_registry import ModelRegistry
    from tasks.register.promotion import rollback

    registry = ModelRegistry(MlflowConnection(TrackingTarget.of(run.config())))
    entry = rollback(registry, run.storage, model_name=name, who=f"{user_name()}@{socket.gethostname()}", alias=alias)
    if as_json:
        show_json(entry)
        return
    stands = registry.alias(name, alias)
    told = f"{name}@{alias} is version {entry.version} again; it was version {entry.previous}"
    if stands != entry.version:
        told = f"{name}@{alias} was moved back to version {entry.version}, and is version {stands} now: somebody else moved it meanwhile"
    show([told, f"all moves: headrace rollback {name} --history"])


def show_moves(model: str, *, alias: str | None, storage: str | None, as_json: bool) -> None:
    """Shows the moves of a model's aliases, or of one, oldest first. Raises InputError when there is no such model."""
    name, only = name_and_alias(model, alias=alias or "")
    moves = [move for move in history(_newest_run(name, storage=storage).storage, name) if only in ("", move.alias)]
    if as_json:
        show_json(moves)
    else:
        rows = [(of_moment(move.at), f"@{move.alias}", f"{move.previous or '-'} -> {move.version}", move.run_id, move.reason) for move in moves]
        show(table(rows) or f"no alias of {name} has moved")


def name_and_alias(model: str, *, alias: str | None) -> tuple[str, str]:
    """Returns the registered model and the alias that `demo`, `models:/demo` or `demo@champion` names; `alias` counts where the name holds none.

    Raises:
        InputError: `model` names a version, which has nothing before it, or two aliases are given.
    """
    name, _, own = model.removeprefix("models:/").rstrip("/").partition("@")
    if not name or "/" in name:
        raise InputError(f"{model!r} is not the name of a registered model", mend="give NAME or NAME@ALIAS; `headrace status` lists runs")
    if own and alias and own != alias:
        raise InputError(f"{model!r} and --alias {alias} name two aliases", mend="give one of them")
    return name, own or (CHAMPION if alias is None else alias)


def _newest_run(name: str, *, storage: str | None) -> Run:
    """The newest run that moved an alias of the model: it knows where MLflow is. Raises InputError."""
    places = storages(storage)
    for place in places:
        for move in reversed(history(place, name)):
            run = Run(place, move.run_id)
            if not move.is_rollback and place.exists(run.layout.config):
                return run
    where = ", ".join(place.url for place in places)
    raise InputError(
        f"no alias of a model {name!r} has been moved in {where}",
        why="only what Headrace promoted can be rolled back",
        mend="check the name with `headrace status last`; --storage names another storage root",
    )
