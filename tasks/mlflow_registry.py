"""Models in MLflow: logged from code and files, registered as versions, moved by aliases."""

import json
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from tasks.mlflow_connection import MlflowConnection

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel

ROOT_HASH_TAG = "headrace.root_hash"
MODEL_ID_TAG = "headrace.model_id"
"""A version's logged model: mlflow 3.17's SQL registry takes `model_id` and does not keep it."""


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

    def content_of(self, model_name: str, version: int) -> str | None:
        """Returns the root hash that a version carries, empty when it carries none; None: there is no such version."""
        client = self._connection.client
        from mlflow.exceptions import MlflowException

        with self._connection.reaching("asked for a version"):
            try:
                tags: Mapping[str, str] = client.get_model_version(model_name, str(version)).tags
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                return None
        return tags.get(ROOT_HASH_TAG, "")

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
