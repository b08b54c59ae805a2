"""The jobs that a run would submit, before it is known which run that is: `plan` shows what is submitted, `doctor` asks the cluster about it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from cluster.attempt import list_attempts
from cluster.launchers.protocol import Launcher
from cluster.layout import ArtifactLayout
from cluster.storage import Storage
from schemas.cluster_config import ClusterKind
from schemas.config import RunConfig
from schemas.errors import ConfigError, Problem
from schemas.job import JobKind, JobSpec
from schemas.plan import FINGERPRINT, KEY, RUN, Action, PlannedStage
from schemas.stage import Stage
from tasks.job_request import JobPlace, JobShape, array_shape, cores_here, job_request, scratch_of

_ARRAYS: Mapping[Stage, tuple[str, int | None]] = {
    Stage.VALIDATE: ("scan", None),
    Stage.PREPARE: ("filter", None),
    Stage.TOKENIZER: ("train", 1),
    Stage.TOKENIZE: ("group", None),
    Stage.EXPORT: ("export", 1),
    Stage.EVALUATE: ("evaluate", 1),
}
"""Stage → its first job and how many items that has; None: as many as the text makes."""


def planned_jobs(config: RunConfig, *, storage_root: str, project_dir: Path, keys: Mapping[Stage, str] | None = None) -> dict[Stage, JobSpec]:
    """Returns the first attempt of the first job of every stage that has jobs.

    Args:
        storage_root: absolute path or URL.
        project_dir: the recipe's project folder.
        keys: folders of the artifacts that are known.
    """
    jobs = {}
    for stage in (stage for stage in config.stages if stage in _ARRAYS or stage is Stage.TRAIN):
        place = JobPlace(
            run_id=RUN,
            stage=stage,
            artifact_key=(keys or {}).get(stage) or f"{stage.value}/{config.name}-{FINGERPRINT}",
            storage_root=storage_root,
            scratch_dir=str(scratch_of(Path(config.state))),
            project_dir=str(project_dir),
        )
        request = job_request(config, place=place, shape=_shape(config, stage), module=f"tasks.{stage.value}.job", cores=cores_here())
        key = f"{RUN}-{stage.value}-{KEY}"  # as the supervisor makes it
        jobs[stage] = request.model_copy(update={"key": key, "scratch_dir": f"{request.scratch_dir}/{key}"})
    return jobs


def planned_scripts(config: RunConfig, planned: Sequence[PlannedStage], *, storage: Storage, project_dir: Path) -> dict[Stage, str]:
    """Returns the batch scripts, or manifests, of the stages that would start jobs, as they would be submitted; none on this machine.

    Raises:
        ConfigError: no cluster would take them; all that is wrong, of all stages.
    """
    if config.cluster.kind is ClusterKind.LOCAL:
        return {}
    keys = {stage.stage: stage.key for stage in planned if stage.action is not Action.REUSE}
    jobs = planned_jobs(config, storage_root=storage.url, project_dir=project_dir, keys=keys)
    launcher, scripts, problems = _renderer(config), dict[Stage, str](), dict[Problem, None]()
    for stage in (stage for stage in jobs if stage in keys):
        try:
            scripts[stage] = launcher.render(_next_attempt(jobs[stage], storage)).text
        except ConfigError as error:
            problems |= dict.fromkeys(error.problems)
    if problems:
        raise ConfigError(tuple(problems))
    return scripts


def _renderer(config: RunConfig) -> Launcher:
    """Returns a launcher that only renders: nothing here asks its cluster."""
    if config.cluster.kind is ClusterKind.SLURM:
        from cluster.launchers.slurm import SlurmLauncher

        return SlurmLauncher(config.cluster)
    from cluster.launchers.kubernetes import KubernetesLauncher

    return KubernetesLauncher(config.cluster)


def _shape(config: RunConfig, stage: Stage) -> JobShape:
    if stage is Stage.TRAIN:
        gang, *_ = config.gang_shapes
        return JobShape(JobKind.GANG, num_nodes=gang.num_nodes, ranks_per_node=gang.ranks_per_node)
    step_name, num_items = _ARRAYS[stage]
    return array_shape(config, stage, step_name=step_name, num_items=num_items, cores=cores_here())


def _next_attempt(spec: JobSpec, storage: Storage) -> JobSpec:
    """Returns the spec with the number that the next attempt gets."""
    past = list_attempts(storage, ArtifactLayout(spec.artifact_key), step_name=spec.step_name)
    return spec.model_copy(update={"attempt": past[-1] + 1}) if past else spec
