"""`headrace doctor` on a recipe's Slurm jobs: what their partitions allow and offer, and whether Slurm would take them. Submits nothing."""

import grp
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from cluster.launchers.slurm import SlurmLauncher
from cluster.launchers.slurm_queue import SlurmError
from cluster.launchers.slurm_site import NODES, PARTITIONS, Node, Partition, mib_of, parse_nodes, parse_partitions
from flows.checkup_shapes import enough_for
from flows.figure import of_seconds
from flows.finding import Finding, finding
from schemas.cluster_config import ClusterConfig
from schemas.config import RunConfig
from schemas.job import JobSpec
from schemas.stage import Stage
from schemas.suggestion import nearest_choice
from tasks.planned_jobs import planned_jobs

_TEST_ONLY = ("sbatch", "--test-only")
_Fault = tuple[str, str, str]
"""Level, what, mend: of one stage's job. What several stages share is told once."""


def job_findings(config: RunConfig, *, project: Path, root: str, ask: Callable[..., str]) -> list[Finding]:
    """Returns what is wrong with each partition for the recipe's jobs, then what Slurm itself says to the jobs that seem right.

    Args:
        project: the project folder.
        root: the storage root.
        ask: calls a command of Slurm's; raises SlurmError.
    """
    jobs = planned_jobs(config, storage_root=root, project_dir=project)
    try:
        partitions = parse_partitions(ask(PARTITIONS)) if shutil.which("scontrol") else {}
        nodes = parse_nodes(ask(NODES)) if shutil.which("sinfo") else ()
    except SlurmError as error:
        return [finding("warning", "slurm partitions", f"cannot be asked for: {error}", "scontrol show partition; sinfo")]
    findings, wrong = [], set[Stage]()
    for name, stages in _by_partition(config, jobs, partitions=partitions).items() if partitions else ():
        of_it = {stage: jobs[stage] for stage in stages}
        found = judge_partition(name, of_it, config=config, partitions=partitions, nodes=nodes, groups=_groups())
        findings += found or [finding("ok", f"partition {name}", f"is up, and offers what {_names(of_it)} ask{'s' if len(of_it) == 1 else ''} for")]
        wrong |= set(of_it) if any(each["level"] == "error" for each in found) else set()
    return findings + check_jobs({stage: spec for stage, spec in jobs.items() if stage not in wrong}, config=config, ask=ask)


def _by_partition(config: RunConfig, stages: Iterable[Stage], *, partitions: Mapping[str, Partition]) -> Mapping[str, list[Stage]]:
    """Returns partition → the stages that use it: the default one where a recipe names none, each of several where it names several."""
    default = next((name for name, partition in partitions.items() if partition.is_default), "")
    users = defaultdict[str, list[Stage]](list)
    for stage in stages:
        for name in (config.cluster.resources(stage).queue or default).split(","):
            users[name].append(stage)
    return users


def judge_partition(
    name: str,
    jobs: Mapping[Stage, JobSpec],
    *,
    config: RunConfig,
    partitions: Mapping[str, Partition],
    nodes: Sequence[Node],
    groups: frozenset[str],
) -> list[Finding]:
    """Returns what keeps a partition from running its stages' jobs. Pure.

    Args:
        name: the partition; empty: the recipe names none, and there is no default.
        jobs: of the stages that use it.
        config: the recipe.
        partitions: all of them.
        nodes: of all of them; empty: not known.
        groups: the user's.
    """
    subject = f"partition {name}" if name else "partition"
    partition = partitions.get(name)
    if partition is None:
        nearest = nearest_choice(name, list(partitions)) if name else ""
        keys = ", ".join(dict.fromkeys(_key(config, stage, "queue") for stage in jobs))
        mend = f"set {keys} to one of {', '.join(partitions)}" + (f"; nearest: {nearest}" if nearest else "")
        return [finding("error", subject, f"wanted by {_names(jobs)}; there is none" + ("" if name else " by default"), mend)]
    found = _judge_admission(partition, config.cluster, groups=groups)
    faults = defaultdict[_Fault, list[Stage]](list)
    for stage, spec in jobs.items():
        for fault in _limits_broken(partition, stage, spec, config=config):
            faults[fault].append(stage)
        for fault in _not_offered([node for node in nodes if node.partition == name], stage, spec, config=config) if nodes else ():
            faults[fault].append(stage)
    found += [
        finding(level, subject, f"{', '.join(stage.value for stage in stages)}: {what}", mend) for (level, what, mend), stages in faults.items()
    ]
    if partition.grace_s and partition.preempt_mode != "OFF" and partition.grace_s < config.cluster.grace_s:
        what = f"a job that makes room has {partition.grace_s:g} s (GraceTime), cluster.grace_s is {config.cluster.grace_s:g}"
        found.append(finding("warning", subject, what, f"set cluster.grace_s: {max(1.0, partition.grace_s - 5):g}, if a checkpoint fits in"))
    return found


def _judge_admission(partition: Partition, cluster: ClusterConfig, *, groups: frozenset[str]) -> list[Finding]:
    """Whether it is up, and takes jobs of this user."""
    subject, found = f"partition {partition.name}", list[Finding]()
    given = dict(directive[2:].partition("=")[::2] for directive in cluster.extra_directives)
    if partition.state != "UP":
        found.append(finding("error", subject, f"is {partition.state}: it starts no jobs", "name another cluster.queue, or wait until it is UP"))
    if partition.groups and not groups & set(partition.groups):
        what = f"takes jobs of the groups {', '.join(partition.groups)} only; you are in none of them"
        found.append(finding("error", subject, what, "name another cluster.queue, or ask to be taken in: the administrators, AllowGroups"))
    for kind, allowed in (("account", partition.accounts), ("qos", partition.qos)):
        if allowed and given.get(kind) not in allowed:
            own = f"--{kind}={given[kind]} is none of them" if kind in given else "the recipe names none"
            level = "error" if kind in given else "warning"
            mend = f'put "--{kind}=…" into cluster.extra_directives, or name another cluster.queue'
            found.append(finding(level, subject, f"takes jobs with {kind} {', '.join(allowed)} only; {own}", mend))
    return found


def _limits_broken(partition: Partition, stage: Stage, spec: JobSpec, *, config: RunConfig) -> Iterator[_Fault]:
    """Yields what of time and number of nodes a stage's job asks for, and the partition does not give."""
    time_key, most_s, wanted_s = _key(config, stage, "time_limit"), partition.max_time_s, spec.time_limit_s
    if most_s is not None and wanted_s is not None and wanted_s > most_s:
        what = f"{of_seconds(wanted_s)} are asked for, a job may take {of_seconds(most_s)} (MaxTime)"
        yield "error", what, f"set {time_key}: {int(most_s // 60)}m; what a job does not finish, the next goes on with"
    end_s = partition.default_time_s or most_s
    if wanted_s is None and end_s is not None:
        yield "warning", f"a job ends after {of_seconds(end_s)}, and its agents are told a minute before only", f"set {time_key}: {int(end_s // 60)}m"
    if partition.max_nodes is not None and spec.num_nodes > partition.max_nodes:
        what = f"{spec.num_nodes} nodes are asked for, a job may have {partition.max_nodes} (MaxNodes)"
        yield "error", what, f"set {_key(config, stage, 'nodes')}: {partition.max_nodes}"


def _not_offered(nodes: Sequence[Node], stage: Stage, spec: JobSpec, *, config: RunConfig) -> Iterator[_Fault]:
    """Yields whether too few nodes have what a stage's job asks for, or are up."""
    resources = config.cluster.resources(stage)
    cpus, gpus = spec.ranks_per_node * spec.threads_per_rank, resources.gpus_per_node or 0
    memory_mib = mib_of(resources.memory) if resources.memory else 0.0
    fitting = [node for node in nodes if node.cpus >= cpus and node.gpus >= gpus and node.memory_mib >= memory_mib]
    usable = [node for node in fitting if node.is_usable]
    asked = f"{spec.num_nodes} nodes with {cpus} CPUs, {gpus} GPUs" + (f", {resources.memory}" if resources.memory else "") + " are asked for"
    if len(fitting) < spec.num_nodes:
        kinds = sorted({(node.gpus, node.cpus, node.memory_mib) for node in nodes}, reverse=True)
        offer = "; ".join(f"{cpus} CPUs, {gpus} GPUs, {memory / 1024:.0f}G" for gpus, cpus, memory in kinds[:3]) or "no nodes"
        keys = ", ".join(_key(config, stage, name) for name in ("nodes", "ranks_per_node", "gpus_per_node", "memory"))
        what = f"{asked}, {len(fitting)} of its {len(nodes)} offer that{enough_for(config, stage, num_nodes=len(fitting))}; there are: {offer}"
        yield "error", what, f"lower one of {keys}, cluster.threads_per_rank"
    elif len(usable) < spec.num_nodes:
        states = ", ".join(sorted({node.state for node in fitting if not node.is_usable}))
        what = f"{asked}, {len(usable)} that offer it are up{enough_for(config, stage, num_nodes=len(usable))}; others are {states}"
        yield "warning", what, "sinfo --list-reasons says why"


def _key(config: RunConfig, stage: Stage, name: str) -> str:
    """Returns the key of the recipe that says it for a stage: the stage's own where it has one."""
    override = config.cluster.stages.get(stage)
    return f"cluster.stages.{stage.value}.{name}" if override is not None and getattr(override, name) is not None else f"cluster.{name}"


def check_jobs(jobs: Mapping[Stage, JobSpec], *, config: RunConfig, ask: Callable[..., str]) -> list[Finding]:
    """Asks Slurm whether it would take each job, in its own words; nothing is submitted."""
    launcher, refused = SlurmLauncher(config.cluster), list[Finding]()
    for stage, spec in jobs.items():
        try:
            ask(_TEST_ONLY, stdin=launcher.render(spec).text)
        except SlurmError as error:
            words = " ".join(str(error).replace("sbatch: error: ", "").split())
            mend = "headrace plan --json shows the script; change the recipe's cluster section, or ask the administrators"
            refused.append(finding("error", f"job of {stage.value}", f"Slurm would not take it: {words}", mend))
    if refused or not jobs:
        return refused
    return [finding("ok", "slurm jobs", f"Slurm would take those of {_names(jobs)}")]


def _groups() -> frozenset[str]:
    """Returns the names of this user's groups."""
    ids = {os.getgid(), *os.getgroups()}
    return frozenset(group.gr_name for group in grp.getgrall() if group.gr_gid in ids)


def _names(jobs: Mapping[Stage, JobSpec]) -> str:
    return ", ".join(stage.value for stage in jobs)
