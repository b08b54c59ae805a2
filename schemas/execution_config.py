"""The execution sections of the configuration: where and how things are made. They never enter a fingerprint."""

from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator, model_validator

from schemas.act import OnBadNumbers, OnOutOfMemory
from schemas.cluster_config import SPAN, span_seconds
from schemas.frozen import Frozen


class StorageConfig(Frozen):
    """Shared storage: artifacts and runs."""

    root: str = Field(default=".headrace/data", min_length=1)
    """Path, or `s3://bucket/prefix`. A relative path starts at the recipe's project folder."""


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
    smaller_after: str = Field(default="10m", pattern=SPAN)
    """How long a training that has begun waits in the queue for its nodes before it asks for fewer, down to `cluster.min_nodes`."""
    grow_after: str | None = Field(default=None, pattern=SPAN)
    """How long an attempt with fewer nodes trains before it commits, ends, and asks for all of them again. `null`: until it ends by itself."""

    @property
    def smaller_after_s(self) -> float:
        """`smaller_after` in seconds."""
        return span_seconds(self.smaller_after)

    @property
    def grow_after_s(self) -> float | None:
        """`grow_after` in seconds; None: never for that alone."""
        return None if self.grow_after is None else span_seconds(self.grow_after)

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
