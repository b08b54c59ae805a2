"""The execution sections of the configuration: where and how things are made. They never enter a fingerprint."""

import re
from collections.abc import Mapping
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator, model_validator

from schemas.act import OnBadNumbers, OnOutOfMemory
from schemas.frozen import Frozen, ReadOnly
from schemas.stage import Stage


class StorageConfig(Frozen):
    """Shared storage: artifacts and runs."""

    root: str = Field(default=".headrace/data", min_length=1)
    """Path, or `s3://bucket/prefix`. A relative path starts at the recipe's project folder."""


_UNIT_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SPAN = r"^\d+[smhd]$"


def _seconds(span: str) -> float:
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
    time_limit: str | None = Field(default=None, pattern=_SPAN)
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
        return None if self.time_limit is None else _seconds(self.time_limit)


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
    """Kubernetes namespace."""
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


def _number_or_auto(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    """Says in one sentence what two kinds of values there are; pydantic complains once for each."""
    try:
        return validate(value)
    except ValidationError as error:
        nearest = "auto" if isinstance(value, str) else 1
        raise ValueError(f"must be a whole number of at least 1, or auto; nearest: {nearest}") from error


class CheckpointConfig(Frozen):
    """When training state is saved, and what is kept."""

    every_steps: Annotated[Annotated[int, Field(ge=1)] | Literal["auto"], WrapValidator(_number_or_auto)] = 500
    """Steps between checkpoints. `auto`: as often as it pays, from what one costs and how often failures come. The last step is always saved."""
    background: bool = True
    """Whether training goes on while a checkpoint is written; one that comes due meanwhile is skipped, and counted. `false`: training waits."""
    local_dir: str | None = None
    """Folder on a disk of each node, absolute, for checkpoints between those of shared storage: a restart that comes back to the same nodes with as
    many ranks goes on from the newest of either. `null`: none."""
    local_every_steps: int | None = Field(default=None, ge=1)
    """Steps between checkpoints in `local_dir`."""
    keep_last: int = Field(default=3, ge=1)
    """Newest checkpoints that are kept. The last verified one is never deleted."""
    check_weights_every_steps: int | None = Field(default=100, ge=1)
    """Every so many updates the weights are hashed right after the update and again before they are used: what changed in between changed by
    itself, and the ranks start again from the newest checkpoint. `null`: only checkpoints are checked."""
    keep_every_steps: int | None = Field(default=None, ge=1)
    """Checkpoints at multiples of this are kept for ever. `null`: none."""

    @model_validator(mode="after")
    def _local_tier_is_whole(self) -> Self:
        if (self.local_dir is None) != (self.local_every_steps is None):
            missing = "local_every_steps" if self.local_every_steps is None else "local_dir"
            raise ValueError(f"{missing} is missing: local_dir and local_every_steps belong together")
        if self.local_dir is not None and not PurePosixPath(self.local_dir).is_absolute():
            raise ValueError(f"local_dir = {self.local_dir!r} must be absolute: every node has its own")
        return self


class RestartConfig(Frozen):
    """How often a failed stage is started again."""

    max_failures: int = Field(default=3, ge=0)
    """Failures (crashes of ranks, errors) that are answered by a restart."""
    max_interruptions: int = Field(default=100, ge=0)
    """Interruptions (preemption, lost nodes, killed processes) that are answered by a restart."""
    max_attempts_without_progress: int = Field(default=3, ge=1)
    """Stop when this many starts in a row commit nothing new."""
    backoff_s: float = Field(default=0.0, ge=0.0)
    """Pause before a restart after a failure, doubled each time up to a minute. Interruptions restart at once."""
    on_bad_numbers: OnBadNumbers = OnBadNumbers.STOP
    """When loss or gradients are not finite, or the loss jumps: `stop`; `skip` that update; or `rewind` and leave out the batches since. The
    latter two change the result: they are recorded with it and tagged on the model. An fp16 overflow is no such case: it is always skipped."""
    rewind_commits: int = Field(default=1, ge=1)
    """How many commits `on_bad_numbers: rewind` goes back: 1 is the newest. At most `checkpoint.keep_last`."""
    loss_spike_factor: float | None = Field(default=None, gt=1.0)
    """A loss above this many times the median of the last 32 is a jump, judged from the 16th update on. `null`: only numbers that are not finite."""
    on_out_of_memory: OnOutOfMemory = OnOutOfMemory.STOP
    """When memory runs out in training: `stop`, or go on with a `smaller_micro_batch` at the same global batch. The latter changes the result in its
    last bits; it is recorded and tagged like the above."""
    smaller_after: str = Field(default="10m", pattern=_SPAN)
    """How long a training that has begun waits in the queue for its nodes before it asks for fewer, down to `cluster.min_nodes`."""
    grow_after: str | None = Field(default=None, pattern=_SPAN)
    """How long an attempt with fewer nodes trains before it commits, ends, and asks for all of them again. `null`: until it ends by itself."""

    @property
    def smaller_after_s(self) -> float:
        """`smaller_after` in seconds."""
        return _seconds(self.smaller_after)

    @property
    def grow_after_s(self) -> float | None:
        """`grow_after` in seconds; None: never for that alone."""
        return None if self.grow_after is None else _seconds(self.grow_after)

    @model_validator(mode="after")
    def _options_have_an_effect(self) -> Self:
        if self.rewind_commits != 1 and self.on_bad_numbers is not OnBadNumbers.REWIND:
            raise ValueError(f"rewind_commits = {self.rewind_commits} has no effect with on_bad_numbers: {self.on_bad_numbers.value}")
        return self


class BudgetConfig(Frozen):
    """What a training may use."""

    gpu_hours: float | None = Field(default=None, gt=0.0)
    """GPU-hours that all jobs of one training may take together; without GPUs, a rank counts as one. Before they are used up training commits and
    stops (exit code 5), and goes on under a larger budget. A scheduled run whose plan exceeds it is only proposed. `null`: no limit."""

    @property
    def seconds(self) -> float | None:
        """The same in device-seconds."""
        return None if self.gpu_hours is None else 3600.0 * self.gpu_hours


class TrackingConfig(Frozen):
    """What is measured along the way, and where it is shown."""

    mlflow_uri: str | None = None
    """MLflow tracking server or database. `null`: `sqlite` in the state folder."""
    experiment: str | None = None
    """MLflow experiment. Default: the recipe's name."""
    log_every_steps: int = Field(default=1, ge=1)
    """Steps between metric points."""
    validate_every_steps: int = Field(default=100, ge=1)
    """Steps between validation losses and samples. The last step always gets one."""
    validation_sequences: int = Field(default=256, ge=1)
    """Most sequences of the validation split per validation."""
    sample_prompt: str = ""
    """Prompt that is continued at each validation. Empty: starts from the end-of-text token."""
    sample_tokens: int = Field(default=40, ge=0)
    """Tokens of the sample at each validation. 0: none."""
    forward_every_s: float = Field(default=2.0, gt=0.0)
    """Seconds between two hand-overs of metrics to MLflow."""
