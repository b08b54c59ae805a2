"""What the commands do between their arguments and the stories: plan first, run only what is missing, say how it ended.

The way to "nothing to do" imports neither Prefect nor any other service's library.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.launchers import launcher_for
from flows.figure import comparison_lines, model_uri, of_bytes, table
from flows.terminal import paint, show, show_json
from schemas.errors import GateError, InputError, VerificationError
from schemas.frozen import thaw
from schemas.plan import Plan
from schemas.recipe import LoadedRecipe, load_recipe
from schemas.stage import Stage
from tasks.planning import make_plan

if TYPE_CHECKING:
    from schemas.journal import RunHandle

DEMO_RECIPE = Path(__file__).resolve().parent.parent / "infra" / "recipes" / "demo_cpu.yaml"


def load_checked(recipe: Path, assignments: Sequence[str]) -> LoadedRecipe:
    """Returns the recipe, its raw DeepSpeed section judged too: what contradicts the recipe is refused before any work."""
    loaded = load_recipe(recipe, assignments)
    if loaded.config.deepspeed is not None:
        from tasks.train.deepspeed_config import deepspeed_config

        config = loaded.config
        deepspeed_config(config, world_size=config.training.world_size_for(config.ranks(Stage.TRAIN)))
    return loaded


def plan_checked(loaded: LoadedRecipe, *, from_stage: Stage | None) -> Plan:
    """Returns the plan; refuses a model that cannot take the ids of a tokenizer that is known already."""
    plan = make_plan(loaded.config, from_stage=from_stage, project_dir=loaded.project_dir)
    vocab_size = plan.stage(Stage.TOKENIZER).summary.get("vocab_size")
    if vocab_size is not None and not plan.nothing_to_do:
        from tasks.train.compatibility import check_compatibility

        check_compatibility(loaded.config.model, vocab_size=vocab_size, sequence_length=loaded.config.tokenization.sequence_length)
    return plan


def run_recipe(recipe: Path, assignments: Sequence[str], *, from_stage: Stage | None, as_json: bool) -> None:
    """Runs what the recipe's plan finds missing; says so when that is nothing.

    Raises:
        ConfigError: the recipe is wrong, or there is no launcher for its cluster: said before anything is made or started.
        HeadraceError: a stage failed.
    """
    loaded = load_checked(recipe, assignments)
    launcher_for(loaded.config)
    for warning in loaded.warnings:
        show(f"warning: {warning}", stream=sys.stderr)
    plan = plan_checked(loaded, from_stage=from_stage)
    if plan.nothing_to_do:
        _nothing_to_do(plan, as_json=as_json)
        return
    from flows.conduct import begin, conduct
    from flows.lookup import remember_storage

    handle = begin(loaded, from_stage=from_stage)
    remember_storage(loaded.project_dir, loaded.config.storage.root)
    with _shown(handle, as_json=as_json):
        conduct(handle, recipe=str(loaded.path), overrides=loaded.overrides)
    _report(handle, as_json=as_json)


def run_demo(*, as_json: bool) -> None:
    """Runs the demo and prints its last screen; does not touch what the shell's environment names."""
    loaded = load_recipe(DEMO_RECIPE)
    plan = make_plan(loaded.config, project_dir=loaded.project_dir)
    if plan.nothing_to_do:
        _nothing_to_do(plan, as_json=as_json)
        return
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


def cancel_run(name: str, *, storage: str | None, wait_s: float, as_json: bool) -> None:
    """Asks a run and its jobs to stop and waits for it."""
    from flows.cancellation import request_cancel, wait_until_stopped
    from flows.lookup import find_run
    from schemas.view import RunState
    from tasks.views import in_detail, view_of

    run = find_run(name, storage=storage)
    view = in_detail(view_of(run), storage=run.storage)  # a job may wait in a queue that nobody controls
    if view.state not in (RunState.RUNNING, RunState.DETACHED):
        message = f"nothing to do: {view.run_id} is {view.state.value}"
    else:
        request_cancel(run, reason="headrace cancel")
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


def _nothing_to_do(plan: Plan, *, as_json: bool) -> None:
    figures = plan.stage(Stage.REGISTER).summary
    if as_json:
        show_json({"nothing_to_do": True, "model_uri": model_uri(figures), "plan": plan.model_dump(mode="json")})
    else:
        show(f"nothing to do: {model_uri(figures)}, version {figures.get('version')}, is made from exactly this")
    _judge_gate(figures)


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
