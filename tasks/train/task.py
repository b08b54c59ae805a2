"""The `train` stage as a Prefect task: submits or adopts the training job, follows it, and forwards its metrics."""

import time
from collections.abc import Callable
from uuid import UUID

from prefect import task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE

from cluster.job_view import JobView
from schemas.artifact import ArtifactRef
from schemas.journal import RunHandle
from schemas.stage import Stage
from tasks.forwarding import Forwarder
from tasks.runs import open_run
from tasks.stage_task import task_logger
from tasks.tracking import flat_params, tracker_of
from tasks.wiring import Listener, bench_of, find_or_make

_LOG_EVERY_S = 10.0


@task(name="train", task_run_name="train", cache_policy=NO_CACHE, retries=0)
def train(run: RunHandle, tokenizer: ArtifactRef, shards: ArtifactRef) -> ArtifactRef:
    """Returns the trained weights as a committed checkpoint. A training job that runs already is adopted, not submitted again."""
    del tokenizer, shards  # they order the tasks; the run's pointers name the same artifacts
    from tasks.train.build import build

    note = task_logger().info
    follower = _Follower(note=note)
    forwarder: Forwarder | None = None

    def view(state: JobView) -> None:
        nonlocal forwarder
        if forwarder is None:
            forwarder = _forwarder(run, note=note)
            forwarder.start()
        follower.show(state)
        forwarder.see(state.heartbeats)

    try:
        record = find_or_make(Stage.TRAIN, bench=bench_of(run, listener=Listener(note=note, view=view)), build=build)
        if record.provenance.run_id == run.run_id and forwarder is None:  # made before this process: metrics may have waited for the tracker
            forwarder = _forwarder(run, note=note)
    finally:
        if forwarder is not None:
            forwarder.finish()
    return record.ref()


def _forwarder(run: RunHandle, *, note: Callable[[str], None]) -> Forwarder:
    opened = open_run(run)
    config, pointer = opened.config(), opened.pointer(Stage.TRAIN)
    assert pointer is not None, "the pointer is fixed before the job starts"
    return Forwarder(
        tracker_of(config, run),
        storage=opened.storage,
        artifact_key=pointer.key,
        params=flat_params(config),
        every_s=config.tracking.forward_every_s,
        note=note,
    )


class _Follower:
    """Shows a training job in Prefect: a progress artifact with the time to go, and a line of figures every few seconds."""

    def __init__(self, *, note: Callable[[str], None]) -> None:
        self._note = note
        self._artifact: UUID | None = None
        self._next_at = 0.0
        self._seen: tuple[float, int] | None = None

    def show(self, view: JobView) -> None:
        """Takes one view of the job."""
        now = time.monotonic()
        if now < self._next_at or not view.total_steps:
            return
        self._next_at = now + _LOG_EVERY_S
        figures = next((rank.figures for beat in view.heartbeats for rank in beat.ranks if rank.rank == 0), {})
        shown = ", ".join(f"{name} {value:.4g}" for name, value in sorted(figures.items()))
        self._note(f"step {view.step}/{view.total_steps}, committed {view.committed_step}: {shown}")
        description = f"step {view.step} of {view.total_steps}{self._time_to_go(view, now=now)}"
        percent = 100.0 * view.step / view.total_steps
        if self._artifact is None:
            created = create_progress_artifact(progress=percent, key="training-progress", description=description)
            assert isinstance(created, UUID)
            self._artifact = created
        else:
            update_progress_artifact(artifact_id=self._artifact, progress=percent, description=description)

    def _time_to_go(self, view: JobView, *, now: float) -> str:
        if self._seen is None:
            self._seen = (now, view.step)
            return ""
        since, first = self._seen
        if view.step <= first:
            return ""
        return f", {(view.total_steps - view.step) * (now - since) / (view.step - first):.0f} s to go"
