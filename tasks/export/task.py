"""The `export` stage as a Prefect task."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from schemas.artifact import ArtifactRef
from schemas.journal import RunHandle
from schemas.stage import Stage
from tasks.stage_task import run_stage


@task(name="export", task_run_name="export", cache_policy=NO_CACHE, retries=0)
def export(run: RunHandle, tokenizer: ArtifactRef, training: ArtifactRef) -> ArtifactRef:
    """Returns the trained weights as a Hugging Face folder."""
    del tokenizer, training  # they order the tasks; the run's pointers name the same artifacts
    from tasks.export.build import build

    return run_stage(Stage.EXPORT, run, build=build)
