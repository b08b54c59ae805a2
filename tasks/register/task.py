"""The `register` stage as a Prefect task."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from schemas.artifact import ArtifactRef
from schemas.journal import RunHandle
from schemas.stage import Stage
from tasks.stage_task import run_stage


@task(name="register", task_run_name="register", cache_policy=NO_CACHE, retries=0)
def register(run: RunHandle, model: ArtifactRef, report: ArtifactRef) -> ArtifactRef:
    """Returns the registration of the model: its version and aliases in MLflow."""
    del model, report  # they order the tasks; the run's pointers name the same artifacts
    from tasks.register.build import build

    return run_stage(Stage.REGISTER, run, build=build)
