"""How the processes of a job come to the files that they open, and how what they make gets to where all can see it.

Compute opens local paths only. On a folder, local or shared, those are the storage's own. On object storage they are a mirror's: the agent, the only
process of the node with credentials, brings what the job reads, verified, and uploads what items leave, their records last.
"""

from pathlib import Path
from typing import Protocol

from cluster.agent.offers import Offers
from cluster.agent.peers import Peers
from cluster.agent.relay import CheckpointRelay
from cluster.agent.relay_follower import CheckpointFollower
from cluster.layout import ArtifactLayout, AttemptLayout
from cluster.mirror import Mirror, cache_folder
from cluster.patience import PatientStorage
from cluster.s3_storage import S3Storage
from cluster.storage import AlreadyExistsError, Storage
from schemas.errors import ConfigError, Problem
from schemas.job import ItemRecord, JobKind, JobSpec
from schemas.stage import Stage


class Staging(Protocol):
    """See the module. From the agent's main thread, but `publish_item`, which any may call."""

    def inputs(self) -> dict[Stage, Path]:
        """Returns the local folders of the inputs, in which everything is that all processes of the job read."""

    def output(self) -> Path:
        """Returns the local folder of the artifact in the making, ready for the next start of processes."""

    def bring_item(self, index: int) -> None:
        """Brings what one item reads besides."""

    def publish_item(self, index: int) -> None:
        """Makes what an item left, if it left a record, visible to all."""

    def settle(self) -> None:
        """Makes what ranks left visible to all. No process runs any more."""

    def close(self) -> None:
        """Gives back what is local."""


def staging_of(storage: Storage, *, spec: JobSpec, patient: PatientStorage, attempt: AttemptLayout, node_rank: int) -> Staging:
    """Returns how a job's processes come to their files.

    Args:
        storage: shared storage.
        spec: the job.
        patient: the same storage, asked again for as long as the job may wait.
        attempt: the attempt.
        node_rank: this node.
    """
    if isinstance(storage, S3Storage):
        folder = cache_folder(Path(spec.scratch_dir).parent)
        mirror = Mirror.open(storage, folder=folder, most_bytes=spec.cache_bytes, patiently=patient.patiently)
        relay = None
        if spec.kind is JobKind.GANG:
            peers = Peers(storage=patient, artifact=ArtifactLayout(spec.artifact_key), attempt=attempt, spec=spec, node_rank=node_rank)
            relay = _relay(mirror, patient=patient, offers=Offers(patient, attempt, peers))
        return Mirrored(mirror, spec=spec, relay=relay)
    return InPlace(storage, spec=spec)


def _relay(mirror: Mirror, *, patient: PatientStorage, offers: Offers) -> CheckpointRelay | CheckpointFollower:
    spec = offers.peers.spec
    layout, spare = ArtifactLayout(spec.artifact_key), spec.limits.rewind_commits
    if offers.peers.node_rank == 0:
        return CheckpointRelay(mirror, storage=patient, layout=layout, key=spec.key, spare_commits=spare, offers=offers)
    return CheckpointFollower(mirror, storage=patient, layout=layout, spare_commits=spare, offers=offers)


class InPlace:
    """Storage that compute opens itself; see `Staging`."""

    def __init__(self, storage: Storage, *, spec: JobSpec) -> None:
        """Args: storage: shared storage. spec: the job."""
        self._storage, self._spec = storage, spec

    def inputs(self) -> dict[Stage, Path]:
        """See `Staging`."""
        return {stage: self._local(key) for stage, key in self._spec.inputs.items()}

    def output(self) -> Path:
        """See `Staging`."""
        return self._local(self._spec.artifact_key)

    def bring_item(self, index: int) -> None:
        """See `Staging`: it is there."""

    def publish_item(self, index: int) -> None:
        """See `Staging`: it is there."""

    def settle(self) -> None:
        """See `Staging`: it is there."""

    def close(self) -> None:
        """See `Staging`: nothing was copied."""

    def _local(self, key: str) -> Path:
        """Returns where an artifact lies. Raises ConfigError for a storage that compute cannot work on."""
        path = self._storage.local_path(key)
        if path is None:
            problem = Problem("storage.root", repr(self._storage.url), "compute works on folders, mounted paths and s3://")
            raise ConfigError((problem,), source="the job spec")
        return path


class Mirrored:
    """Object storage; see `Staging`."""

    def __init__(self, mirror: Mirror, *, spec: JobSpec, relay: CheckpointRelay | CheckpointFollower | None) -> None:
        """Args: mirror: of this node. spec: the job. relay: of a gang: carries its checkpoints."""
        self._mirror, self._spec, self._relay = mirror, spec, relay
        self._layout = ArtifactLayout(spec.artifact_key)
        self._inputs: dict[Stage, Path] | None = None

    def inputs(self) -> dict[Stage, Path]:
        """See `Staging`. An input of which the job names no file is brought whole."""
        if self._inputs is None:
            named = {read.key for read in self._spec.reads}
            for key in self._spec.inputs.values():
                if key not in named:
                    self._mirror.bring_artifact(key)
            self._bring(None)
            self._inputs = {stage: self._mirror.folder(key) for stage, key in self._spec.inputs.items()}
        return self._inputs

    def output(self) -> Path:
        """See `Staging`."""
        if self._relay is not None:
            self._relay.begin()
        return self._mirror.folder(self._layout.key)

    def bring_item(self, index: int) -> None:
        """See `Staging`."""
        self._bring(index)

    def publish_item(self, index: int) -> None:
        """See `Staging`: files first, then the record that names them, so that nothing names what is not there."""
        name = self._layout.item(self._spec.step_name, index)
        path = self._mirror.root / name
        if not path.exists():
            return
        data = path.read_bytes()
        record = ItemRecord.model_validate_json(data)
        try:
            self._mirror.send(self._layout.key, record.files)
        except AlreadyExistsError:
            if self._mirror.exists(name):
                raise
            self._replace(record)
        self._mirror.create(name, data)

    def settle(self) -> None:
        """See `Staging`."""
        if self._relay is not None:
            self._relay.settle()

    def close(self) -> None:
        """See `Staging`."""
        self._mirror.close()

    def _replace(self, record: ItemRecord) -> None:
        """Uploads what an item left in place of other bytes of the same names, which a start that was killed left and no record names."""
        for entry in record.files:
            self._mirror.send_anew(self._layout.key, entry)

    def _bring(self, item: int | None) -> None:
        for key in dict.fromkeys(read.key for read in self._spec.reads):
            self._mirror.bring(key, [read.file for read in self._spec.reads if read.key == key and read.item == item])
