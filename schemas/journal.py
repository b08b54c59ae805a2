"""The journal of a run: numbered immutable events. Terminal, Prefect, `status` and the ledger are views of it."""

from enum import StrEnum

from schemas.frozen import Frozen, JsonObject, thaw
from schemas.preparation_config import PreparationConfig
from schemas.stage import Stage, stages_of


class EventKind(StrEnum):
    """What happened."""

    RUN_STARTED = "run started"
    RUN_RESUMED = "run resumed"
    STAGE_STARTED = "stage started"
    STAGE_REUSED = "stage reused"
    STAGE_FINISHED = "stage finished"
    STAGE_FAILED = "stage failed"
    NOTE = "note"
    INCIDENT = "incident"
    RUN_FINISHED = "run finished"
    RUN_FAILED = "run failed"
    RUN_GIVEN_UP = "run given up"


class Event(Frozen):
    """One event (`runs/{run_id}/journal/000012.json`)."""

    sequence: int
    """Counts up from 0, without gaps."""
    at: float
    """Seconds since the Unix epoch."""
    kind: EventKind
    """What happened."""
    stage: Stage | None = None
    """The stage it is about."""
    message: str = ""
    """One line for people."""
    artifact_key: str = ""
    """The artifact it is about, relative to the storage root."""
    figures: JsonObject = {}
    """Small figures: seconds, exit code, an artifact's summary."""


class RunHandle(Frozen):
    """What another process needs to work on a run: plain data, so it can be a Prefect parameter."""

    run_id: str
    """`{name}-{utc}-{4 chars}`."""
    storage_root: str
    """Absolute path or URL."""
    state_dir: str
    """Absolute path."""

    @property
    def run_name(self) -> str:
        """The readable name used everywhere: `demo-7f3a`."""
        return run_name_of(self.run_id)


def recipe_name_of(run_id: str) -> str:
    """Returns the name of the recipe of a run, from its id `{name}-{utc}-{4 chars}`."""
    return run_id.rsplit("-", 2)[0]


def run_name_of(run_id: str) -> str:
    """Returns the readable name of a run, `{name}-{4 chars}`, from its id."""
    return f"{recipe_name_of(run_id)}-{run_id.rpartition('-')[2]}"


class RunFile(Frozen):
    """`runs/{run_id}/config.json`: what the run was asked to do."""

    schema_version: int = 1
    """Version of this type."""
    run_id: str
    """The run."""
    recipe: str
    """Path of the recipe."""
    overrides: tuple[str, ...]
    """`--set` arguments."""
    from_stage: Stage | None
    """`--from`: rebuild this stage and what follows."""
    project_dir: str
    """Folder that relative paths start at. Absolute."""
    state_dir: str
    """Local state folder. Absolute."""
    config: JsonObject
    """The resolved configuration; secrets stay `${…}`."""
    created_at: float
    """Seconds since the Unix epoch."""
    created_by: str = ""
    """user@host; empty in runs of earlier versions."""
    argv: tuple[str, ...]
    """Command line of the process that created it."""

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The run's stages, in order. Asked of the one section that decides: runs of earlier versions must be shown, too."""
        section = thaw(self.config).get("corpus", {}).get("preparation", {})
        return stages_of(prepared=bool(PreparationConfig.model_validate(section).steps))
