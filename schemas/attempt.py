"""What an attempt leaves of itself: claim, epochs, incidents, its end, and what was decided then. Only data, never code."""

from enum import StrEnum
from typing import Literal

from schemas.exit_code import ExitCode
from schemas.frozen import Frozen


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


class Take(Frozen):
    """`attempts/NNNN/takes/000012-00.json`: a node other than its owner runs an item of an array. Whoever creates it has it."""

    index: int
    """The item."""
    node_rank: int
    """The node that runs it."""
    at: float
    """Seconds since the Unix epoch."""


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
    BUDGET = "budget"
    NODE = "node"
    QUEUE = "queue"
    """It never began: the queue did not give its nodes in time. Of a gang that goes on with fewer."""
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
    item: str = ""
    """The item, for people: `item 3 (g0003)`; empty: it is a rank's or a node's."""


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
