"""From a recipe to the request for one of a stage's jobs. PURE: `run` submits what `plan` shows because both ask here."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from schemas.act import OnOutOfMemory
from schemas.cluster_config import ClusterKind
from schemas.config import RunConfig
from schemas.job import ElasticLimits, FileRead, JobKind, JobSpec, RestartLimits
from schemas.stage import Stage


@dataclass(frozen=True)
class JobPlace:
    """Whom a job works for, and where its things lie."""

    run_id: str
    """The run that submits."""
    stage: Stage
    """The stage."""
    artifact_key: str
    """The artifact in the making."""
    storage_root: str
    """Absolute path or URL."""
    scratch_dir: str
    """Folder of all attempts' logs and sockets. Absolute."""
    project_dir: str
    """Absolute."""
    inputs: Mapping[Stage, str] = field(default_factory=dict)
    """Folders of the input artifacts."""
    reads: tuple[FileRead, ...] = ()
    """What must be brought to the nodes."""


@dataclass(frozen=True)
class JobShape:
    """How many processes a job has, and on how many nodes."""

    kind: JobKind
    num_nodes: int
    ranks_per_node: int
    num_items: int = 0
    step_name: str = ""


def scratch_of(state_dir: Path) -> Path:
    """Returns the folder below which every attempt has its own scratch folder."""
    return state_dir / "scratch"


def cores_here() -> int:
    """Returns the cores of this machine: what shapes jobs that run on it."""
    return os.cpu_count() or 1


def array_shape(config: RunConfig, stage: Stage, *, step_name: str, num_items: int | None, cores: int) -> JobShape:
    """Returns the shape of a job that works through items: never more nodes or processes than there are items.

    Args:
        num_items: None when nobody has counted them yet: as many as can run at a time.
        cores: of this machine. Elsewhere the recipe must say what a node can take: `max_parallel_items`, or `ranks_per_node`.
    """
    cluster, resources = config.cluster, config.cluster.resources(stage)
    at_a_time = cores if cluster.kind is ClusterKind.LOCAL else resources.ranks_per_node or 1
    per_node, nodes = cluster.max_parallel_items or at_a_time, resources.nodes or 1
    items = per_node * nodes if num_items is None else max(1, num_items)
    return JobShape(JobKind.ARRAY, num_nodes=min(nodes, items), ranks_per_node=min(per_node, items), num_items=items, step_name=step_name)


def job_request(
    config: RunConfig,
    *,
    place: JobPlace,
    shape: JobShape,
    module: str,
    cores: int,
    preload: tuple[str, ...] = (),
    loader: str = "",
    options: Mapping[str, Any] | None = None,
) -> JobSpec:
    """Returns the request; an attempt's number and key, and its own scratch folder, are filled in when it is submitted.

    Args:
        module: the program.
        cores: of this machine: they are shared out among the ranks that run on it.
        preload: modules that the zygote imports.
        loader: `module:function` that loads what all items need.
        options: what the program needs beyond the config.
    """
    resources = config.cluster.resources(place.stage)
    return JobSpec(
        run_id=place.run_id,
        stage=place.stage,
        step_name=shape.step_name,
        artifact_key=place.artifact_key,
        attempt=0,
        key="",
        kind=shape.kind,
        argv=("-m", module),
        num_nodes=shape.num_nodes,
        ranks_per_node=shape.ranks_per_node,
        num_items=shape.num_items,
        gpus_per_node=resources.gpus_per_node or 0,
        threads_per_rank=config.cluster.threads_per_rank or _threads(config, ranks_per_node=shape.ranks_per_node, cores=cores),
        preload=preload,
        loader=loader,
        standby=shape.kind is JobKind.GANG and (config.cluster.standby if config.cluster.standby is not None else bool(resources.gpus_per_node)),
        limits=_limits(config, place.stage),
        grace_s=config.cluster.grace_s,
        lost_after_s=config.cluster.lost_after_s,
        time_limit_s=resources.time_limit_s,
        elastic=_elastic(config) if place.stage is Stage.TRAIN else None,
        device_s_allowed=config.budget.seconds if place.stage is Stage.TRAIN else None,
        storage_root=place.storage_root,
        scratch_dir=place.scratch_dir,
        project_dir=place.project_dir,
        inputs=dict(place.inputs),
        reads=place.reads,
        cache_bytes=config.cluster.cache_bytes,
        config=config.model_dump(mode="json"),
        options=dict(options or {}),
    )


def _threads(config: RunConfig, *, ranks_per_node: int, cores: int) -> int:
    """Returns compute threads per rank where the recipe does not say: what this machine has tells nothing of another."""
    return max(1, cores // ranks_per_node) if config.cluster.kind is ClusterKind.LOCAL else 1


def _elastic(config: RunConfig) -> ElasticLimits | None:
    """Returns which shapes attempts of training may have; None when it is always the same."""
    shapes, restart = config.gang_shapes, config.restart
    return ElasticLimits(shapes=shapes, smaller_after_s=restart.smaller_after_s, grow_after_s=restart.grow_after_s) if len(shapes) > 1 else None


def _limits(config: RunConfig, stage: Stage) -> RestartLimits:
    """Returns the part of the restart policy that an agent needs. Only training can fall back to smaller micro-batches."""
    restart = config.restart
    lifted = stage is Stage.TRAIN and restart.on_out_of_memory is OnOutOfMemory.SMALLER_MICRO_BATCH
    return RestartLimits(
        max_failures=restart.max_failures,
        max_interruptions=restart.max_interruptions,
        max_attempts_without_progress=restart.max_attempts_without_progress,
        backoff_s=restart.backoff_s,
        on_bad_numbers=restart.on_bad_numbers,
        rewind_commits=restart.rewind_commits,
        micro_batch_sizes=config.training.smaller_micro_batch_sizes if lifted else (),
    )
