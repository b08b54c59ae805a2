"""What people and machines see of a run: `headrace status`, the progress display, the demo's last screen."""

from enum import StrEnum

from schemas.attempt import Incident
from schemas.cost import TrainingCost
from schemas.frozen import Frozen, JsonObject
from schemas.ledger import GoodputLedger
from schemas.progress import Heartbeat, Notice
from schemas.stage import Stage


class RunState(StrEnum):
    """Where a run stands, told from its journal and from who is alive."""

    RUNNING = "running"
    """A live process controls it."""
    DETACHED = "detached"
    """Nobody controls it, but its job goes on: `headrace resume` adopts it."""
    INTERRUPTED = "interrupted"
    """Neither process nor job is alive: `headrace resume` goes on."""
    FINISHED = "finished"
    """All stages are done."""
    FAILED = "failed"
    """A stage failed; `headrace resume` tries again from what is committed."""


class StageState(StrEnum):
    """Where a stage stands in a run."""

    PENDING = "pending"
    RUNNING = "running"
    MADE = "made"
    FOUND = "found"
    FAILED = "failed"


class QueuePlace(Frozen):
    """Where a job stands with the scheduler that has it; the job itself says how far its work is."""

    launcher: str
    """Kind of the launcher: `slurm`."""
    state: str
    """`pending`, `running`, `ended`, `absent`: the scheduler knows no such job; `unknown`: it could not be asked."""
    job_id: str = ""
    """What the scheduler calls the job; empty when its answer to the submission was not kept."""
    told: str = ""
    """The scheduler's own words: `PENDING (Priority)`; empty when it was not asked, because the job speaks for itself."""
    reason: str = ""
    """Of these words, why it waits: `Priority`."""
    starts: str = ""
    """When the scheduler expects to start it, by its clock."""
    nodes: str = ""
    """Where it runs, or ran."""
    problem: str = ""
    """Why nothing is known of it."""


class ArrayRate(Frozen):
    """How far all nodes are with an array, and how fast they go on."""

    bytes_done: float
    """Input bytes that are done, finished items and parts of those in work."""
    bytes_total: int
    """Input bytes of all items."""
    files_done: float
    """Files that are done, likewise."""
    files_total: int
    """Files of all items; 0: this array counts none."""
    bytes_per_s: float
    """Over the last minutes; 0 before anything is known, and of a job that is over."""
    files_per_s: float
    """The same in files."""


class JobProgress(Frozen):
    """The newest attempt of a stage's current job."""

    job: str
    """The job's name within the stage: `scan`, `merge`, `job`."""
    attempt: int
    """0-based."""
    alive: bool
    """Whether a heartbeat is fresh and no exit record is there."""
    epoch: int
    """Which start of ranks; -1 before the first."""
    step: int
    """Least step over all ranks: what all have reached."""
    committed_step: int
    """Newest committed step; -1: none."""
    total_steps: int
    """Where training ends; 0 for items or before it is known."""
    items_done: int
    """Finished items."""
    items_total: int
    """All items; 0 for a gang."""
    array: ArrayRate | None = None
    """How fast items go; None for a gang."""
    heartbeats: tuple[Heartbeat, ...]
    """The newest of each node."""
    incidents: tuple[Incident, ...]
    """All of the attempt."""
    notices: tuple[Notice, ...] = ()
    """What it has to say beside, all nodes', oldest first; when it was asked for."""
    figures: JsonObject
    """Rank 0's latest loss, tokens per second, …"""
    eta_s: float
    """Seconds to go at the observed pace; -1: not known."""
    reduced: str = ""
    """How many of its nodes it has, since when and why: `2 of 4 nodes since attempt 3: …`; empty: all that the recipe asks for."""
    queue: QueuePlace | None = None
    """Where it stands with its scheduler, when that was asked for; None for jobs of this machine."""
    last_lines: tuple[str, ...] = ()
    """What its first rank, or first item in work, wrote last; when it was asked for."""


class StageView(Frozen):
    """One stage of a run."""

    stage: Stage
    """The stage."""
    state: StageState
    """Where it stands."""
    artifact_key: str
    """Its folder; empty before it started."""
    started_at: float
    """Seconds since the Unix epoch; 0 before it started."""
    seconds: float
    """Time taken, or running for."""
    message: str
    """The last note, or why it failed."""
    figures: JsonObject
    """The artifact's summary."""
    job: JobProgress | None = None
    """The job under way, or the last one."""
    ledger: GoodputLedger | None = None
    """Where the time went: of a training that this run makes or made, when it was asked for."""
    cost: TrainingCost | None = None
    """What it took of its devices, and what that costs: likewise."""


class RunView(Frozen):
    """One run."""

    run_id: str
    """The run."""
    run_name: str
    """Its readable name."""
    state: RunState
    """Where it stands."""
    recipe: str
    """Path of its recipe."""
    started_at: float
    """Seconds since the Unix epoch."""
    exit_code: int
    """Exit code; -1 while it is not over."""
    message: str
    """Why it failed."""
    stages: tuple[StageView, ...]
    """All stages, in order."""
    incidents: tuple[JsonObject, ...]
    """All incidents, as in the journal."""
