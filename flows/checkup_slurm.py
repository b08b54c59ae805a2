"""`headrace doctor` on a Slurm cluster: its commands, its settings, and whether its nodes see what they need."""

import getpass
import os
import shutil
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cluster.environment import checkout
from cluster.file_system import NETWORK_FILE_SYSTEMS, file_system_of, mounts_here
from cluster.launchers.slurm_queue import MOST_AGE_S, SlurmError, call
from cluster.launchers.slurm_script import MODULE_FILES
from cluster.launchers.slurm_site import SETTINGS, parse_settings, seconds_of
from flows.checkup_containers import container_findings
from flows.checkup_partitions import job_findings
from flows.checkup_storage import existing
from flows.figure import of_seconds
from flows.finding import Finding, finding
from schemas.cluster_config import ClusterConfig, StageResources
from schemas.config import RunConfig
from schemas.stage import Stage

_NEEDED = ("sbatch", "squeue", "scancel")
_USEFUL = {"scontrol": "settings and partitions are not checked", "sinfo": "nodes are not checked", "sacct": "accounting is not asked how jobs ended"}
_OF_ONE_MACHINE = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108  # places that are looked for, not used
_IN_MEMORY = ("tmpfs", "ramfs")
_FEW_JOBS = 100
_PYTHON = "python "
_Ask = Callable[..., str]


def slurm_findings(config: RunConfig | None, *, project: Path, root: str, state: Path, ask: _Ask = call) -> list[Finding]:
    """Returns what a Slurm cluster means for a recipe, or for any.

    Args:
        project: the project folder.
        root: the storage root.
        state: the state folder.
        ask: calls a command of Slurm's; raises SlurmError.
    """
    mounts = mounts_here()
    findings = [check_commands(), *check_shared(_shared(config, project=project, root=root, state=state), mounts=mounts)]
    findings += check_databases(config, state=state, mounts=mounts)
    if findings[0]["level"] == "error":
        return findings
    answer = check_answer(ask)
    if answer["level"] == "error":
        return [*findings, answer]
    findings += [answer, *_settings_findings(config, ask), *check_modules(config), *container_findings(config, project=project, root=root, ask=ask)]
    return findings + (job_findings(config, project=project, root=root, ask=ask) if config is not None else [])


def check_commands() -> Finding:
    """Slurm's own programs."""
    missing = [name for name in _NEEDED if shutil.which(name) is None]
    if missing:
        return finding(
            "error", "slurm", f"{', '.join(missing)} not found on PATH", "run Headrace on a login node, or install Slurm's client commands"
        )
    less = {name: what for name, what in _USEFUL.items() if shutil.which(name) is None}
    if less:
        what = f"{', '.join(less)} not found on PATH: {'; '.join(less.values())}"
        return finding("warning", "slurm", what, "jobs run without; the rest of Slurm's client commands tells more")
    return finding("ok", "slurm", f"{', '.join((*_NEEDED, *_USEFUL))} are there")


def check_answer(ask: _Ask) -> Finding:
    """Whether the controller answers, and which version it is."""
    try:
        version, jobs = ask(("squeue", "--version")).strip(), ask(("squeue", "--noheader", "--me", "--format=%A")).split()
    except SlurmError as error:
        return finding("error", "slurm", f"does not answer: {error}", "check SLURM_CONF, munge and the controller: scontrol ping")
    return finding("ok", "slurm", f"{version} answers; {len(jobs)} jobs of yours")


# ---- slurm.conf -------------------------------------------------------------------------------------------------------


def _settings_findings(config: RunConfig | None, ask: _Ask) -> list[Finding]:
    if shutil.which("scontrol") is None:  # said already
        return []
    try:
        settings = parse_settings(ask(SETTINGS))
    except SlurmError as error:
        return [finding("warning", "slurm.conf", f"cannot be read: {error}", "ask the administrators for PreemptMode, KillWait and MinJobAge")]
    found = judge_settings(settings, config.cluster if config is not None else ClusterConfig())
    return found + ([check_association(ask)] if "associations" in settings.get("AccountingStorageEnforce", "") else [])


def judge_settings(settings: Mapping[str, str], cluster: ClusterConfig) -> list[Finding]:
    """What matters of slurm.conf. Pure."""
    return [_judge_memory(settings), _judge_grace(settings, cluster), _judge_preemption(settings), _judge_room(settings)]


def _judge_memory(settings: Mapping[str, str]) -> Finding:
    """How long Slurm knows how a job ended."""
    age_s = seconds_of(settings.get("MinJobAge", "300 sec")) or 0.0
    if not settings.get("AccountingStorageType", "").endswith("/none"):
        return finding("ok", "slurm accounting", "is on: sacct says how a job ended")
    what = f"is off: Slurm forgets how a job ended {of_seconds(age_s)} after its end (MinJobAge)"
    if age_s < 2 * MOST_AGE_S:
        mend = f"ask for MinJobAge={2 * MOST_AGE_S:g}, or for accounting: a job that dies without a word is missed only cluster.lost_after_s later"
        return finding("warning", "slurm accounting", what, mend)
    return finding("ok", "slurm accounting", f"{what}; jobs leave their own record, too")


def _judge_grace(settings: Mapping[str, str], cluster: ClusterConfig) -> Finding:
    """Whether ranks that are asked to stop have the time that they were promised."""
    wait_s = seconds_of(settings.get("KillWait", "30 sec")) or 0.0
    what = f"a job is killed {wait_s:.0f} s after Slurm asks it to stop (KillWait), cluster.grace_s is {cluster.grace_s:g}"
    if wait_s > cluster.grace_s:
        return finding("ok", "slurm grace", what)
    mend = f"set cluster.grace_s: {max(1.0, wait_s - 5):.0f}, if a step and a checkpoint fit in, or ask for a longer KillWait"
    return finding("warning", "slurm grace", what, mend)


def _judge_preemption(settings: Mapping[str, str]) -> Finding:
    mode, subject = settings.get("PreemptMode", "OFF"), "slurm preemption"
    if "SUSPEND" in mode:
        mend = "ask for PreemptMode=REQUEUE or CANCEL in your partitions: then the next job goes on where there is room"
        return finding("warning", subject, f"PreemptMode={mode}: a job that makes room stands still where it is, and Headrace waits for it", mend)
    if mode == "OFF":
        return finding("ok", subject, "is off")
    return finding(
        "ok", subject, f"PreemptMode={mode}: a job that makes room ends, and Headrace submits the next, which goes on from the newest commit"
    )


def _judge_room(settings: Mapping[str, str]) -> Finding:
    """How many jobs the whole cluster may have: a submission beyond is refused."""
    most = int(settings.get("MaxJobCount", "10000"))
    what = f"the cluster holds {most:,} jobs at most (MaxJobCount); a run has one at a time"
    if most >= _FEW_JOBS:
        return finding("ok", "slurm limits", what)
    return finding("warning", "slurm limits", what, "ask for a larger MaxJobCount; a submission that was refused is repeated by headrace resume")


def check_association(ask: _Ask) -> Finding:
    """Whether accounting knows the user, where it refuses whom it does not know."""
    user = getpass.getuser()
    question = ("sacctmgr", "--noheader", "--parsable2", "show", "associations", f"user={user}", "format=Account,MaxJobs,MaxSubmit")
    try:
        rows = [line.split("|") for line in ask(question).splitlines() if line.count("|") == 2]
    except SlurmError as error:
        return finding("warning", "slurm account", f"sacctmgr does not answer: {error}", "sbatch says it when you may not submit")
    accounts = [account for account, *limits in rows if "0" not in limits]
    if not accounts:
        what = f"{user} has no account that may run jobs" if rows else f"{user} has no account, and Slurm refuses whom it does not know"
        return finding("error", "slurm account", what, f"ask the administrators: sacctmgr add user {user} account=…")
    return finding("ok", "slurm account", f"{user} may use {', '.join(sorted(set(accounts)))}")


# ---- paths ------------------------------------------------------------------------------------------------------------


def _shared(config: RunConfig | None, *, project: Path, root: str, state: Path) -> dict[str, Path]:
    """Returns what all nodes must see, by the name that people know it by."""
    paths = {"state": state, "project folder": project, "checkout": checkout()}
    paths |= {"storage.root": Path(root)} if "://" not in root else {}
    resources = [config.cluster.resources(stage) for stage in Stage] if config is not None else [StageResources()]
    pythons = {each.python for each in resources if each.image is None}  # an image has its own
    return paths | {f"{_PYTHON}{python or sys.executable}": Path(python or sys.executable) for python in pythons}


def check_shared(paths: Mapping[str, Path], *, mounts: str) -> list[Finding]:
    """Whether nodes can see what they need, as far as this machine can tell: one finding per kind of place."""
    found = []
    places = defaultdict[str, list[str]](list)
    for subject, path in paths.items():
        if subject.startswith(_PYTHON) and not path.exists():
            mend = "look for it on a node (srun ls), correct cluster.python, or install it under this path"
            found.append(finding("warning", "shared paths", f"{subject} is not on this machine; nodes need it", mend))
            continue
        kind = file_system_of(existing(path), mounts=mounts)
        own = next((folder for folder in _OF_ONE_MACHINE if path.is_relative_to(folder)), "a file system in memory" if kind in _IN_MEMORY else kind)
        places[own].append(subject)
    for place, subjects in places.items():
        names = ", ".join(subjects)
        if place in NETWORK_FILE_SYSTEMS:
            found.append(finding("ok", "shared paths", f"on {place}: {names}"))
            continue
        probably = "" if place in _OF_ONE_MACHINE else "probably "
        mend = f"look on a node: srun ls {paths[subjects[0]]}; what is not there must lie on a file system that all nodes mount"
        found.append(finding("warning", "shared paths", f"on {place}, {probably}this machine's own, where nodes do not find it: {names}", mend))
    return found


def check_modules(config: RunConfig | None, *, patterns: Sequence[str] = MODULE_FILES) -> list[Finding]:
    """Whether what `setup` lines call is there for a batch shell, as far as this machine can tell."""
    lines = [line for stage in Stage for line in config.cluster.resources(stage).setup] if config is not None else []
    called = next((line for line in lines if line.split()[:1] in (["module"], ["ml"])), None)
    if called is None:
        return []
    files = [file for pattern in patterns for file in sorted(Path("/").glob(pattern.removeprefix("/")))]
    if files:
        return [finding("ok", "modules", f"`{called}`: {files[0]} defines module")]
    mend = "look on a node where module comes from, and make it the first line of cluster.setup: . /path/to/init/bash"
    return [finding("warning", "modules", f"`{called}`: neither {' nor '.join(patterns)} is here, which would define module for a batch shell", mend)]


def check_databases(config: RunConfig | None, *, state: Path, mounts: str) -> list[Finding]:
    """Whether database files would lie where nodes share them: the state folder must, and holds those of services that nobody runs as servers."""
    kind = file_system_of(existing(state), mounts=mounts)
    servers = {
        "MLflow": ("tracking.mlflow_uri", config is not None and config.tracking.mlflow_uri is not None),
        "Prefect": ("PREFECT_API_URL", bool(os.environ.get("PREFECT_API_URL"))),
    }
    files = {name: key for name, (key, is_set) in servers.items() if not is_set}
    if kind not in NETWORK_FILE_SYSTEMS or not files:
        return []
    what = f"lies on {kind}, and the databases of {' and '.join(files)} in it: slow there, and perhaps locked wrongly"
    return [finding("warning", "state", what, f"set {' and '.join(files.values())} to servers of yours")]
