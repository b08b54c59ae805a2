"""What travels between the control side and compute: job specs, work plans, heartbeats, exit records. Only data, never code."""

from enum import StrEnum
from typing import Literal

from schemas.act import OnBadNumbers
from schemas.artifact import FileEntry
from schemas.exit_code import ExitCode
from schemas.frozen import Frozen, JsonObject
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
    threads_per_rank: int = 1
    """Compute threads of each process."""
    preload: tuple[str, ...] = ()
    """Modules that the zygote of a gang imports before it forks ranks. Importing them must not compute."""
    env: dict[str, str] = {}
    """Environment beyond the agent's allow list. Never a secret."""
    limits: RestartLimits
    """When the agent restarts ranks by itself."""
    grace_s: float = 30.0
    """Seconds between asking ranks to stop (SIGTERM) and killing them."""
    lost_after_s: float = 300.0
    """Seconds of silence after which another node counts as lost."""
    time_limit_s: float | None = None
    """Seconds that the allocation lasts, from its agent's start: ranks are asked to stop in time. None: it has no known end."""
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
    config: JsonObject
    """The resolved `RunConfig` without secrets."""
    options: JsonObject = {}
    """What this job needs beyond the config; each stage documents its own."""


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


class Claim(Frozen):
    """`attempts/NNNN/claim.json`: the job's first act. A job that loses the claim exits 0 before it starts anything."""

    key: str
    """The attempt key."""
    host: str
    """Host of the first agent."""
    pid: int
    """Its process."""
    pid_started: float
    """Its start, seconds after its machine's boot: tells a recycled pid."""
    process_table: str
    """Boot id and pid namespace: who shares them can ask about the pid."""
    submission: str
    """Which submission of the attempt it belongs to: agents of other submissions stand back."""
    claimed_at: float
    """Seconds since the Unix epoch."""


class Submitted(Frozen):
    """`attempts/NNNN/submitted.json`: what the launcher answered. Its absence proves nothing: the submitter may have died in between."""

    key: str
    """The attempt key."""
    launcher: str
    """Kind of the launcher."""
    job_id: str
    """What the launcher calls the job."""
    at: float
    """Seconds since the Unix epoch, by the submitter's clock."""


class CancelRequest(Frozen):
    """`attempts/NNNN/cancel.json`: the wish that an attempt stops gracefully."""

    reason: str
    """Why, for people."""
    at: float
    """Seconds since the Unix epoch."""


class Cause(StrEnum):
    """Why ranks ended. Failures and interruptions have separate budgets."""

    FINISHED = "finished"
    USER_CODE = "user code"
    OUT_OF_MEMORY = "out of memory"
    PREEMPTION = "preemption"
    TIME_LIMIT = "time limit"
    NODE = "node"
    HANG = "hang"
    STORAGE = "storage"
    DATA = "data"
    NUMERIC = "numeric"
    KILLED = "killed"
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"


class AttemptVerdict(Frozen):
    """`attempts/NNNN/verdict.json`: what the supervisor decided once the attempt had ended. Budgets count from the last `stop` on."""

    decision: Literal["restart", "stop"]
    """Whether another attempt follows by itself."""
    reason: str
    """Why."""
    at: float
    """Seconds since the Unix epoch."""
    cause: Cause | None = None
    """Why the launcher says that it ended, where it was asked and says so."""


class EpochRecord(Frozen):
    """`epochs/NNNNNN.json`: taken by exclusive creation before every start of ranks."""

    epoch: int
    """0-based."""
    attempt: int
    """The attempt that took it."""
    key: str
    """Its key."""
    world_size: int
    """Ranks."""
    rendezvous: str
    """host:port of rank 0's store; empty for arrays."""
    started_at: float
    """Seconds since the Unix epoch."""
    reason: str
    """Why ranks were started: `first start`, or what ended the epoch before."""


class RankPhase(StrEnum):
    """What a rank is doing. Deadlines differ by phase (`cluster.watchdog`)."""

    STARTING = "starting"
    """Imports, meets the other ranks, builds model and engine."""
    LOADING = "loading"
    """Reads the checkpoint it goes on from."""
    COMPILING = "compiling"
    """Is in its first step, in which libraries compile and allocate."""
    STEPPING = "stepping"
    """Trains; of an item: works."""
    SAVING = "saving"
    """Waits for a checkpoint."""
    VALIDATING = "validating"
    """Measures the validation loss, or samples."""
    FINISHED = "finished"
    """Has done all it had to do, and ends."""


class RankProgress(Frozen):
    """What a rank or item writes to its own local progress file, by replacing it."""

    rank: int
    """Rank, or item index."""
    pid: int
    """Its process."""
    phase: RankPhase
    """What it is doing."""
    step: int
    """Optimizer updates applied; 0 for items."""
    committed_step: int
    """Newest step whose checkpoint is committed; -1: none."""
    total_steps: int
    """Where it ends; 0: not known yet."""
    at: float
    """Seconds since the Unix epoch."""
    figures: dict[str, float] = {}
    """Latest loss, tokens per second, …; bytes done for items."""


class RankPulse(Frozen):
    """The last sign of life of a rank's training thread. It beats at every part of a step; a rank that hangs does not beat."""

    rank: int
    """Rank."""
    beats: int
    """Signs so far: a rank lives while this changes."""
    phase: RankPhase
    """What it is doing."""
    step: int
    """Index of the step that it is in."""
    position: int
    """Parts of that step that it has finished. Ranks go through the same parts: the one with the least (step, position) lags."""
    part: str
    """The part that it finished last (`data_s`, `forward_s`, …); empty at the beginning."""
    data_s: float
    """Seconds spent on reading batches in the steps before this one, since the rank's start."""
    forward_s: float
    """Seconds spent in the forward pass in the steps before this one, since the rank's start."""
    step_s: float = 0.0
    """Seconds that the step before took, by the rank's clock; 0 in the first."""
    limit_s: float = 0.0
    """Silence that its agent grants it where it is, seconds; 0: not looked at yet."""


class NodeUsage(Frozen):
    """Use of the node at one moment."""

    cpu_percent: float
    """0 … 100 × cores."""
    memory_used_bytes: int
    """Resident bytes of the job's processes."""
    memory_total_bytes: int
    """Bytes of the node."""
    read_bytes: int
    """Bytes read by the job's processes since their start."""
    written_bytes: int
    """Bytes written by the job's processes since their start."""
    gpu: tuple[JsonObject, ...] = ()
    """One entry per GPU, where there is one."""


class Heartbeat(Frozen):
    """`attempts/NNNN/heartbeats/n0000-00000012.json`: one object per node every few seconds."""

    key: str
    """The attempt key."""
    node_rank: int
    """The node."""
    host: str
    """Its name."""
    agent_pid: int
    """The agent."""
    epoch: int
    """The current epoch; -1 before the first."""
    sequence: int
    """Counts up."""
    at: float
    """Seconds since the Unix epoch."""
    ranks: tuple[RankProgress, ...]
    """The node's ranks, or the items in work."""
    pulses: tuple[RankPulse, ...] = ()
    """Signs of life of the node's ranks; none of items."""
    items_done: int = 0
    """Finished items of an array."""
    usage: NodeUsage | None = None
    """Use of the node."""


Answer = Literal["restart", "smaller micro-batch", "rewind", "stop"]
"""What is done after an incident. What changes numbers (the two in the middle) leaves an act (`schemas.act`)."""


class Incident(Frozen):
    """One end of an epoch that was not the end of the work: what happened, who, and what was done. An event of the job."""

    epoch: int
    """The epoch that ended."""
    at: float
    """Seconds since the Unix epoch."""
    cause: Cause
    """The class."""
    rank: int
    """The first rank (or item) that failed; -1 when no single one did."""
    step: int
    """Newest step that any rank had reached; -1: none."""
    committed_step: int
    """Newest committed step; -1: none."""
    exit_status: int
    """Exit status of that rank; negative: killed by that signal."""
    evidence: tuple[str, ...]
    """Lines that led to the class: signal, exit code, last lines of stderr."""
    decision: Answer
    """What was done."""
    back_to_step: int | None = None
    """Where training went on from after a rewind; None: from the newest commit."""
    reason: str
    """Why that was done."""
    recovered_after_s: float = -1.0
    """Seconds from the incident until all ranks were in a step again; -1: not (yet)."""
    detected_after_s: float = 0.0
    """Seconds without a sign of life before it was noticed: of a hang. 0 where the end itself was the sign."""


class ExitRecord(Frozen):
    """`attempts/NNNN/exit.json`: how the attempt ended."""

    key: str
    """The attempt key."""
    exit_code: ExitCode
    """The code."""
    cause: Cause
    """The class."""
    message: str
    """For people; the root cause, not its echo."""
    epoch: int
    """The last epoch."""
    incidents: tuple[Incident, ...]
    """What happened on the way."""
    ended_at: float
    """Seconds since the Unix epoch."""


class NoticeKind(StrEnum):
    """What a notice is about."""

    STRAGGLER = "straggler"
    """A rank computes so much longer than the others that they wait for it."""
    STRAGGLER_RECOVERED = "straggler recovered"
    """It keeps up again."""
    CHECKPOINT_SKIPPED = "checkpoint skipped"
    """A checkpoint came due while the one before was still being written."""
    CHECKPOINT_FAILED = "checkpoint failed"
    """A checkpoint could not be written; the ones before are intact."""
    BATCH_SKIPPED = "batch skipped"
    """The update of a batch was not applied."""


class Notice(Frozen):
    """`attempts/NNNN/notices/n0000-000012.json`: something that people want to know and that ended nothing."""

    at: float
    """Seconds since the Unix epoch."""
    kind: NoticeKind
    """What it is about."""
    epoch: int
    """The start of ranks during which it happened."""
    rank: int
    """The rank it is about; -1: all of them."""
    step: int
    """Updates made by then; -1: none."""
    message: str
    """One line for people."""
    figures: dict[str, float] = {}
    """Name → value, units in the names."""


class MetricPoint(Frozen):
    """One line of a metrics segment (`metrics/e000003-r0000-000012.jsonl`)."""

    step: int
    """Optimizer updates applied."""
    at: float
    """Seconds since the Unix epoch, by the rank's clock."""
    epoch: int
    """The epoch that measured it."""
    values: dict[str, float]
    """Name → value."""
    text: dict[str, str] = {}
    """Name → text: samples."""
    seconds: dict[str, float] = {}
    """Part → wall seconds since this epoch's first step began: counters, which together make up all of it."""
    from_step: int = 0
    """Updates that were applied when this epoch's first step began."""
