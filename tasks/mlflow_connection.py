"""The way to MLflow: where it is, what it may take from the environment, and what it means that it does not answer.

Imports mlflow only when it is first used (2-4 s). Nothing fluent and no global state of it is used, only its client; autologging and
telemetry are off.
"""

import contextlib
import fcntl
import logging
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from schemas.config import RunConfig
from schemas.errors import UnreachableError
from schemas.reference import has_secret, hide_secrets, resolve_secrets, secret_names

if TYPE_CHECKING:
    from mlflow import MlflowClient

_UNREACHABLE_STATUS = (401, 403, 408, 429)
_DATABASE_REFUSES = ("psycopg.errors.ReadOnlySqlTransaction", "psycopg.errors.InsufficientPrivilege")
"""What a server answers 400 to although the request is right: its database is a standby, or its right to write is gone."""
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
_SQLITE = "sqlite:///"
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+@")


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
        return cls(uri=f"{_SQLITE}{state / 'mlflow.db'}", artifact_root=state / "mlflow-artifacts", experiment=experiment)


def without_credentials(text: str) -> str:
    """Returns a text with the credentials inside its URLs blotted out."""
    return _CREDENTIALS.sub("…@", text)


def environment(ambient: Mapping[str, str], *, own_server: bool) -> dict[str, str]:
    """Returns `ambient` with Headrace's MLflow settings in place of any others; credentials stay when the recipe names a server."""
    kept = _KEPT_SETTINGS if own_server else ()
    return {key: value for key, value in ambient.items() if not key.startswith(("MLFLOW_", "_MLFLOW_")) or key in kept} | _SETTINGS


class MlflowConnection:
    """A lazily opened client, and the experiment."""

    def __init__(self, target: TrackingTarget) -> None:
        """Args: target: where to track. Nothing is contacted yet."""
        self.target = target

    @cached_property
    def client(self) -> "MlflowClient":
        """The client; its first use imports mlflow and, on an empty SQLite file, creates the schema (about 2 s)."""
        self.prepare()
        from mlflow import MlflowClient

        uri = resolve_secrets(self.target.uri)
        with self.reaching("opened"):
            if self.target.artifact_root is not None:
                self.target.artifact_root.mkdir(parents=True, exist_ok=True)
                _create_database(Path(uri.removeprefix(_SQLITE)), artifact_root=self.target.artifact_root)
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
            if isinstance(error, MlflowException) and _is_refused(error.get_http_status_code(), str(error)):
                raise
            reason = without_credentials(hide_secrets(str(error), text=self.target.uri)).splitlines()[0]
            uri = without_credentials(self.target.uri)
            mend = "start it again or check its credentials; what it missed is forwarded later"
            cause = None if has_secret(self.target.uri) else error  # loggers write the cause too, and it may quote the URL
            raise UnreachableError(f"MLflow at {uri} could not be {what}", why=reason, mend=mend) from cause


def _is_refused(status: int, message: str) -> bool:
    """Whether an answer is about the request itself, and not about a server that cannot do its work."""
    return status < 500 and status not in _UNREACHABLE_STATUS and not any(word in message for word in _DATABASE_REFUSES)


def _create_database(database: Path, *, artifact_root: Path) -> None:
    """Creates MLflow's SQLite database, whole or not at all, unless there is one.

    MLflow makes its schema in dozens of migrations that SQLite does not undo: killed among them, it could never open the file again.
    """
    if database.exists():
        return
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    new = database.with_name(f"{database.name}.new")
    with database.with_name(f".{database.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # whoever waited finds it made
        if not database.exists():
            for left in (new, new.with_name(f"{new.name}-journal")):
                left.unlink(missing_ok=True)
            SqlAlchemyStore(f"{_SQLITE}{new}", artifact_root.as_uri()).engine.dispose()
            os.replace(new, database)
