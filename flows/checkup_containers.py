"""`headrace doctor` on the containers of a recipe's Slurm jobs: what starts them, the image, and whether they are shown what they read."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath

from cluster.environment import checkout
from cluster.launchers.slurm_container import Container
from cluster.launchers.slurm_queue import SlurmError
from flows.finding import Finding, finding
from schemas.cluster_config import ContainerRuntime
from schemas.config import RunConfig
from schemas.errors import ConfigError
from schemas.stage import Stage
from tasks.planned_jobs import planned_jobs

_SUBJECT = "containers"
_PYXIS_OPTION = "--container-image"
_Ask = Callable[..., str]


def container_findings(config: RunConfig | None, *, project: Path, root: str, ask: _Ask) -> list[Finding]:
    """Returns what there is of container runtimes; for a recipe that wants one, whether it will do.

    Args:
        config: the recipe; None: any.
        project: the project folder.
        root: the storage root.
        ask: calls a command of Slurm's; raises SlurmError.
    """
    there = _runtimes_here(ask)
    wanted = config.cluster.container if config is not None else None
    if config is None or wanted is None:
        what = f"{', '.join(there)} can start them" if there else "neither pyxis nor apptainer is here; only cluster.image needs one"
        return [finding("ok", _SUBJECT, what)]
    jobs = planned_jobs(config, storage_root=root, project_dir=project)
    try:
        containers = {stage: found for stage, spec in jobs.items() if (found := Container.of(spec, config.cluster, checkout=str(checkout())))}
    except ConfigError as error:
        return [finding("error", _SUBJECT, f"{problem.key} = {problem.value}: {problem.message}", "move it") for problem in error.problems]
    return [_judge_runtime(wanted, there, setup=_setup_lines(config)), *_judge_images(containers), *_judge_paths(config, containers)]


def _runtimes_here(ask: _Ask) -> list[ContainerRuntime]:
    """Returns the runtimes of this machine. Pyxis is known by the option that it gives to `srun`."""
    found = [name for name in (ContainerRuntime.APPTAINER, ContainerRuntime.SINGULARITY) if shutil.which(name)]
    try:
        if _PYXIS_OPTION in ask(("srun", "--help")):
            found.insert(0, ContainerRuntime.PYXIS)
    except SlurmError:  # no srun here; the nodes have one
        pass
    return found


def _setup_lines(config: RunConfig) -> str:
    return "\n".join(line for stage in Stage for line in config.cluster.resources(stage).setup)


def _judge_runtime(wanted: ContainerRuntime, there: list[ContainerRuntime], *, setup: str) -> Finding:
    """Whether nodes can probably start containers; what is here is not always what is there."""
    if wanted in there:
        return finding("ok", _SUBJECT, f"{wanted} is here, and starts cluster.image")
    if wanted in setup:
        return finding("ok", _SUBJECT, f"{wanted} is not here; cluster.setup sees to it on the nodes")
    others = f"; here is {', '.join(there)}: set cluster.container" if there else ""
    if wanted is ContainerRuntime.PYXIS:
        what, look = f"srun knows no {_PYXIS_OPTION} here: no pyxis", "look on a node: srun srun --help"
    else:
        what, look = f"{wanted} is not on this machine's PATH; nodes need it", f'add "module load {wanted}" to cluster.setup, if the site has it so'
    return finding("warning", _SUBJECT, what, look + others)


def _judge_images(containers: Mapping[Stage, Container]) -> Iterator[Finding]:
    """Whether images that are files are there, and which ones nodes would have to fetch."""
    for image in dict.fromkeys(container.image for container in containers.values()):
        if "://" in image:
            mend = f"fetch it once into a file that nodes see: apptainer pull FILE.sif {image}"
            yield finding("warning", _SUBJECT, f"image {image} is fetched by every node for every job", mend)
        elif image.startswith(("/", "./")) and not Path(image).exists():
            yield finding("warning", _SUBJECT, f"image {image} is not on this machine; nodes need it", "correct cluster.image, or put it there")


def _judge_paths(config: RunConfig, containers: Mapping[Stage, Container]) -> Iterator[Finding]:
    """Whether containers are shown what the recipe names outside of storage, state and project folder."""
    for stage, container in containers.items():
        shown = [PurePosixPath(mount.split(":")[1]) for mount in container.mounts]
        for key, path in _read_by(stage, config).items():
            if not any(PurePosixPath(path).is_relative_to(folder) for folder in shown):
                mend = f'add "{path}" to cluster.mounts'
                yield finding("error", _SUBJECT, f"{key} = {path}: containers of {stage.value} are not shown it", mend)


def _read_by(stage: Stage, config: RunConfig) -> dict[str, str]:
    """Returns key → path of what a stage's processes read or write besides artifacts."""
    paths: dict[str, str | None] = {}
    if stage is Stage.VALIDATE:
        paths = {f"corpus.sources.{index}": source.path for index, source in enumerate(config.corpus.sources)}
    if stage is Stage.PREPARE:
        paths = {
            f"corpus.preparation.decontamination.files.{index}": path for index, path in enumerate(config.corpus.preparation.decontamination.files)
        }
    if stage is Stage.TOKENIZER:
        paths = {"tokenizer.path": config.tokenizer.path}
    if stage is Stage.TRAIN:
        paths = {"model.pretrained": config.model.pretrained, "checkpoint.local_dir": config.checkpoint.local_dir}
    return {key: path for key, path in paths.items() if path is not None and "://" not in path}
