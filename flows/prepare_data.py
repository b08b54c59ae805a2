"""The first stages alone: raw text to token shards, for machines without accelerators.

What is made here is found again by `pretrain` on the same storage, so GPUs never wait for tokenizing.
"""

from prefect import flow

from flows.control import controlled, open_or_create
from schemas.artifact import ArtifactRef
from schemas.stage import Stage
from tasks.prepare.task import prepare
from tasks.tokenize.task import tokenize
from tasks.tokenizer.task import make_tokenizer
from tasks.validate.task import validate


@flow(name="prepare-data", retries=0, validate_parameters=True)
def prepare_data(
    recipe: str = "infra/recipes/demo_cpu.yaml",
    overrides: tuple[str, ...] = (),
    from_stage: Stage | None = None,
    run_id: str | None = None,
    storage_root: str | None = None,
) -> ArtifactRef:
    """Returns the token shards.

    Args:
        recipe: path of a recipe, relative to the checkout or absolute.
        overrides: `key.path=value`, as after `--set`.
        from_stage: rebuild this stage and what follows it.
        run_id: go on with this run instead of starting a new one.
        storage_root: where the run `run_id` lies; without it the recipe tells.
    """
    run = open_or_create(recipe, overrides=overrides, from_stage=from_stage, run_id=run_id, storage_root=storage_root)
    with controlled(run):
        accepted = validate(run)
        corpus = prepare(run, accepted)
        tokenizer = make_tokenizer(run, corpus)
        return tokenize(run, corpus, tokenizer)
