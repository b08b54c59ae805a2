"""What ranks and nodes tell of themselves while they work: signs of life, progress, notices, metrics. Only data, never code."""

from enum import StrEnum

from schemas.frozen import Frozen, JsonObject


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


class ItemInWork(Frozen):
    """An item of an array that a node works on."""

    index: int
    """The item."""
    running_s: float
    """Since its process was started, as its agent saw it; 0: it waits to be started again. Seconds."""
    done_bytes: int
    """How much of its weight it has told to be done; 0: nothing yet."""


class ArrayProgress(Frozen):
    """How far a node is with an array."""

    bytes_done: float
    """Weight of this node's share that is done: finished items, whoever ran them, and what those in work told."""
    files_done: float
    """Files of it, as far as the plan counts them."""
    bytes_per_s: float
    """What its processes got through in the last minutes, whoever's share it is of."""
    files_per_s: float
    """The same, in files."""
    in_work: tuple[ItemInWork, ...]
    """Items that have been begun here and have no record yet."""


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
    array: ArrayProgress | None = None
    """How far it is with an array; None of a gang, and before the first look."""
    usage: NodeUsage | None = None
    """Use of the node."""


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
    CHECKPOINT_DAMAGED = "checkpoint damaged"
    """A committed checkpoint is not what was committed; training goes on from an earlier one."""
    BATCH_SKIPPED = "batch skipped"
    """The update of a batch was not applied."""
    ITEM_TRAILS = "item trails"
    """An item of an array takes far longer than the others."""
    ITEM_TAKEN = "item taken"
    """A node runs an item of another node's share, which nobody has begun or which trails; or its run of one ends because another was faster."""


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
