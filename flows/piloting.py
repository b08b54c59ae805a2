"""What the commands do between their arguments and the stories: plan first, run only what is missing, say how it ended.

The way to "nothing to do" imports neither Prefect nor any other service's library.
"""

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.launchers import launcher_for
from flows.figure import comparison_lines, model_uri, of_bytes, table
from flows.hashing import hashing_shown
from flows.terminal import json_text, paint, show, show_json
from schemas.errors import GateError, HeadraceError, InputError, UnreachableError, VerificationError
from schemas.frozen import thaw
from schemas.plan import Plan
from schemas.recipe import LoadedRecipe, load_recipe
from schemas.stage import Stage
from tasks.planning import make_plan

if TYPE_CHECKING:
    from schemas.journal import RunHandle

logger = logging.getLogger(__name__)

DEMO_RECIPE = Path(__file__).resolve().parent.parent / "infra" / "recipes" / "demo_cpu.yaml"


def load_checked(recipe: Path, assignments: Sequence[str]) -> LoadedRecipe:
    """Returns the recipe, its raw DeepSpeed section judged too: what contradicts the recipe is refused before any work."""
    loaded = load_recipe(recipe, assignments)
    if loaded.config.deepspeed is not None:
        from tasks.train.deepspeed_config import deepspeed_config

        config = loaded.config
        deepspeed_config(config, world_size=config.training.world_size_for(config.ranks(Stage.TRAIN)))
    return loaded


def plan_checked(loaded: LoadedRecipe, *, from_stage: Stage | None, alike: str = "", text_may_be_elsewhere: bool = False) -> Plan:
    """Returns the plan; refuses a model that cannot take the ids of a tokenizer that is known already. The rest as in `make_plan`."""
    with hashing_shown() as watch:
        plan = make_plan(
            loaded.config,
            from_stage=from_stage,
            project_dir=loaded.project_dir,
            alike=alike,
            text_may_be_elsewhere=text_may_be_elsewhere,
            watch=watch,
        )
    vocab_size = plan.stage(Stage.TOKENIZER).summary.get("vocab_size")
    if vocab_size is not None and not plan.nothing_to_do:
        from tasks.train.compatibility import check_compatibility

        check_compatibility(loaded.config.model, vocab_size=vocab_size, sequence_length=loaded.config.tokenization.sequence_length)
    return plan


def run_recipe(recipe: Path, assignments: Sequence[str], *, from_stage: Stage | None, as_json: bool) -> None:
    """Runs what the recipe's plan finds missing; says so when that is nothing.

    Raises:
        ConfigError: the recipe is wrong, or there is no launcher for its cluster, or its storage cannot carry its training: said before anything
            is made or started.
        HeadraceError: a stage failed.
    """
    loaded = load_checked(recipe, assignments)
    launcher_for(loaded.config)
    from tasks.train.compatibility import check_storage

    check_storage(loaded.config)
    plan = plan_checked(loaded, from_stage=from_stage)
    for warning in (*loaded.warnings, *plan.warnings):
        show(f"warning: {warning}", stream=sys.stderr)
    if plan.nothing_to_do:
        _nothing_to_do(loaded, plan, as_json=as_json)
        return
    _refuse_without_room(plan)
    light = frozenset(sys.modules)
    from flows.conduct import begin, conduct
    from flows.lookup import remember_storage

    handle = begin(loaded, from_stage=from_stage)
    remember_storage(loaded.project_dir, loaded.config.storage.root)
    with _shown(handle, as_json=as_json):
        conduct(handle, recipe=str(loaded.path), overrides=loaded.overrides)
    _report(handle, as_json=as_json)
    _certify_finished(loaded, modules=light)


def _refuse_without_room(plan: Plan) -> None:
    """Raises UnreachableError when what must be made cannot fit into the store."""
    if plan.lacks_room:
        mend = "`headrace store gc` frees what nobody wants; or lower checkpoint.keep_last, raise the quota, or move storage.root"
        raise UnreachableError(f"{plan.storage_root}: no room for this run", why=plan.lacks_room, mend=mend)


def run_demo(*, as_json: bool) -> None:
    """Runs the demo and prints its last screen; does not touch what the shell's environment names."""
    loaded = load_recipe(DEMO_RECIPE)
    plan = make_plan(loaded.config, project_dir=loaded.project_dir)
    if plan.nothing_to_do:
        _nothing_to_do(loaded, plan, as_json=as_json)
        return
    light = frozenset(sys.modules)
    from flows.conduct import begin, conduct, isolate
    from flows.demo import killing_a_rank, last_screen

    isolate(os.environ, state_dir=Path(loaded.config.state))
    handle = begin(loaded, from_stage=None)
    with _shown(handle, as_json=as_json), killing_a_rank(handle, loaded.config):
        conduct(handle, recipe=str(loaded.path), overrides=loaded.overrides, ambient=False)
    if as_json:
        _report(handle, as_json=True)
    else:
        show(["", *last_screen(handle)])
    _certify_finished(loaded, modules=light)


def resume_run(name: str, *, storage: str | None, as_json: bool) -> None:
    """Goes on with a run. Raises HeadraceError."""
    from flows.lookup import find_run
    from schemas.view import RunState
    from tasks.views import view_of

    run = find_run(name, storage=storage)
    file, view = run.read(), view_of(run)
    if view.state is RunState.FINISHED:
        if as_json:
            show_json(view)
        else:
            show(f"nothing to do: {view.run_id} is finished, {model_uri(view.stages[-1].figures)}".removesuffix(", "))  # prepared data make no model
        return
    launcher_for(run.config())
    from flows.conduct import conduct, handle_of

    handle = handle_of(file, storage_root=run.storage.url)
    with _shown(handle, as_json=as_json):
        conduct(handle, recipe=file.recipe, overrides=file.overrides)
    _report(handle, as_json=as_json)


def cancel_run(name: str, *, storage: str | None, wait_s: float, force: bool, as_json: bool) -> None:
    """Asks a run and its jobs to stop and waits for it. Raises InputError for another user's run, unless `force` says that it is meant."""
    from cluster.process import owner_here
    from flows.cancellation import refuse_foreign, request_cancel, wait_until_stopped
    from flows.lookup import find_run
    from schemas.view import RunState
    from tasks.views import in_detail, view_of

    run = find_run(name, storage=storage)
    view = in_detail(view_of(run), storage=run.storage)  # a job may wait in a queue that nobody controls
    if view.state not in (RunState.RUNNING, RunState.DETACHED):
        message = f"nothing to do: {view.run_id} is {view.state.value}"
    else:
        if not force:
            refuse_foreign(run)
        request_cancel(run, reason=f"headrace cancel by {owner_here()}")
        view = wait_until_stopped(run, timeout_s=wait_s)
        stopped = view.state not in (RunState.RUNNING, RunState.DETACHED)
        message = f"{view.run_id} is {view.state.value}" if stopped else f"{view.run_id} is asked to stop; it still works"
    if as_json:
        show_json(view)
    else:
        show([message] if view.state is RunState.FINISHED else [message, f"go on: headrace resume {view.run_id}"])


def verify_stored(model: str, *, storage: str | None, as_json: bool) -> None:
    """Verifies a model back to the raw files. Raises VerificationError with every damage found."""
    from flows.lookup import find_storage_of_model
    from tasks.verify import verify_model

    subject = _run_id_or_model(model, storage=storage)
    report = verify_model(find_storage_of_model(subject, storage=storage), subject)
    if as_json:
        show_json(report)
    if report.findings:
        raise VerificationError(
            report.findings, subject=model, mend="restore the files from a copy, or rebuild with `headrace run RECIPE --from STAGE`"
        )
    if not as_json:
        rows = [(f"  {artifact.key}", f"{artifact.files:,} files", of_bytes(artifact.bytes)) for artifact in report.artifacts]
        total = sum(artifact.bytes for artifact in report.artifacts)
        show([*table(rows, right=(1, 2)), paint(f"{model}: all {of_bytes(total)} are as they were committed", "green")])


# ---- how it ended -----------------------------------------------------------------------------------------------------


def _shown(handle: "RunHandle", *, as_json: bool) -> AbstractContextManager[None]:
    """Shows the run's progress while it works: on stdout, or on stderr where stdout is for a machine."""
    from flows.follow import following
    from tasks.runs import open_run

    return following(open_run(handle), stream=sys.stderr if as_json else sys.stdout)


def _nothing_to_do(loaded: LoadedRecipe, plan: Plan, *, as_json: bool) -> None:
    """Says so, and leaves a certificate, by which the next call can say it at once. Raises GateError as `_report` does."""
    figures = plan.stage(Stage.REGISTER).summary
    show(_finished_json(plan) if as_json else _finished_text(plan))
    _judge_gate(figures)
    _certify(loaded, plan, modules=frozenset(sys.modules))


def _finished_text(plan: Plan) -> str:
    figures = plan.stage(Stage.REGISTER).summary
    return f"nothing to do: {model_uri(figures)}, version {figures.get('version')}, is made from exactly this"


def _finished_json(plan: Plan) -> str:
    uri = model_uri(plan.stage(Stage.REGISTER).summary)
    return json_text({"nothing_to_do": True, "model_uri": uri, "plan": plan.model_dump(mode="json")})


def _certify_finished(loaded: LoadedRecipe, *, modules: frozenset[str]) -> None:
    """Leaves a certificate of a run that has just ended well, where a plan finds everything that it made."""
    try:
        loaded = load_checked(loaded.path, loaded.overrides)  # it may have changed meanwhile
        plan = plan_checked(loaded, from_stage=None)
    except (OSError, HeadraceError) as error:  # the run is finished all the same; whoever asks next is told
        logger.info("no certificate for %s: %s", loaded.path, error)
        return
    if plan.nothing_to_do:
        _certify(loaded, plan, modules=modules)


def _certify(loaded: LoadedRecipe, plan: Plan, *, modules: frozenset[str]) -> None:
    from flows.certifying import certify

    if plan.warnings or plan.lacks_room:  # of a moment: they need not be true later
        return
    warnings = [f"warning: {warning}" for warning in loaded.warnings]
    certify(loaded, plan, warnings=warnings, text=_finished_text(plan), json=_finished_json(plan), modules=modules)


def _report(handle: "RunHandle", *, as_json: bool) -> None:
    """Says what a finished run made. Raises GateError when the model did not pass its gate."""
    from tasks.runs import open_run
    from tasks.views import view_of

    view = view_of(open_run(handle))
    figures: dict[Stage, Mapping[str, Any]] = {stage.stage: thaw(stage.figures) for stage in view.stages}
    if as_json:
        show_json(view)
    else:
        show(
            [
                *comparison_lines(figures[Stage.EVALUATE]),
                f"model      {model_uri(figures[Stage.REGISTER])}, version {figures[Stage.REGISTER].get('version')}",
            ]
        )
        show(f"verify     headrace verify {model_uri(figures[Stage.REGISTER])}")
    _judge_gate(figures[Stage.REGISTER])


def _judge_gate(figures: Mapping[str, Any]) -> None:
    if figures.get("gate_passed") is False:
        raise GateError(
            f"{figures.get('model_name')} version {figures.get('version')} stays `candidate`",
            why="; ".join(figures.get("gate_reasons", ())),
            mend="train longer or on more text, or loosen registration.gate; `champion` stays where it was",
        )


def _run_id_or_model(model: str, *, storage: str | None) -> str:
    """Returns the run's id where `model` names a run by a short name, else `model` as it is."""
    if "/" in model or "@" in model:
        return model
    from flows.lookup import find_run

    try:
        run = find_run(model, storage=storage)
    except InputError:
        return model
    return run.layout.run_id
