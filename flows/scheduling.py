"""What a flow run does before it works: it plans, shows the plan, and finds that there is nothing to do, that people must be asked, or a run."""

import json
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect import runtime
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.states import Completed

from cluster.launchers import launcher_for
from cluster.storage import open_storage
from flows.control import new_run, recipe_path
from flows.figure import model_uri
from flows.piloting import load_checked, plan_checked
from flows.screens import plan_screen
from schemas.journal import RunHandle, recipe_name_of
from schemas.plan import OnChange, Plan
from schemas.recipe import LoadedRecipe
from schemas.stage import Stage
from schemas.view import RunState, RunView
from tasks.runs import Run, list_runs
from tasks.store import Store
from tasks.views import view_of

PROPOSED = "Proposed"
"""Name of the state in which a flow run ends that asks people; Prefect's event of it is `prefect.flow-run.Proposed`."""

SKIPPED = "Skipped"
"""Name of the state in which a scheduled flow run ends that finds an earlier run of its recipe at work."""

_AUTO_SCHEDULED = "auto-scheduled"
"""Tag that Prefect gives to flow runs that a schedule made."""
_RUNS_ASKED = 20
"""So many of a recipe's newest runs are asked whether they are at work: a schedule leaves at most one."""
_ROOM = 1.2
"""A budget that is proposed is so many times what the plan says: estimates are estimates."""


def plan_first(recipe: str, *, overrides: Sequence[str], from_stage: Stage | None, on_change: OnChange) -> RunHandle | State[Any]:
    """Returns the run to work on; or the state in which the flow run ends at once, because nothing has changed or people are asked first.

    Raises:
        ConfigError: the recipe is wrong, or there is no launcher for its cluster.
        HeadraceError: as `tasks.planning.make_plan`.
    """
    loaded, plan = _planned(recipe_path(recipe), overrides, from_stage=from_stage, on_change=on_change)
    if plan.nothing_to_do:
        figures = plan.stage(Stage.REGISTER).summary
        found = Store(open_storage(loaded.config.storage.root)).read(plan.stage(Stage.REGISTER).key)
        message = f"nothing to do: {model_uri(figures)}, version {figures.get('version')}, is made from exactly this"
        return Completed(message=message, data=found.ref())
    if _AUTO_SCHEDULED in runtime.flow_run.tags and (earlier := run_at_work(loaded)) is not None:
        return Completed(name=SKIPPED, message=f"skipped: {earlier.run_name} is {earlier.state.value}; look: headrace status {earlier.run_id}")
    screen = plan_screen(plan.model_copy(update={"scripts": {}}), config=loaded.config, warnings=loaded.warnings)
    get_run_logger().info("%s", "\n".join(screen))
    objection = plan.cost.objection if plan.cost is not None else ""
    if objection or on_change is OnChange.PROPOSE:
        return _propose(loaded, plan, screen=screen, objection=objection, on_change=on_change)
    return new_run(loaded, from_stage=from_stage)


def run_at_work(loaded: LoadedRecipe) -> RunView | None:
    """Returns a run of the recipe's name that somebody controls, or whose job lives; None when there is none.

    Prefect's `concurrency_limit` would do for a deployment, but ends flow runs whose turn it cannot renew: when its server was started anew, or did
    not answer for ten seconds at the wrong moment (Prefect 3.8, `prefect.concurrency._leases`).
    """
    storage = open_storage(loaded.config.storage.root)
    names = [run_id for run_id in list_runs(storage) if recipe_name_of(run_id) == loaded.config.name]
    views = (view_of(Run(storage, run_id)) for run_id in names[:_RUNS_ASKED])
    return next((view for view in views if view.state in (RunState.RUNNING, RunState.DETACHED)), None)


def _planned(recipe: Path, overrides: Sequence[str], *, from_stage: Stage | None, on_change: OnChange) -> tuple[LoadedRecipe, Plan]:
    """Returns the recipe as it would be run, and its plan."""
    loaded = load_checked(recipe, overrides)
    launcher_for(loaded.config)  # refuses what nothing here can run, before a run is made
    plan = plan_checked(loaded, from_stage=from_stage)
    if plan.nothing_to_do or on_change is not OnChange.CONTINUE:
        return loaded, plan
    from tasks.champion import find_champion

    champion = find_champion(open_storage(loaded.config.storage.root), loaded.config)
    if champion is None:
        get_run_logger().info("%s has no champion yet: training starts from the beginning", loaded.config.model_name)
        return loaded, plan
    for start in (champion.started_by, champion.overrides):  # what the champion came from makes the champion itself, when nothing changed since
        if start:
            loaded = load_checked(recipe, (*overrides, *start))
            plan = plan_checked(loaded, from_stage=from_stage, alike=champion.training)
            if plan.nothing_to_do:
                return loaded, plan
    get_run_logger().info("training starts from %s", champion.uri)
    return loaded, plan


def _propose(loaded: LoadedRecipe, plan: Plan, *, screen: Sequence[str], objection: str, on_change: OnChange) -> State[Any]:
    """Leaves the plan and how to accept it as a Prefect artifact, and returns the state that tells of it."""
    why, budget = objection or "something has changed", _enough(plan)
    commands = [accepting_command(loaded, budget=budget)]
    if budget is not None or not objection:  # asked again under the same budget, a flow run would propose again
        commands += _deployment_commands(on_change, budget)
    create_markdown_artifact(markdown=proposal(loaded, why=why, screen=screen, commands=commands), key="plan")
    return Completed(name=PROPOSED, message=f"proposed: {why}; accept: {commands[0]}")


def proposal(loaded: LoadedRecipe, *, why: str, screen: Sequence[str], commands: Sequence[str]) -> str:
    """Returns a proposal as Markdown. Pure."""
    lines = [
        f"# {loaded.config.name}: a plan to accept",
        f"Nothing was run: {why}.",
        "\n".join(("```text", *screen, "```")),
        "## Accept it",
        "By any one of these; the commands of Prefect where its server is known, `headrace` where the recipe and its folders are.",
        "\n".join(("```sh", *commands, "```")),
        "To leave it, do nothing: the next scheduled run looks again.",
    ]
    return "\n\n".join(lines) + "\n"


def accepting_command(loaded: LoadedRecipe, *, budget: float | None) -> str:
    """Returns the call of `headrace` that does what was planned. Pure.

    Args:
        budget: a budget that suffices; None: the recipe's own stays.
    """
    assignments = _with_budget(loaded.overrides, budget)
    return shlex.join(("headrace", "run", str(loaded.path), *(word for assignment in assignments for word in ("--set", assignment))))


def _deployment_commands(on_change: OnChange, budget: float | None) -> tuple[str, ...]:
    """Returns the calls of Prefect that run the deployment again, as accepted; none for a flow run that no deployment made."""
    name = runtime.deployment.name
    if not name:
        return ()
    overrides = _with_budget(runtime.flow_run.parameters.get("overrides") or (), budget)
    more = ("--param", f"overrides={json.dumps(overrides)}") if budget is not None else ()
    ways = (OnChange.RETRAIN, OnChange.CONTINUE) if on_change is OnChange.PROPOSE else (on_change,)
    deployment = f"{runtime.flow_run.flow_name}/{name}"
    return tuple(shlex.join(("prefect", "deployment", "run", deployment, "--param", f"on_change={way.value}", *more)) for way in ways)


def _with_budget(overrides: Sequence[str], budget: float | None) -> tuple[str, ...]:
    """Returns the overrides with this budget in place of any other; as they are without one."""
    if budget is None:
        return tuple(overrides)
    key = "budget.gpu_hours="
    return (*(assignment for assignment in overrides if not assignment.startswith(key)), f"{key}{budget:g}")


def _enough(plan: Plan) -> float | None:
    """Returns a budget that the plan keeps with some room, in two digits; None where it keeps its own, or nobody knows what it takes."""
    if plan.cost is None or not plan.cost.objection or plan.cost.total_hours is None:
        return None
    hours = _ROOM * plan.cost.total_hours
    digit = 10.0 ** (math.floor(math.log10(hours)) - 1)
    return math.ceil(hours / digit) * digit
