"""The `tokenize` stage as a Prefect task."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from schemas.artifact import ArtifactRef
from schemas.journal import RunHandle
from schemas.stage import Stage
from tasks.stage_task import run_stage


@task(name="tokenize", task_run_name="tokenize", cache_policy=NO_CACHE, retries=0)
def tokenize(run: RunHandle, corpus: ArtifactRef, tokenizer: ArtifactRef) -> ArtifactRef:
    """Returns the token shards of the corpus."""
    del corpus, tokenizer  # they order the tasks; the run's pointers name the same artifacts
    from tasks.tokenize.build import build

    return run_stage(Stage.TOKENIZE, run, build=build)
