"""Every path of a run and of an artifact, in one place, for the control side and for compute.

Keys are relative to the storage root and use `/`. Numbers are padded so that names sort as numbers do.

    {stage}/{name}-{fingerprint12}[.rK]/          an artifact
        record.json                               written last: the artifact is done
        plan.json, {step_name}-plan.json          frozen plans
        items/{step_name}-000012.json             one record per finished work item
        superseded/accepted/g0003-train.parquet   what a scan made, where repeats were removed of it
        carried/06b05ab6…                         raw files that its machines do not see, while `validate` scans
        leases/000001.…                           who writes this artifact
        attempts/{step_name}-0000/                one submission
            spec.json submission.txt submitted.json claim.json cancel.json exit.json verdict.json
            heartbeats/ incidents/ notices/ nodes/ takes/ logs/ stacks/
        epochs/000003.json                        one per start of ranks
        metrics/e000003-r0000-000012.jsonl
        checkpoints/step-00001200.e000003/        training only
        commits/step-00001200.json
        acts/0003.json                            what was done that changes numbers
        goodput/e000003.json                      the ledger of a finished training, as of its newest start
    runs/{run_id}/
        config.json journal/000000.json artifacts/{stage}.json control/… cancel/0000.json
    registry/{root_hash}.json
    pins/000002.json 000002.removed.json          what is kept because somebody says so, and until when
    sweeps/{stage}/{name}-{fingerprint12}.json    an artifact that is being removed, while it is
"""

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from schemas.artifact import RECORD_NAME
from schemas.canonical import FINGERPRINT_CHARS
from schemas.errors import UnsafeFileError
from schemas.safe_path import is_below
from schemas.stage import Stage

_FOLDER = re.compile(r"^(?P<name>.+)-(?P<fingerprint>[0-9a-f]{12})(?:\.r(?P<rebuild>\d+))?$")

SUPERSEDED = "superseded"
"""Folder of an artifact: files that were made on the way, and that a later artifact may take over. Under it they have the names that they had."""

BOOKKEEPING: tuple[str, ...] = ("items", "leases", "attempts", "epochs", "metrics", "commits", "checkpoints", "acts", "goodput", SUPERSEDED)
"""Folders of an artifact that are how it was made, not what it is; never part of its content."""

REPORT_NAME = "report/index.html"
"""The page about a corpus, within its artifact. Not part of the content hash."""


def safe_key(key: str) -> str:
    """Returns `key` when it stays below the root.

    Raises:
        UnsafeFileError: for an absolute path, `..`, a back-slash, a NUL or an empty part.
    """
    if not is_below(key):
        raise UnsafeFileError(f"refused path {key!r}", why="a stored path must stay below its folder: relative, no `..`, no empty part")
    return key


def artifact_key(stage: Stage, *, name: str, fingerprint: str, rebuild: int = 0) -> str:
    """Returns an artifact's folder: `{stage}/{name}-{fingerprint12}`, with `.rK` for the K-th rebuild (K ≥ 1)."""
    suffix = f".r{rebuild}" if rebuild else ""
    return f"{stage.value}/{name}-{fingerprint[:FINGERPRINT_CHARS]}{suffix}"


def parse_artifact_folder(folder: str) -> tuple[str, str, int] | None:
    """Returns (name, fingerprint12, rebuild) of an artifact's folder name, or None for another folder."""
    match = _FOLDER.match(folder)
    return (match["name"], match["fingerprint"], int(match["rebuild"] or 0)) if match else None


def is_named(key: str, name: str) -> bool:
    """Whether the artifact's folder `key` carries a recipe's name."""
    parsed = parse_artifact_folder(key.rpartition("/")[2])
    return parsed is not None and parsed[0] == name


@dataclass(frozen=True)
class ArtifactLayout:
    """Keys inside one artifact's folder."""

    key: str
    """The artifact's folder."""

    @property
    def record(self) -> str:
        """`record.json`."""
        return f"{self.key}/{RECORD_NAME}"

    @property
    def leases(self) -> str:
        """Folder of the artifact's lease."""
        return f"{self.key}/leases"

    @property
    def epochs(self) -> str:
        """Folder of epochs."""
        return f"{self.key}/epochs"

    @property
    def commits(self) -> str:
        """Folder of commits."""
        return f"{self.key}/commits"

    @property
    def checkpoints(self) -> str:
        """Folder of checkpoints."""
        return f"{self.key}/checkpoints"

    @property
    def metrics(self) -> str:
        """Folder of metric segments."""
        return f"{self.key}/metrics"

    @property
    def acts(self) -> str:
        """Folder of what was done that changes numbers."""
        return f"{self.key}/acts"

    @property
    def attempts(self) -> str:
        """Folder of attempts."""
        return f"{self.key}/attempts"

    @property
    def items(self) -> str:
        """Folder of items' records."""
        return f"{self.key}/items"

    def plan(self, step_name: str) -> str:
        """Returns the key of a frozen work plan."""
        return f"{self.key}/{step_name}-plan.json"

    def epoch(self, epoch: int) -> str:
        """Returns the key of an epoch."""
        return f"{self.epochs}/{epoch:06d}.json"

    def item(self, step_name: str, index: int) -> str:
        """Returns the key of an item's record."""
        return f"{self.items}/{step_name}-{index:06d}.json"

    def act(self, number: int) -> str:
        """Returns the key of an act; they count up from 0."""
        return f"{self.acts}/{number:04d}.json"

    def goodput(self, epoch: int) -> str:
        """Returns the key of the ledger as it stood when training was done, in start `epoch`."""
        return f"{self.key}/goodput/e{epoch:06d}.json"

    def commit(self, step: int) -> str:
        """Returns the key of a commit."""
        return f"{self.commits}/{step_name(step)}.json"

    def checkpoint(self, step: int, epoch: int) -> str:
        """Returns the folder of a checkpoint."""
        return f"{self.checkpoints}/{step_name(step)}.e{epoch:06d}"

    def metric_segment(self, *, epoch: int, rank: int, sequence: int) -> str:
        """Returns the key of a metrics segment."""
        return f"{self.metrics}/e{epoch:06d}-r{rank:04d}-{sequence:06d}.jsonl"

    def attempt(self, job: str, attempt: int) -> "AttemptLayout":
        """Returns the keys of one attempt; `job` is the stage's step name, or `job`."""
        return AttemptLayout(f"{self.attempts}/{job or 'job'}-{attempt:04d}")


@dataclass(frozen=True)
class AttemptLayout:
    """Keys inside one attempt's folder."""

    key: str
    """The attempt's folder."""

    @property
    def spec(self) -> str:
        """The job spec: the intent to submit."""
        return f"{self.key}/spec.json"

    @property
    def claim(self) -> str:
        """The claim."""
        return f"{self.key}/claim.json"

    @property
    def submission(self) -> str:
        """What was submitted, as text: the batch script, the command lines."""
        return f"{self.key}/submission.txt"

    @property
    def submitted(self) -> str:
        """What the launcher answered."""
        return f"{self.key}/submitted.json"

    @property
    def cancel(self) -> str:
        """The wish that the attempt stops gracefully; the agent looks for it."""
        return f"{self.key}/cancel.json"

    @property
    def exit(self) -> str:
        """The exit record."""
        return f"{self.key}/exit.json"

    @property
    def verdict(self) -> str:
        """What the supervisor decided after the attempt's end."""
        return f"{self.key}/verdict.json"

    @property
    def nodes(self) -> str:
        """Folder of what nodes tell each other: how an epoch ended there."""
        return f"{self.key}/nodes"

    def node_report(self, *, epoch: int, node_rank: int) -> str:
        """Returns the key of a node's account of how an epoch ended on it."""
        return f"{self.nodes}/e{epoch:06d}-n{node_rank:04d}.json"

    def present(self, node_rank: int, *, submission: str) -> str:
        """Returns the key by which a node of a submission says that it is there (`cluster.agent.gathering`)."""
        return f"{self.nodes}/present-n{node_rank:04d}-{re.sub(r'[^A-Za-z0-9-]', '-', submission)}.json"

    @property
    def offers(self) -> str:
        """Folder of the checkpoints that node 0 wants in object storage (`cluster.agent.offers`)."""
        return f"{self.key}/relay/offers"

    def answer(self, offer: str, *, node_rank: int) -> str:
        """Returns the key of what a node has sent of an offered checkpoint; `offer`: its name."""
        return f"{self.key}/relay/answers/n{node_rank:04d}-{offer}"

    def start(self, epoch: int) -> str:
        """Returns the key by which node 0 says which checkpoints an epoch's ranks find, on object storage."""
        return f"{self.key}/relay/starts/e{epoch:06d}.json"

    @property
    def heartbeats(self) -> str:
        """Folder of heartbeats."""
        return f"{self.key}/heartbeats"

    @property
    def incidents(self) -> str:
        """Folder of incidents, in order."""
        return f"{self.key}/incidents"

    @property
    def notices(self) -> str:
        """Folder of notices."""
        return f"{self.key}/notices"

    @property
    def stacks(self) -> str:
        """Folder of what ranks were doing when they were found hanging."""
        return f"{self.key}/stacks"

    @property
    def logs(self) -> str:
        """Folder of log segments."""
        return f"{self.key}/logs"

    def node_log(self, name: str, *, node_rank: int) -> str:
        """Returns the key of the log of a node's own process (`agent`, `zygote`)."""
        return f"{self.logs}/{name}-n{node_rank:04d}.log"

    def heartbeat(self, node_rank: int, sequence: int) -> str:
        """Returns the key of a heartbeat."""
        return f"{self.heartbeats}/n{node_rank:04d}-{sequence:08d}.json"

    def incident(self, number: int) -> str:
        """Returns the key of an incident."""
        return f"{self.incidents}/{number:04d}.json"

    def notice(self, *, node_rank: int, number: int) -> str:
        """Returns the key of a notice; each node counts its own."""
        return f"{self.notices}/n{node_rank:04d}-{number:06d}.json"

    def stack(self, *, epoch: int, rank: int) -> str:
        """Returns the key of a rank's stacks."""
        return f"{self.stacks}/e{epoch:06d}-r{rank:06d}.txt"

    @property
    def takes(self) -> str:
        """Folder of what nodes run of each other's shares of an array."""
        return f"{self.key}/takes"

    def take(self, index: int, *, number: int) -> str:
        """Returns the key of the `number`-th time (from 0) that a node other than its owner runs an item."""
        return f"{self.takes}/{index:06d}-{number:02d}.json"

    def log_segment(self, *, epoch: int, rank: int, sequence: int) -> str:
        """Returns the key of a piece of a rank's (or item's) output."""
        return f"{self.logs}/e{epoch:06d}-r{rank:06d}-{sequence:06d}.log"


@dataclass(frozen=True)
class RunLayout:
    """Keys inside one run's folder."""

    run_id: str
    """The run."""

    @property
    def key(self) -> str:
        """The run's folder."""
        return f"runs/{self.run_id}"

    @property
    def config(self) -> str:
        """The resolved config, without secrets."""
        return f"{self.key}/config.json"

    @property
    def journal(self) -> str:
        """Folder of the journal: numbered immutable events."""
        return f"{self.key}/journal"

    @property
    def control(self) -> str:
        """Folder of the control lease."""
        return f"{self.key}/control"

    @property
    def cancel_wishes(self) -> str:
        """Folder of the wishes that the run stops; its control process looks there."""
        return f"{self.key}/cancel"

    def cancel_wish(self, number: int) -> str:
        """Returns the key of a wish that the run stops; they count up from 0."""
        return f"{self.cancel_wishes}/{number:04d}.json"

    def artifact(self, stage: Stage) -> str:
        """Returns the key of the pointer to a stage's artifact."""
        return f"{self.key}/artifacts/{stage.value}.json"


def flow_run_link(flow_run_id: object) -> str:
    """Returns the key of what links a Prefect flow run to its run."""
    return f"flow-runs/{safe_key(str(flow_run_id))}.json"


PINS = "pins"
"""Folder of pins."""
SWEEPS = "sweeps"
"""Folder of what is being removed."""


def pin_key(number: int) -> str:
    """Returns the key of a pin; they count up from 0."""
    return f"{PINS}/{number:06d}.json"


def pin_removal_key(number: int) -> str:
    """Returns the key of the object that ends a pin."""
    return f"{PINS}/{number:06d}.removed.json"


def sweep_key(artifact: str) -> str:
    """Returns the key of the mark of an artifact that is being removed: there from before its record goes until after its last file went."""
    return f"{SWEEPS}/{safe_key(artifact)}.json"


def registry_claim(root_hash: str) -> str:
    """Returns the key of the claim that makes a registration unique."""
    return f"registry/{root_hash}.json"


def step_name(step: int) -> str:
    """Returns `step-00001200`."""
    return f"step-{step:08d}"


def is_within(child: PurePosixPath, parent: PurePosixPath) -> bool:
    """Whether `child` is `parent` or lies below it, by name alone."""
    return child == parent or parent in child.parents
