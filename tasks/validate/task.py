"""The `validate` stage as a Prefect task."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from schemas.artifact import ArtifactRef
from schemas.journal import RunHandle
from schemas.stage import Stage
from tasks.stage_task import run_stage


@task(name="validate", task_run_name="validate", cache_policy=NO_CACHE, retries=0)
def validate(run: RunHandle) -> ArtifactRef:
    """Returns the accepted corpus: judged, split, with what was refused in quarantine."""
    from tasks.validate.build import build

    return run_stage(Stage.VALIDATE, run, build=build)
