"""The `tokenizer` stage as a Prefect task."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from schemas.artifact import ArtifactRef
from schemas.journal import RunHandle
from schemas.stage import Stage
from tasks.stage_task import run_stage


@task(name="tokenizer", task_run_name="tokenizer", cache_policy=NO_CACHE, retries=0)
def make_tokenizer(run: RunHandle, corpus: ArtifactRef) -> ArtifactRef:
    """Returns a tokenizer, trained on the corpus or taken as given, that passed its gate."""
    del corpus  # they order the tasks; the run's pointers name the same artifacts
    from tasks.tokenizer.build import build

    return run_stage(Stage.TOKENIZER, run, build=build)
