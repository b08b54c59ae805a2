"""The batch script of a Slurm job. PURE: a job spec and what the recipe asks for in, text out.

One `srun` starts one agent per node, in a container where the recipe has an image; ranks are the agent's business, not Slurm's. Nothing in
it is secret: whoever may read the queue may read a script. Every value is quoted, for Slurm's parser of `#SBATCH` lines as for the shell.
"""

import shlex
from collections.abc import Mapping

from cluster.environment import ALLOWED
from cluster.launchers.protocol import AGENT_MODULE
from cluster.launchers.slurm_container import Container
from cluster.layout import ArtifactLayout
from schemas.cluster_config import StageResources
from schemas.job import JobSpec

_LAST_MINUTE_S = 60
"""Slurm's own warning before the time limit, a second line: agents know the end by themselves, and stop earlier where that takes longer."""
MODULE_FILES = ("/etc/profile.d/*module*.sh", "/etc/profile.d/*lmod*.sh")
"""Where sites define `module`: Environment Modules, Lmod."""
_MODULES = (
    "# `module` is a shell function, which only login shells have; what defines it may read variables that are not set.",
    f"for file in {' '.join(MODULE_FILES)}; do",
    '  if ! type module >/dev/null 2>&1 && [ -r "$file" ]; then . "$file"; fi',
    "done",
)


def batch_script(
    spec: JobSpec,
    resources: StageResources,
    *,
    extra_directives: tuple[str, ...],
    checkout: str,
    python: str,
    container: Container | None = None,
) -> str:
    """Returns the script.

    Args:
        spec: the job.
        resources: what its stage gets.
        extra_directives: raw ones, validated with the recipe.
        checkout: folder that holds Headrace's packages on the nodes.
        python: interpreter on the nodes, or in the container.
        container: what agents run in; None: nothing.
    """
    directives = [f"--{name}={_quoted(value)}" for name, value in _directives(spec, resources).items()]
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH {directive}" for directive in (*directives, "--no-requeue", *extra_directives, *_exclusion(spec, extra_directives))),
        "",
        *((*_MODULES, *resources.setup, "") if resources.setup else ()),
        "# What fails here is answered by Headrace's own policy, with a new job: Slurm does not start this one again.",
        "set -u",
        f"export PYTHONPATH={shlex.quote(checkout)}",
        f"srun {shlex.join(_srun_options(spec, container))} bash -c {shlex.quote(_on_each_node(spec, python=python, container=container))} &",
        "",
        "# Signals are for the agents, which hear them too; this shell only waits for them.",
        "trap : TERM USR1 INT HUP",
        "until wait $!; code=$?; ! kill -0 $! 2>/dev/null; do :; done",
        "exit $code",
    ]
    return "\n".join(lines) + "\n"


def _directives(spec: JobSpec, resources: StageResources) -> Mapping[str, str]:
    """Returns name → value of what follows from the job and the recipe."""
    wanted = {
        "job-name": spec.key,
        "comment": spec.key,
        "nodes": str(spec.num_nodes),
        "ntasks-per-node": "1",
        "cpus-per-task": str(spec.ranks_per_node * spec.threads_per_rank),
        "chdir": spec.project_dir,
        "output": _literal(spec.scratch_dir) + "/slurm-%j.out",
        "open-mode": "append",
        "export": ",".join(ALLOWED),
        "signal": f"TERM@{_LAST_MINUTE_S}",
        "partition": resources.queue,
        "time": None if resources.time_limit_s is None else _minutes(resources.time_limit_s),
        "mem": resources.memory,
        "gpus-per-node": str(resources.gpus_per_node) if resources.gpus_per_node else None,
    }
    return {name: value for name, value in wanted.items() if value is not None}


def _exclusion(spec: JobSpec, extra_directives: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the directive that avoids nodes: those of the recipe, too, as only the last one counts. None when there is nothing to add."""
    named = (directive.partition("=")[2].strip('"') for directive in extra_directives if directive.startswith("--exclude="))
    short = dict.fromkeys(node.partition(".")[0] for node in spec.excluded_nodes)  # hosts know their domain, Slurm does not
    return (f"--exclude={_quoted(','.join((*named, *short)))}",) if spec.excluded_nodes else ()


def _srun_options(spec: JobSpec, container: Container | None) -> tuple[str, ...]:
    cpus = spec.ranks_per_node * spec.threads_per_rank
    return (
        *("--ntasks", str(spec.num_nodes), "--ntasks-per-node", "1", "--cpus-per-task", str(cpus)),  # since 22.05 srun takes none from sbatch
        "--export=ALL",  # what `setup` exported, too; sbatch's list would stand otherwise
        "--cpu-bind=none",  # ranks share the node's cores as the agent starts them
        "--kill-on-bad-exit=0",  # agents tell each other how they ended
        "--wait=0",
        "--mpi=none",
        *(container.srun_options if container is not None else ()),
    )


def _on_each_node(spec: JobSpec, *, python: str, container: Container | None) -> str:
    """Returns the shell text that becomes a node's agent."""
    attempt = ArtifactLayout(spec.artifact_key).attempt(spec.step_name, spec.attempt)
    arguments = {"--storage": spec.storage_root, "--attempt": attempt.key, "--key": spec.key}
    into = container.prefix if container is not None else ()
    agent = shlex.join((*into, python, "-P", "-m", AGENT_MODULE, *(word for pair in arguments.items() for word in pair)))
    own = '--node-rank "$SLURM_NODEID" --advertise "$SLURMD_NODENAME" --submission "$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}"'
    folder = f'd={shlex.quote(spec.scratch_dir)}/n$(printf %04d "$SLURM_NODEID")'
    return f'{folder}; mkdir -p "$d"; exec {agent} {own} >>"$d/agent.log" 2>&1 </dev/null'


def _quoted(value: str) -> str:
    """Returns a value as Slurm's parser of `#SBATCH` lines reads it back."""
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _literal(path: str) -> str:
    """Returns a path in a file name pattern of Slurm's."""
    return path.replace("%", "%%")


def _minutes(seconds: float) -> str:
    """Returns a time limit in whole minutes, rounded up: Slurm knows no shorter ones."""
    return str(max(1, -int(-seconds // 60)))
