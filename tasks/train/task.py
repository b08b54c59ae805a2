"""The `train` stage as a Prefect task: submits or adopts the training job, follows it, and forwards its metrics."""

import time
from uuid import UUID

from prefect import task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE

from cluster.supervisor import JobView
from schemas.artifact import ArtifactRef
from schemas.journal import RunHandle
from schemas.stage import Stage
from tasks.forwarding import Forwarder
from tasks.runs import open_run
from tasks.stage_task import task_logger
from tasks.wiring import Listener, bench_of, find_or_make

_LOG_EVERY_S = 10.0


@task(name="train", task_run_name="train", cache_policy=NO_CACHE, retries=0)
def train(run: RunHandle, tokenizer: ArtifactRef, shards: ArtifactRef) -> ArtifactRef:
    """Returns the trained weights as a committed checkpoint. A training job that runs already is adopted, not submitted again."""
    del tokenizer, shards  # they order the tasks; the run's pointers name the same artifacts
    from tasks.tracking import tracker_of
    from tasks.train.build import build

    logger = task_logger()
    opened = open_run(run)
    config = opened.config()
    follower = _Follower(note=logger.info)
    forwarder: Forwarder | None = None

    def view(state: JobView) -> None:
        nonlocal forwarder
        if forwarder is None:
            pointer = opened.pointer(Stage.TRAIN)
            assert pointer is not None
            forwarder = Forwarder(
                tracker_of(config, run), storage=opened.storage, artifact_key=pointer.key, every_s=config.tracking.forward_every_s, note=logger.info
            )
        follower.show(state)
        forwarder.pump()

    record = find_or_make(Stage.TRAIN, bench=bench_of(run, listener=Listener(note=logger.info, view=view)), build=build)
    if forwarder is not None:
        forwarder.flush()
    return record.ref()


class _Follower:
    """Shows a training job in Prefect: a progress artifact, and a line of figures every few seconds."""

    def __init__(self, *, note: object) -> None:
        self._note = note
        self._artifact: UUID | None = None
        self._next_line_at = 0.0

    def show(self, view: JobView) -> None:
        """Takes one view of the job."""
        if time.monotonic() < self._next_line_at or not view.total_steps:
            return
        self._next_line_at = time.monotonic() + _LOG_EVERY_S
        figures = next((rank.figures for beat in view.heartbeats for rank in beat.ranks if rank.rank == 0), {})
        shown = " ".join(f"{name}={value:.4g}" for name, value in sorted(figures.items()))
        assert callable(self._note)
        self._note(f"step {view.step}/{view.total_steps} {shown}")
        percent = 100.0 * view.step / view.total_steps
        if self._artifact is None:
            created = create_progress_artifact(progress=percent, key="training-progress", description=f"{view.total_steps} steps")
            assert isinstance(created, UUID)
            self._artifact = created
        else:
            update_progress_artifact(artifact_id=self._artifact, progress=percent)
