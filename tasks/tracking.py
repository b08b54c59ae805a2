"""Runs and metrics in MLflow.

One MLflow run stands for one pipeline run, found again by its tag, however often either process is restarted. Every call
that reaches for the server raises `UnreachableError` when it cannot be had: callers journal it and go on.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemas.config import RunConfig
from schemas.frozen import thaw
from schemas.journal import RunHandle
from schemas.progress import MetricPoint
from tasks.mlflow_connection import MlflowConnection, TrackingTarget, without_credentials

if TYPE_CHECKING:
    from mlflow.entities import Metric, Run

RUN_TAG = "headrace.run_id"
STEP_TAG = "headrace.forwarded_step"
_MAX_BATCH_METRICS = 1000
_MAX_BATCH_PARAMS = 100
_MAX_VALUE_CHARS = 500


class RunStatus(StrEnum):
    """How a run ended, in MLflow's words."""

    FINISHED = "FINISHED"
    FAILED = "FAILED"
    KILLED = "KILLED"


@dataclass(frozen=True)
class SystemSample:
    """One measurement of a node."""

    name: str
    """For example `node-0/cpu_percent`; shown under `system/`."""
    value: float
    step: int
    """Newest optimizer step at that time."""
    at: float
    """Seconds since the Unix epoch, by the node's clock."""


def flat_params(config: RunConfig) -> dict[str, str]:
    """Returns the recipe and the execution settings as dotted parameters; credentials inside URLs are blotted out."""
    params: dict[str, str] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, Mapping) and value:
            for key, item in value.items():
                walk(f"{prefix}.{key}" if prefix else str(key), item)
        else:
            params[prefix] = without_credentials(str(value))[:_MAX_VALUE_CHARS]

    walk("", thaw(config.model_dump(mode="json")))
    return params


class Tracker:
    """The MLflow run of one pipeline run."""

    def __init__(self, target: TrackingTarget, *, run_id: str, run_name: str, tags: Mapping[str, str] | None = None) -> None:
        """Args: run_id: the pipeline run, by which the MLflow run is found again. run_name: its readable name. tags: more tags."""
        self.connection = MlflowConnection(target)
        self._run_id, self._run_name, self._tags = run_id, run_name, dict(tags or {})

    @cached_property
    def mlflow_run_id(self) -> str:
        """The MLflow run: the oldest one with this run's tag, set running again; otherwise a new one, tagged as it is created."""
        client, connection = self.connection.client, self.connection
        with connection.reaching("asked for the run"):
            found = client.search_runs([connection.experiment_id], f"tags.`{RUN_TAG}` = '{self._run_id}'", order_by=["attributes.start_time ASC"])
            if found:
                if found[0].info.status != "RUNNING":
                    client.update_run(found[0].info.run_id, status="RUNNING")
                return str(found[0].info.run_id)
            created = client.create_run(connection.experiment_id, tags={**self._tags, RUN_TAG: self._run_id}, run_name=self._run_name)
            return str(created.info.run_id)

    def log_params(self, params: Mapping[str, str]) -> None:
        """Records parameters that the run does not have yet; they are immutable in MLflow."""
        with self.connection.reaching("written to"):
            from mlflow.entities import Param

            present = self._run().data.params
            missing = [Param(key, value) for key, value in sorted(params.items()) if key not in present]
            for start in range(0, len(missing), _MAX_BATCH_PARAMS):
                self.connection.client.log_batch(self.mlflow_run_id, params=missing[start : start + _MAX_BATCH_PARAMS])

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Sets tags of the run."""
        with self.connection.reaching("written to"):
            for key, value in tags.items():
                self.connection.client.set_tag(self.mlflow_run_id, key, value)

    def forwarded_step(self) -> int:
        """Returns the newest step that MLflow holds completely; -1: none. Persisted as a tag of the MLflow run."""
        with self.connection.reaching("asked for the run"):
            return int(self._run().data.tags.get(STEP_TAG, "-1"))

    def forward(self, points: Sequence[MetricPoint]) -> None:
        """Hands over the points above `forwarded_step`, in order of steps, with the rank's own timestamps.

        The high-water step moves after the points are in. A crash in between hands the same points over again, and
        MLflow stores points with equal name, value, step and time once.

        Raises:
            UnreachableError: some points may be in; all are handed over again next time.
        """
        high = self.forwarded_step()
        new = sorted((point for point in points if point.step > high), key=lambda point: point.step)
        with self.connection.reaching("written to"):
            for batch in _batches(new):
                for point in batch:
                    for name, text in point.text.items():
                        self.connection.client.log_text(self.mlflow_run_id, text, f"text/{name}/step-{point.step:08d}.txt")
                self._log_metrics([sample for point in batch for sample in _samples(point)])
                self.connection.client.set_tag(self.mlflow_run_id, STEP_TAG, str(batch[-1].step))

    def log_system(self, samples: Sequence[SystemSample]) -> None:
        """Records measurements of nodes under `system/`."""
        with self.connection.reaching("written to"):
            self._log_metrics([SystemSample(f"system/{sample.name}", sample.value, sample.step, sample.at) for sample in samples])

    def log_figures(self, figures: Mapping[str, float], *, at: float, step: int = 0) -> None:
        """Records single figures, measured at `at` (seconds since the Unix epoch)."""
        with self.connection.reaching("written to"):
            self._log_metrics([SystemSample(name, value, step, at) for name, value in figures.items()])

    def log_files(self, files: Mapping[str, Path], *, folder: str) -> None:
        """Stores files under `folder` of the run's artifacts, by their relative path; the same again replaces them."""
        with self.connection.reaching("written to"):
            for name, path in files.items():
                inside = "/".join((folder, *name.split("/")[:-1]))
                self.connection.client.log_artifact(self.mlflow_run_id, str(path), artifact_path=inside)

    def end(self, status: RunStatus) -> None:
        """Ends the MLflow run; a later start sets it running again."""
        with self.connection.reaching("written to"):
            self.connection.client.set_terminated(self.mlflow_run_id, status.value)

    def end_if_begun(self, status: RunStatus) -> None:
        """Ends the MLflow run where there is one; never makes one."""
        connection = self.connection
        with connection.reaching("written to"):
            for run in connection.client.search_runs([connection.experiment_id], f"tags.`{RUN_TAG}` = '{self._run_id}'"):
                connection.client.set_terminated(run.info.run_id, status.value)

    def _run(self) -> "Run":
        return self.connection.client.get_run(self.mlflow_run_id)

    def _log_metrics(self, samples: Sequence[SystemSample]) -> None:
        for start in range(0, len(samples), _MAX_BATCH_METRICS):
            metrics = [_metric(sample) for sample in samples[start : start + _MAX_BATCH_METRICS]]
            self.connection.client.log_batch(self.mlflow_run_id, metrics=metrics)


def tracker_of(config: RunConfig, handle: RunHandle) -> Tracker:
    """Returns the tracker of a run; nothing is contacted until it is used."""
    return Tracker(TrackingTarget.of(config), run_id=handle.run_id, run_name=handle.run_name)


def _samples(point: MetricPoint) -> list[SystemSample]:
    return [SystemSample(name, value, point.step, point.at) for name, value in point.values.items()]


def _metric(sample: SystemSample) -> "Metric":
    from mlflow.entities import Metric

    return Metric(sample.name, sample.value, int(sample.at * 1000), sample.step)


def _batches(points: Sequence[MetricPoint]) -> Iterator[list[MetricPoint]]:
    """Yields runs of whole steps that fit into one call each: a step is never divided by the high-water mark."""
    batch: list[MetricPoint] = []
    size = 0
    for point in points:
        if batch and point.step != batch[-1].step and size + len(point.values) > _MAX_BATCH_METRICS:
            yield batch
            batch, size = [], 0
        batch.append(point)
        size += len(point.values)
    if batch:
        yield batch
