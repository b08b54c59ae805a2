"""How an agent gets into a container on a node of Slurm's. PURE: a job spec and what the recipe asks for in, words of a command line out.

Pyxis is a plugin of `srun`, whose options name the image; apptainer is a program that stands before the agent. Either way the agent runs
in the node's own process table and network, and gets the variables that it would get without, except those that the image itself sets.
"""

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Self

from schemas.cluster_config import ClusterConfig, ContainerRuntime
from schemas.errors import ConfigError, Problem
from schemas.job import JobSpec

PYTHON = "python3"
"""The image's own interpreter, where the recipe names none."""


@dataclass(frozen=True)
class Container:
    """What a node's agent runs in."""

    runtime: ContainerRuntime
    image: str
    mounts: tuple[str, ...]
    """`SOURCE:TARGET` or `SOURCE:TARGET:FLAGS`, each."""
    work_dir: str
    import_path: str
    """Where the agent's own code is."""
    options: tuple[str, ...]
    """Raw ones, validated with the recipe."""
    gpus: bool
    """Whether the job has GPUs, which must be let in."""

    @classmethod
    def of(cls, spec: JobSpec, cluster: ClusterConfig, *, checkout: str) -> Self | None:
        """Returns the container of a job's agents; None: the stage has no image.

        Raises:
            ConfigError: a folder that they need cannot be named to a container runtime.
        """
        resources = cluster.resources(spec.stage)
        if resources.image is None or cluster.container is None:
            return None
        scratch = str(PurePosixPath(spec.scratch_dir).parent)  # the cache of object storage is beside the attempts' own folders
        needed = {"state": scratch, "the project folder": spec.project_dir, "the checkout": checkout}
        needed |= {"storage.root": spec.storage_root} if "://" not in spec.storage_root else {}
        return cls(
            runtime=cluster.container,
            image=resources.image,
            mounts=(*_as_they_are(needed), *map(_with_target, cluster.mounts)),
            work_dir=spec.project_dir,
            import_path=checkout,
            options=cluster.container_options,
            gpus=bool(resources.gpus_per_node),
        )

    @property
    def srun_options(self) -> tuple[str, ...]:
        """What `srun` is given."""
        if self.runtime is not ContainerRuntime.PYXIS:
            return ()
        mounts = f"--container-mounts={','.join(self.mounts)}"
        return (f"--container-image={self.image}", mounts, f"--container-workdir={self.work_dir}", *self.options)

    @property
    def prefix(self) -> tuple[str, ...]:
        """What stands before the agent's own command."""
        ours = ("env", f"PYTHONPATH={self.import_path}")  # the image may set its own
        if self.runtime is ContainerRuntime.PYXIS:
            return ours
        binds = (word for mount in self.mounts for word in ("--bind", mount))
        gpus = ("--nv",) if self.gpus else ()  # says so and goes on where there are none of NVIDIA's
        return (self.runtime.value, "exec", *binds, "--pwd", self.work_dir, *gpus, *self.options, self.image, *ours)


def _as_they_are(folders: dict[str, str]) -> tuple[str, ...]:
    """Returns mounts that show folders under their own paths, without those that another one holds."""
    problems = [
        Problem(key, repr(path), "a container cannot be shown a path with a comma or a colon in it")
        for key, path in folders.items()
        if {*path} & {*",:"}
    ]
    if problems:
        raise ConfigError(tuple(problems), source="cluster.container")
    paths = sorted({PurePosixPath(path) for path in folders.values()})
    outermost = [path for path in paths if not any(path.is_relative_to(other) for other in paths if other != path)]
    return tuple(f"{path}:{path}" for path in outermost)


def _with_target(mount: str) -> str:
    """Returns a mount that says where to, as pyxis wants it."""
    return mount if ":" in mount else f"{mount}:{mount}"
