"""The recipe's `cluster` section: which machines run what, how much of them, and for how long. Where an artifact is made, never what it is."""

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Self

from pydantic import Field, model_validator

from schemas.frozen import Frozen, ReadOnly
from schemas.kubernetes_config import KubernetesConfig
from schemas.stage import Stage

_UNIT_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
SPAN = r"^\d+[smhd]$"


def span_seconds(span: str) -> float:
    """Returns `10m` in seconds."""
    return int(span[:-1]) * _UNIT_S[span[-1]]


class StageResources(Frozen):
    """What one stage gets; absent fields come from `cluster`."""

    queue: str | None = None
    """Slurm partition, or Kubernetes queue."""
    nodes: int | None = Field(default=None, ge=1)
    """Nodes."""
    min_nodes: int | None = Field(default=None, ge=1)
    """Fewest nodes of a training that has lost some: when the queue does not give `nodes` again within `restart.smaller_after`, the next attempt
    asks for fewer, and a later one for all of them. The result changes in its last bits; that is recorded and tagged. `null`: always `nodes`."""
    ranks_per_node: int | None = Field(default=None, ge=1)
    """Processes per node."""
    gpus_per_node: int | None = Field(default=None, ge=0)
    """GPUs per node."""
    memory: str | None = Field(default=None, pattern=r"^\d+[KMGT]?$")
    """Memory per node, for example `64G`."""
    time_limit: str | None = Field(default=None, pattern=SPAN)
    """Longest run time of one job, for example `24h`. Training commits before it is over, and the next job goes on."""
    python: str | None = None
    """Python interpreter on the nodes. Default: the one that runs the control side."""
    image: str | None = Field(default=None, pattern=r"^[^-\s\x00-\x1f\x7f][^\x00-\x1f\x7f]*$")
    """Container image in which the nodes' processes run: a file, or what the container runtime knows it by. Its Python must have Headrace's
    dependencies."""
    setup: tuple[str, ...] = ()
    """Shell lines of a Slurm job, run once before its agents start, which inherit what they export: `module load cuda`."""

    @property
    def time_limit_s(self) -> float | None:
        """`time_limit` in seconds; None: none is known."""
        return None if self.time_limit is None else span_seconds(self.time_limit)


class ClusterKind(StrEnum):
    """Where jobs run."""

    LOCAL = "local"
    SLURM = "slurm"
    KUBERNETES = "kubernetes"


class ContainerRuntime(StrEnum):
    """What starts containers on the nodes of a Slurm cluster."""

    PYXIS = "pyxis"
    """NVIDIA's plugin of `srun`, on top of enroot."""
    APPTAINER = "apptainer"
    SINGULARITY = "singularity"
    """Apptainer under its former name, and Sylabs' SingularityCE."""


_DIRECTIVE = re.compile(r"--[a-z][a-z0-9-]*(=[^\x00-\x1f\x7f]*)?")
_MOUNT = r"^/[^,:\x00-\x1f\x7f]*(:/[^,:\x00-\x1f\x7f]*(:r[ow])?)?$"
_NOT_THEIRS = "set by Headrace, which finds its jobs by it"
_OWN_DIRECTIVES: Mapping[str, str] = {
    **dict.fromkeys(("job-name", "comment", "ntasks", "ntasks-per-node", "array", "requeue", "no-requeue", "signal", "dependency"), _NOT_THEIRS),
    **dict.fromkeys(("output", "error", "input", "open-mode", "chdir", "export", "export-file", "wrap", "parsable", "wait"), "set by Headrace"),
    "partition": "cluster.queue",
    "nodes": "cluster.nodes",
    "mem": "cluster.memory",
    "time": "cluster.time_limit",
    "gpus-per-node": "cluster.gpus_per_node",
    "gpus": "cluster.gpus_per_node",
    "gres": "cluster.gpus_per_node for GPUs; other generic resources are not supported",
    "cpus-per-task": "cluster.ranks_per_node x cluster.threads_per_rank",
}
"""Options of Slurm's that follow from the rest of the recipe → where they come from."""
_OWN_CONTAINER_OPTIONS: Mapping[str, str] = {
    "container-image": "cluster.image",
    **dict.fromkeys(("container-mounts", "bind", "mount"), "cluster.mounts"),
    **dict.fromkeys(("container-workdir", "pwd", "cwd"), "set by Headrace"),
    "nv": "cluster.gpus_per_node",
}
"""The same for options of a container runtime's."""


class ClusterConfig(StageResources):
    """The machines. The fields of `StageResources` are the defaults of every stage; `stages` overrides them."""

    kind: ClusterKind = ClusterKind.LOCAL
    """Where jobs run."""
    stages: Annotated[Mapping[Stage, StageResources], *ReadOnly] = Field(default_factory=dict)
    """Overrides per stage."""
    extra_directives: tuple[str, ...] = ()
    """Raw options of Slurm's, one each, without the `#SBATCH`: `--account=research`. Those that Headrace sets itself are refused."""
    container: ContainerRuntime | None = None
    """What starts `image` on the nodes of a Slurm cluster: `pyxis`, `apptainer` or `singularity`, whichever the site has."""
    mounts: tuple[Annotated[str, Field(pattern=_MOUNT)], ...] = ()
    """What containers see besides storage, state, project folder and checkout: `/datasets`, `/datasets:/data` or `/datasets:/data:ro`."""
    container_options: tuple[str, ...] = ()
    """Raw options of the container runtime's, one each: `--rocm`, `--container-remap-root`. Those that Headrace sets itself are refused."""
    namespace: str | None = Field(default=None, pattern=r"^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$")
    """Kubernetes namespace. `null`: that of the context, or of the pod that submits."""
    kubernetes: KubernetesConfig = KubernetesConfig()
    """What else `kind: kubernetes` needs to know."""
    max_parallel_items: int | None = Field(default=None, ge=1)
    """Most work items of an array stage at a time per node. Default: one per core of this machine with `kind: local`, else the stage's
    `ranks_per_node`, or 1."""
    threads_per_rank: int | None = Field(default=None, ge=1)
    """Compute threads of each rank. Default: cores of this machine / ranks on it with `kind: local`, else 1."""
    cache_bytes: int = Field(default=50_000_000_000, ge=1_000_000)
    """What files of object storage may take on each node, below the state folder: what a job reads must fit. Not used where storage is a folder."""
    price_per_gpu_hour: float | None = Field(default=None, ge=0.0)
    """What an hour of one GPU costs, in whatever currency; of a rank where a job has no GPUs. `plan`, `status` and the training's record then say
    what it comes to. `null`: money is not spoken of."""
    standby: bool | None = None
    """Whether every rank has a process beside it that has imported all it needs and takes its place after a failure; otherwise ranks are forks of
    one such process, which takes less memory, and is not for devices whose libraries do not survive a fork. Default: where a job has GPUs."""
    grace_s: float = Field(default=30.0, gt=0.0)
    """Seconds between asking ranks to stop and killing them. A step and a checkpoint must fit in; a scheduler's own grace should be longer."""
    lost_after_s: float = Field(default=300.0, gt=0.0)
    """A job that the scheduler does not know counts as gone when its heartbeat is older than this."""

    @model_validator(mode="after")
    def _options_have_an_effect(self) -> Self:
        if self.extra_directives and self.kind is not ClusterKind.SLURM:
            raise ValueError(f"extra_directives has no effect with kind: {self.kind.value}; it belongs to kind: slurm")
        if self.namespace and self.kind is not ClusterKind.KUBERNETES:
            raise ValueError(f"namespace has no effect with kind: {self.kind.value}; it belongs to kind: kubernetes")
        if self.kubernetes != KubernetesConfig() and self.kind is not ClusterKind.KUBERNETES:
            raise ValueError(f"kubernetes has no effect with kind: {self.kind.value}; it belongs to kind: kubernetes")
        if self.kind is ClusterKind.KUBERNETES and (self.setup or any(resources.setup for resources in self.stages.values())):
            raise ValueError("setup has no effect with kind: kubernetes; it belongs to kind: slurm")
        return self

    @model_validator(mode="after")
    def _queues_are_somebodys(self) -> Self:
        has_queue = self.queue is not None or any(resources.queue for resources in self.stages.values())
        if self.kind is ClusterKind.KUBERNETES and has_queue and self.kubernetes.queueing is None:
            raise ValueError("queue has no effect without kubernetes.queueing: kueue or volcano; Kubernetes itself knows no queues")
        if self.kubernetes.queueing is not None and not has_queue:
            raise ValueError("kubernetes.queueing has no effect without queue")
        return self

    @model_validator(mode="after")
    def _only_training_gets_smaller(self) -> Self:
        others = [stage for stage, resources in self.stages.items() if resources.min_nodes is not None and stage is not Stage.TRAIN]
        if others:
            problems = (f"stages.{stage.value}.min_nodes has no effect: only training goes on with fewer nodes" for stage in others)
            raise ValueError("\n".join(problems))
        return self

    @model_validator(mode="after")
    def _containers_are_whole(self) -> Self:
        images = ["image"] if self.image else [f"stages.{stage.value}.image" for stage, resources in self.stages.items() if resources.image]
        if images and self.kind is ClusterKind.SLURM and self.container is None:
            raise ValueError(f"container is missing: {images[0]} needs one of {', '.join(ContainerRuntime)} with kind: slurm")
        if self.container is not None and self.kind is ClusterKind.KUBERNETES:
            raise ValueError(f"container has no effect with kind: {self.kind.value}; it belongs to kind: slurm")
        if self.container is not None and not images:
            raise ValueError("container has no effect without image")
        for name in ("mounts", "container_options"):
            if getattr(self, name) and self.container is None:
                raise ValueError(f"{name} has no effect without container")
        return self

    @model_validator(mode="after")
    def _directives_are_options_of_the_users(self) -> Self:
        for directive in self.extra_directives:
            if not _DIRECTIVE.fullmatch(directive):
                raise ValueError(f"extra_directives: {directive!r} must be one long option on one line, --name or --name=value")
            name = directive[2:].partition("=")[0]
            if (ours := _OWN_DIRECTIVES.get(name)) is not None:
                raise ValueError(f"extra_directives: {directive!r} is {ours}")
        return self

    @model_validator(mode="after")
    def _container_options_are_the_users(self) -> Self:
        for option in self.container_options:
            if not _DIRECTIVE.fullmatch(option):
                raise ValueError(f"container_options: {option!r} must be one long option on one line, --name or --name=value")
            if (ours := _OWN_CONTAINER_OPTIONS.get(option[2:].partition("=")[0])) is not None:
                raise ValueError(f"container_options: {option!r} is {ours}")
        return self

    def resources(self, stage: Stage) -> StageResources:
        """Returns what `stage` gets: its overrides over the cluster's own values."""
        own = {key: getattr(self, key) for key in StageResources.model_fields}
        override = self.stages.get(stage)
        if override is not None:
            own |= {key: value for key in StageResources.model_fields if (value := getattr(override, key)) not in (None, ())}
        return StageResources(**own)
