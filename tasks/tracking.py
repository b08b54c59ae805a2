"""Runs, metrics and models in MLflow: the only module that imports mlflow, and only when it is first used (2-4 s).

One MLflow run stands for one pipeline run, found again by its tag, however often either process is restarted. Every call
that reaches for the server raises `UnreachableError` when it cannot be had: callers journal it and go on. Nothing fluent
and no global state of mlflow is used, only its client; autologging and telemetry are off.
"""

import contextlib
import json
import logging
import os
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from schemas.config import RunConfig
from schemas.errors import UnreachableError
from schemas.frozen import thaw
from schemas.job import MetricPoint
from schemas.journal import RunHandle
from schemas.reference import has_secret, hide_secrets, resolve_secrets, secret_names

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Metric, Run

RUN_TAG = "headrace.run_id"
STEP_TAG = "headrace.forwarded_step"
ROOT_HASH_TAG = "headrace.root_hash"
MODEL_ID_TAG = "headrace.model_id"
"""A version's logged model: mlflow 3.17's SQL registry takes `model_id` and does not keep it."""
_MAX_BATCH_METRICS = 1000
_MAX_BATCH_PARAMS = 100
_MAX_VALUE_CHARS = 500
_UNREACHABLE_STATUS = (401, 403, 408, 429)
_KEPT_SETTINGS = (
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "MLFLOW_TRACKING_INSECURE_TLS",
    "MLFLOW_TRACKING_SERVER_CERT_PATH",
    "MLFLOW_TRACKING_CLIENT_CERT_PATH",
    "MLFLOW_S3_ENDPOINT_URL",
    "MLFLOW_S3_IGNORE_TLS",
)
_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_CONFIGURE_LOGGING": "false",
    # The defaults retry for minutes; an outage is to be noted, and made up for later by whoever called.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
}
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+@")


class RunStatus(StrEnum):
    """How a run ended, in MLflow's words."""

    FINISHED = "FINISHED"
    FAILED = "FAILED"
    KILLED = "KILLED"


@dataclass(frozen=True)
class TrackingTarget:
    """Where runs and models are tracked."""

    uri: str
    """Server or database; secrets are still `${…}`."""
    artifact_root: Path | None
    """Where MLflow's files go; None: the server decides."""
    experiment: str
    """The experiment's name."""

    @classmethod
    def of(cls, config: RunConfig) -> "TrackingTarget":
        """Returns the recipe's server, or the SQLite database in its state folder (an absolute path)."""
        experiment = config.tracking.experiment or config.name
        if config.tracking.mlflow_uri is not None:
            return cls(uri=config.tracking.mlflow_uri, artifact_root=None, experiment=experiment)
        state = Path(config.state)
        return cls(uri=f"sqlite:///{state / 'mlflow.db'}", artifact_root=state / "mlflow-artifacts", experiment=experiment)


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


def without_credentials(text: str) -> str:
    """Returns a text with the credentials inside its URLs blotted out."""
    return _CREDENTIALS.sub("…@", text)


def environment(ambient: Mapping[str, str], *, own_server: bool) -> dict[str, str]:
    """Returns `ambient` with Headrace's MLflow settings in place of any others; credentials stay when the recipe names a server."""
    kept = _KEPT_SETTINGS if own_server else ()
    return {key: value for key, value in ambient.items() if not key.startswith(("MLFLOW_", "_MLFLOW_")) or key in kept} | _SETTINGS


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


class MlflowConnection:
    """A lazily opened client, and the experiment."""

    def __init__(self, target: TrackingTarget) -> None:
        """Args: target: where to track. Nothing is contacted yet."""
        self.target = target

    @cached_property
    def client(self) -> "MlflowClient":
        """The client; its first use imports mlflow and, on an empty SQLite file, creates the schema (about 2 s)."""
        self.prepare()
        if self.target.artifact_root is not None:
            self.target.artifact_root.mkdir(parents=True, exist_ok=True)
        from mlflow import MlflowClient

        uri = resolve_secrets(self.target.uri)
        with self.reaching("opened"):
            return MlflowClient(tracking_uri=uri, registry_uri=uri)

    def prepare(self) -> None:
        """Sets the environment that mlflow reads when it is imported and later. To be called before any import of it."""
        settings = environment(os.environ, own_server=self.target.artifact_root is None)
        for key in set(os.environ) - set(settings) - set(secret_names(self.target.uri)):
            del os.environ[key]
        os.environ.update(settings)
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)

    @cached_property
    def experiment_id(self) -> str:
        """The experiment's id; created when missing."""
        name, root, client = self.target.experiment, self.target.artifact_root, self.client
        from mlflow.exceptions import MlflowException

        with self.reaching("asked for the experiment"):
            found = client.get_experiment_by_name(name)
            if found is None:
                location = None if root is None else (root / name).as_uri()
                try:
                    return str(client.create_experiment(name, artifact_location=location))
                except MlflowException as error:
                    if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another process was first
                        raise
                found = client.get_experiment_by_name(name)
            assert found is not None, f"experiment {name!r} exists and does not"
            return str(found.experiment_id)

    @contextlib.contextmanager
    def reaching(self, what: str) -> Iterator[None]:
        """Turns "the server could not be asked" into `UnreachableError`; what the server refuses for a reason of its own stays as it is."""
        self.prepare()
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import OperationalError

        try:
            yield
        except (MlflowException, OperationalError, OSError) as error:
            if isinstance(error, MlflowException) and (status := error.get_http_status_code()) < 500 and status not in _UNREACHABLE_STATUS:
                raise
            reason = without_credentials(hide_secrets(str(error), text=self.target.uri)).splitlines()[0]
            uri = without_credentials(self.target.uri)
            mend = "start it again or check its credentials; what it missed is forwarded later"
            cause = None if has_secret(self.target.uri) else error  # loggers write the cause too, and it may quote the URL
            raise UnreachableError(f"MLflow at {uri} could not be {what}", why=reason, mend=mend) from cause


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


@dataclass(frozen=True)
class ModelPackage:
    """A model to be logged, as files."""

    name: str
    """Name of the logged model."""
    hf_dir: Path
    """Hugging Face folder with safetensors; the artifact `hf`."""
    code_path: Path
    """The models-from-code file."""
    card_path: Path
    """Model card; the artifact `card`."""
    requirements: tuple[str, ...]
    """Pinned requirements of serving; given, so MLflow infers nothing and asks no network."""
    root_hash: str
    """Content hash of the exported model, by which the logged model is found again."""
    tags: Mapping[str, str]
    """Further tags of the logged model."""


class ModelRegistry:
    """Logged models and registered versions; the `VersionStore` of `tasks.register.registry`."""

    def __init__(self, connection: MlflowConnection, *, mlflow_run_id: str = "") -> None:
        """Args: mlflow_run_id: the run that logged models belong to; only needed to log and to register."""
        self._connection, self._mlflow_run_id = connection, mlflow_run_id

    def versions(self, model_name: str, *, root_hash: str) -> tuple[int, ...]:
        """Returns the versions with this root hash, ascending."""
        found: list[int] = []
        token: str | None = None
        with self._connection.reaching("asked for versions"):
            while token != "":
                page = self._connection.client.search_model_versions(f"tags.`{ROOT_HASH_TAG}` = '{root_hash}'", page_token=token)
                found += [int(version.version) for version in page if version.name == model_name]
                token = page.token or ""
        return tuple(sorted(found))

    def find_model(self, *, root_hash: str) -> str | None:
        """Returns the id of a completely logged model with this root hash, or None."""
        with self._connection.reaching("asked for logged models"):
            query = f"tags.`{ROOT_HASH_TAG}` = '{root_hash}'"
            found = self._connection.client.search_logged_models([self._connection.experiment_id], query)
        return next((str(model.model_id) for model in found if str(model.status) == "READY"), None)

    def log_model(self, package: ModelPackage) -> str:
        """Stores a model with the server and returns its id. Only a completely stored one is ever `READY`."""
        client = self._connection.client
        from mlflow.entities import LoggedModelOutput

        with self._connection.reaching("given the model"), tempfile.TemporaryDirectory(prefix="headrace-model-") as folder:
            logged = client.create_logged_model(
                self._connection.experiment_id,
                name=package.name,
                source_run_id=self._mlflow_run_id,
                tags={**package.tags, ROOT_HASH_TAG: package.root_hash},
                model_type="text-generation",
            )
            path = Path(folder) / "model"
            _write_model(package, logged=logged, path=path)
            client.log_model_artifacts(logged.model_id, str(path))
            client.log_outputs(self._mlflow_run_id, [LoggedModelOutput(logged.model_id, step=0)])
            client.finalize_logged_model(logged.model_id, "READY")
        return str(logged.model_id)

    def create_version(self, model_name: str, *, model_id: str, tags: Mapping[str, str], description: str) -> int:
        """Creates a version, tags included, in one call; and the registered model when it is missing. Returns its number."""
        client = self._connection.client
        from mlflow.exceptions import MlflowException

        with self._connection.reaching("asked to register"):
            try:
                client.create_registered_model(model_name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            model = client.get_logged_model(model_id)
            version = client.create_model_version(
                model_name,
                source=model.artifact_location,
                run_id=self._mlflow_run_id,
                tags={**tags, MODEL_ID_TAG: model_id},
                description=description,
                model_id=model_id,
                await_creation_for=0,
            )
        return int(version.version)

    def delete_version(self, model_name: str, version: int) -> None:
        """Removes a version; nothing when there is none."""
        client = self._connection.client
        from mlflow.exceptions import MlflowException

        with self._connection.reaching("asked to remove a version"):
            try:
                client.delete_model_version(model_name, str(version))
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise

    def model_of(self, model_name: str, version: int) -> str:
        """Returns the id of the logged model behind a version."""
        with self._connection.reaching("asked for a version"):
            tags: Mapping[str, str] = self._connection.client.get_model_version(model_name, str(version)).tags
        return tags[MODEL_ID_TAG]

    def run_of(self, model_id: str) -> str:
        """Returns the MLflow run that logged a model."""
        with self._connection.reaching("asked for a model"):
            return str(self._connection.client.get_logged_model(model_id).source_run_id)

    def has_version(self, model_name: str, version: int) -> bool:
        """Whether the version is there."""
        client = self._connection.client
        from mlflow.exceptions import MlflowException

        with self._connection.reaching("asked for a version"):
            try:
                client.get_model_version(model_name, str(version))
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                return False
        return True

    def alias(self, model_name: str, alias: str) -> int | None:
        """Returns the version that an alias points to, or None; also when there is no such model."""
        client = self._connection.client
        from mlflow.exceptions import MlflowException

        with self._connection.reaching("asked for an alias"):
            try:
                aliases: Mapping[str, Any] = client.get_registered_model(model_name).aliases
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                return None
        return int(aliases[alias]) if alias in aliases else None

    def set_alias(self, model_name: str, alias: str, *, version: int) -> None:
        """Points an alias to a version.

        MLflow inserts an alias that it did not find; of two first writers at once it refuses one. By then the alias is there, and
        setting it again is an update.
        """
        client = self._connection.client
        from mlflow.exceptions import MlflowException

        with self._connection.reaching("asked to move an alias"):
            try:
                client.set_registered_model_alias(model_name, alias, str(version))
            except MlflowException:
                if self.alias(model_name, alias) is None:
                    raise
                client.set_registered_model_alias(model_name, alias, str(version))

    def local_dir(self, model_id: str) -> Path | None:
        """Returns the local folder of MLflow's copy of a logged model, or None when a server keeps it."""
        with self._connection.reaching("asked for a model"):
            location = str(self._connection.client.get_logged_model(model_id).artifact_location)
        if location.startswith("file:"):
            return Path(unquote(urlsplit(location).path))
        return Path(location) if location.startswith("/") else None

    def log_dataset(self, *, name: str, digest: str, source: str, context: str, profile: Mapping[str, Any]) -> None:
        """Names a dataset as an input of the run, by the first 36 characters of its digest (MLflow's limit)."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(
            name=name, digest=digest[:36], source_type="headrace", source=json.dumps({"uri": source}), profile=json.dumps(dict(profile))
        )
        inputs = [DatasetInput(dataset, [InputTag("mlflow.data.context", context)])]
        client, run_id = self._connection.client, self._mlflow_run_id
        from mlflow.exceptions import MlflowException

        with self._connection.reaching("written to"):
            try:
                client.log_inputs(run_id, inputs)
            except MlflowException as error:
                if "IntegrityError" not in str(error):
                    raise
                client.log_inputs(run_id, inputs)  # another run named the same dataset first at the same moment; by now it is found


def _write_model(package: ModelPackage, *, logged: "LoggedModel", path: Path) -> None:
    """Writes an MLflow model folder. mlflow 3.17 warns about its own type hints at import and about typed models when it saves them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mlflow.models import Model
        from mlflow.pyfunc import save_model

        save_model(
            path=str(path),
            python_model=str(package.code_path),
            artifacts={"hf": str(package.hf_dir), "card": str(package.card_path)},
            pip_requirements=list(package.requirements),
            mlflow_model=Model(artifact_path=logged.artifact_location, run_id=logged.source_run_id, model_id=logged.model_id),
        )
        _set_signature(path / "MLmodel")


def _set_signature(path: Path) -> None:
    """Writes the served model's signature (texts in, continuations out, two parameters) into its `MLmodel` file.

    mlflow 3.17 takes a typed `predict`'s signature from its type hints alone, which cannot say what `params` may hold.
    """
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

    params = ParamSchema([ParamSpec("max_new_tokens", DataType.long, 64), ParamSpec("temperature", DataType.double, 0.0)])
    model = Model.load(str(path))
    model.signature = ModelSignature(inputs=Schema([ColSpec(DataType.string)]), outputs=Schema([ColSpec(DataType.string)]), params=params)
    model.save(str(path))
