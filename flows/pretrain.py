"""The pipeline on one screen: raw text to a registered language model.

Each task finds its artifact by content or makes it; a job that is running already is adopted. So this flow may be
killed and started again at any time: run it with the same `run_id`, or retry it in the Prefect UI.
"""

from prefect import State, flow

from flows.control import controlled, known_run
from flows.scheduling import plan_first
from schemas.artifact import ArtifactRef
from schemas.plan import OnChange
from schemas.stage import Stage
from tasks.evaluate.task import evaluate, refuse_without_test_split
from tasks.export.task import export
from tasks.prepare.task import prepare
from tasks.register.task import register
from tasks.tokenize.task import tokenize
from tasks.tokenizer.task import make_tokenizer
from tasks.train.task import train
from tasks.validate.task import validate


@flow(name="pretrain", retries=0, validate_parameters=True)
def pretrain(
    recipe: str = "infra/recipes/demo_cpu.yaml",
    overrides: tuple[str, ...] = (),
    from_stage: Stage | None = None,
    run_id: str | None = None,
    storage_root: str | None = None,
    on_change: OnChange = OnChange.RETRAIN,
) -> ArtifactRef | State[ArtifactRef | None]:
    """Returns the registered model; or the state that says that nothing was run, because nothing has changed or people are asked first.

    Args:
        recipe: path of a recipe, relative to the checkout or absolute.
        overrides: `key.path=value`, as after `--set`.
        from_stage: rebuild this stage and what follows it.
        run_id: go on with this run instead of starting a new one.
        storage_root: where the run `run_id` lies; without it the recipe tells.
        on_change: what a new run does about what has changed. A plan that exceeds `budget.gpu_hours` is proposed in any case.
    """
    known = known_run(recipe, overrides=overrides, run_id=run_id, storage_root=storage_root)
    run = known or plan_first(recipe, overrides=overrides, from_stage=from_stage, on_change=on_change)
    if isinstance(run, State):
        return run
    with controlled(run):
        accepted = validate(run)
        corpus = prepare(run, accepted)
        refuse_without_test_split(run, corpus)
        tokenizer = make_tokenizer(run, corpus)
        shards = tokenize(run, corpus, tokenizer)
        training = train(run, tokenizer, shards)
        model = export(run, tokenizer, training)
        report = evaluate(run, corpus, shards, model)
        return register(run, model, report)
