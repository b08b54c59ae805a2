"""The `prepare` stage as a Prefect task, where a recipe has that stage."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from schemas.artifact import ArtifactRef
from schemas.journal import RunHandle
from schemas.stage import Stage
from tasks.runs import open_run
from tasks.stage_task import run_stage


def prepare(run: RunHandle, accepted: ArtifactRef) -> ArtifactRef:
    """Returns the corpus that all that follows reads: the prepared one, or the accepted one itself where the recipe declares no step."""
    return _prepare(run, accepted) if open_run(run).config().corpus.preparation.steps else accepted


@task(name="prepare", task_run_name="prepare", cache_policy=NO_CACHE, retries=0)
def _prepare(run: RunHandle, accepted: ArtifactRef) -> ArtifactRef:
    del accepted  # it orders the tasks; the run's pointers name the same artifact
    from tasks.prepare.build import build

    return run_stage(Stage.PREPARE, run, build=build)
