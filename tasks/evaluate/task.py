"""The `evaluate` stage as a Prefect task."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from schemas.artifact import ArtifactRef
from schemas.journal import RunHandle
from schemas.stage import Stage
from tasks.evaluate.held_out import check_test_split
from tasks.runs import open_run
from tasks.stage_task import run_stage
from tasks.store import Store


def refuse_without_test_split(handle: RunHandle, corpus: ArtifactRef) -> None:
    """Ends a run whose model could not be evaluated before it is trained. Raises ConfigError."""
    run = open_run(handle)
    check_test_split(run.config(), Store(run.storage).read(corpus.key).summary.get("documents"))


@task(name="evaluate", task_run_name="evaluate", cache_policy=NO_CACHE, retries=0)
def evaluate(run: RunHandle, corpus: ArtifactRef, shards: ArtifactRef, model: ArtifactRef) -> ArtifactRef:
    """Returns the report on the exported model."""
    del corpus, shards, model  # they order the tasks; the run's pointers name the same artifacts
    from tasks.evaluate.build import build

    return run_stage(Stage.EVALUATE, run, build=build)
