"""`registration.json`: which version of which registered model stands for this artifact, and what MLflow keeps of it."""

from schemas.artifact import FileEntry
from schemas.frozen import Frozen
from tasks.register.gate import Verdict

REGISTRATION_NAME = "registration.json"


class Registration(Frozen):
    """A registered version."""

    schema_version: int = 1
    """Version of this type."""
    model_name: str
    """Registered model."""
    version: int
    """Its version."""
    model_uri: str
    """`models:/NAME/VERSION`."""
    aliases: tuple[str, ...]
    """Aliases that this registration gave it."""
    root_hash: str
    """Content hash of the exported model: at most one version of a registered model has it."""
    verdict: Verdict
    """What the gate said."""
    mlflow_uri: str
    """Server or database, without credentials."""
    mlflow_run_id: str
    """The MLflow run of the pipeline run that logged the model."""
    mlflow_model_id: str
    """MLflow's own name for the logged model."""
    model_dir: str | None
    """Local folder of MLflow's copy; None when a server keeps it."""
    model_files: tuple[FileEntry, ...]
    """Every file of MLflow's copy, relative to its folder."""
