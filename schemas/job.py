"""What travels from the control side to compute: job specs, work plans, and the records of items. Only data, never code."""

from enum import StrEnum

from schemas.act import OnBadNumbers
from schemas.artifact import FileEntry
from schemas.frozen import Frozen, JsonObject, added_later
from schemas.gang_shape import GangShape
from schemas.stage import Stage


class JobKind(StrEnum):
    """How the processes of a job relate."""

    GANG = "gang"
    """All ranks start, work and restart together."""
    ARRAY = "array"
    """Independent work items."""


class RestartLimits(Frozen):
    """The part of the restart policy that an agent needs. Same meaning as in `RestartConfig`."""

    max_failures: int
    """Failures answered by a restart."""
    max_interruptions: int
    """Interruptions answered by a restart."""
    max_attempts_without_progress: int
    """Starts in a row without a new commit before giving up."""
    backoff_s: float
    """Pause before the restart after a failure, doubled each time up to a minute."""
    on_bad_numbers: OnBadNumbers = OnBadNumbers.STOP
    """What follows when loss or gradients cannot be right."""
    rewind_commits: int = 1
    """How many commits a rewind goes back: 1 is the newest."""
    micro_batch_sizes: tuple[int, ...] = ()
    """What a start after running out of memory may fall back to, descending; empty: it stops."""


class ElasticLimits(Frozen):
    """Which shapes the attempts of a gang may have, and when they change. Same meaning as in `RestartConfig`."""

    shapes: tuple[GangShape, ...]
    """Largest first: what is asked for while the queue gives it."""
    smaller_after_s: float
    """Wait in the queue after which an attempt is withdrawn, and the next asks for fewer nodes. Seconds."""
    grow_after_s: float | None = None
    """How long an attempt with fewer nodes works before it makes room for one with all of them. Seconds. None: until it ends by itself."""


class FileRead(Frozen):
    """A file of storage that processes of a job open, and that must be on their node by then."""

    key: str
    """The artifact's folder, relative to the storage root: an input, the artifact in the making, or another."""
    file: FileEntry
    """The file, relative to that folder."""
    item: int | None = None
    """The item that opens it; None: every process of the job."""


class JobSpec(Frozen):
    """One attempt of one stage, as submitted (`attempts/NNNN/spec.json`). Writing it is the intent to submit."""

    schema_version: int = 1
    """Version of this type."""
    run_id: str
    """The run that submits."""
    stage: Stage
    """The stage."""
    step_name: str = ""
    """Which of the stage's jobs, when it has several (`scan`, `merge`). Part of the attempts' folder."""
    artifact_key: str
    """The artifact's folder, relative to the storage root."""
    attempt: int
    """0-based, per artifact and step name."""
    key: str
    """The attempt key: unique, ends the job's name, found again on adoption."""
    kind: JobKind
    """Gang or array."""
    argv: tuple[str, ...]
    """The program after the interpreter: `-m tasks.train.job`. The agent adds `--spec FILE [--index I]`."""
    num_nodes: int = 1
    """Agents."""
    ranks_per_node: int = 1
    """Ranks of a gang, or most items of an array at a time, per node."""
    num_items: int = 0
    """Items of an array; 0 for a gang."""
    gpus_per_node: int = 0
    """GPUs that it holds on each node; 0: none, and what it uses is counted by ranks."""
    threads_per_rank: int = 1
    """Compute threads of each process."""
    preload: tuple[str, ...] = ()
    """Modules that the zygote imports before it forks ranks or items. Importing them must not compute."""
    loader: str = ""
    """`module:function` that the zygote of an array calls with the file of a task spec, before it forks items; empty: none. It must neither
    compute nor start a thread; what it raises, items find out by themselves."""
    standby: bool = False
    """Whether ranks are processes that waited for it (`cluster.agent.standby`), and not forks."""
    env: dict[str, str] = {}
    """Environment beyond the agent's allow list. Never a secret."""
    limits: RestartLimits
    """When the agent restarts ranks by itself."""
    grace_s: float = 30.0
    """Seconds between asking ranks to stop (SIGTERM) and killing them."""
    measured_stop_s: float = 0.0
    """How long a graceful stop may take by what earlier attempts measured; 0: nothing is known. A launcher that can gives as much, if it is longer
    than the grace. Seconds."""
    lost_after_s: float = 300.0
    """Seconds of silence after which another node counts as lost."""
    time_limit_s: float | None = None
    """Seconds that the allocation lasts, from its agent's start: ranks are asked to stop in time. None: it has no known end."""
    device_s_allowed: float | None = None
    """Device-seconds (see `devices`) that all attempts together may use: ranks are asked to stop in time. None: no budget."""
    elastic: ElasticLimits | None = None
    """Whether attempts may have fewer nodes; None: all have as many."""
    withdraw_after_s: float | None = None
    """Wait in the queue after which this attempt is withdrawn for a smaller one, seconds. None: it waits as long as it takes."""
    smaller_because: str = ""
    """Why this attempt has fewer nodes than are wanted, for people; empty: it has not."""
    excluded_nodes: tuple[str, ...] = ()
    """Nodes that are better avoided (`cluster.strikes`): a wish, which a launcher that cannot grant it leaves out."""
    intended_at: float = 0.0
    """When this was written, seconds since the Unix epoch."""
    storage_root: str
    """Absolute path or URL of the storage root."""
    scratch_dir: str
    """Node-local folder for this attempt's logs and sockets. Absolute."""
    project_dir: str
    """Working directory of ranks and of relative paths in the recipe. Absolute."""
    inputs: dict[Stage, str]
    """Folders of the input artifacts, relative to the storage root."""
    reads: tuple[FileRead, ...] = ()
    """What its processes open of storage, where agents bring it; an input of which no file is named is brought whole."""
    cache_bytes: int = 0
    """What such files may take on each node."""
    config: JsonObject
    """The resolved `RunConfig` without secrets."""
    options: JsonObject = {}
    """What this job needs beyond the config; each stage documents its own."""

    @property
    def devices(self) -> int:
        """What it holds and is charged for while it runs: its GPUs, or where it has none its ranks."""
        return self.num_nodes * (self.gpus_per_node or self.ranks_per_node)


MTBF_PRIOR_S = 1800.0
"""Expected mean time between failures of a job of which nothing has been seen yet, seconds."""


class TaskSpec(Frozen):
    """What one start of a job's program reads (`--spec FILE`): the job, and where things lie on this node."""

    job: JobSpec
    """The job."""
    epoch: int
    """Which start of ranks this is."""
    input_dirs: dict[Stage, str]
    """Local folders of the input artifacts; verified copies or the storage itself."""
    output_dir: str
    """Local folder of the artifact."""
    scratch_dir: str
    """Node-local folder of this epoch."""
    mtbf_s: float = MTBF_PRIOR_S
    """Mean time between failures that is to be expected, from what the artifact has seen (`cluster.failure_rate`). Seconds."""


class WorkItem(Frozen):
    """One independent piece of a sharded stage."""

    index: int
    """0-based; `--index`."""
    weight_bytes: int
    """Input bytes, for progress and order of starting."""
    label: str
    """For people: a group, a file."""
    num_files: int = added_later(0)
    """Files that it reads, for people; 0: they are not counted."""


class WorkPlan(Frozen):
    """The frozen list of a sharded stage's items (`{step_name}-plan.json`). A resume that disagrees refuses."""

    schema_version: int = 1
    """Version of this type."""
    stage: Stage
    """The stage."""
    step_name: str
    """Which of the stage's jobs."""
    items: tuple[WorkItem, ...]
    """In order of `index`."""


class ItemRecord(Frozen):
    """What a finished item leaves, last (`items/{step_name}-000012.json`)."""

    index: int
    """The item."""
    epoch: int
    """The start that made it."""
    files: tuple[FileEntry, ...]
    """Files made, relative to the artifact's folder."""
    output: JsonObject
    """What the stage needs to put the manifest together; each stage documents its own."""
