"""`headrace doctor`: looks at this machine and its cluster, changes nothing, and says for each finding how to mend it.

Each check is a function that returns findings. Those of storage are in `flows.checkup_storage`, those of remote text in
`flows.checkup_sources`, those of clusters in modules of their own.
"""

import contextlib
import os
import re
import shutil
import socket
import sys
from importlib import metadata
from pathlib import Path

from flows.checkup_shapes import PROCESS_BYTES, check_shapes
from flows.checkup_sources import check_sources
from flows.checkup_storage import check_disk, check_file_system, check_object_storage, check_sharing, check_storage
from flows.figure import of_bytes
from flows.finding import Finding, finding
from flows.terminal import paint, show, show_json
from schemas.cluster_config import ClusterKind
from schemas.config import RunConfig
from schemas.errors import ConfigError, Problem
from schemas.recipe import LoadedRecipe, load_recipe, project_dir_of
from schemas.sizing import training_size
from schemas.suggestion import nearest_choice

_CHECKOUT = Path(__file__).resolve().parent.parent
LOCK = "HEADRACE_LOCK"
"""Names the lock file that an environment was made of, where that is only a part: in the image that decides, which has no torch."""
_LOCK = re.compile(r"^(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>[^\s;\\]+)")
_LEFTOVERS = re.compile(r"^(deepspeed_|torch_|headrace-|sem\.loky|psm_|__KMP_)")


def report(recipe: Path | None, *, cluster: str | None, as_json: bool) -> bool:
    """Prints all findings; returns whether none is an error.

    Args:
        recipe: what to check for; None: the project around the current folder.
        cluster: a kind of cluster, instead of the recipe's.
        as_json: print one JSON document.

    Raises:
        ConfigError: the recipe, or `cluster`, is wrong.
    """
    kind = _kind_of(cluster)
    loaded = load_recipe(recipe, () if kind is None else (f"cluster.kind={kind.value}",)) if recipe is not None else None
    findings = findings_of(loaded, kind)
    if as_json:
        show_json({"findings": findings})
    else:
        styles = {"ok": "green", "warning": "yellow", "error": "red"}
        for found in findings:
            show(f"{paint(found['level'].ljust(7), styles[found['level']])}  {found['subject']}: {found['what']}")
            if found["mend"]:
                show(f"         mend: {found['mend']}")
    return all(found["level"] != "error" for found in findings)


def findings_of(loaded: LoadedRecipe | None, kind: ClusterKind | None = None) -> list[Finding]:
    """Returns every finding, for a recipe or for the project around the current folder; `kind` says on which cluster where no recipe does."""
    config = loaded.config if loaded is not None else None
    project = loaded.project_dir if loaded is not None else project_dir_of(Path.cwd() / "recipe")
    root = config.storage.root if config is not None else str(project / ".headrace" / "data")
    state = Path(config.state if config is not None else project / ".headrace" / "state")
    kind = config.cluster.kind if config is not None else kind or ClusterKind.LOCAL
    findings = [check_python(), *check_packages(), check_memory(config), check_cores(config), check_shared_memory(), check_loopback()]
    if "://" not in root:
        findings += [check_disk(Path(root), subject="storage.root", config=config), *check_storage(Path(root))]
        findings += [*check_file_system(Path(root), subject="storage.root"), *check_sharing(Path(root))]
    else:
        findings += check_object_storage(root)
    findings += [*check_storage(state, subject="state"), *check_file_system(state, subject="state", is_shared=kind is ClusterKind.SLURM)]
    findings += [*check_sources(config), *check_shapes(config)] if config is not None else []
    if kind is ClusterKind.SLURM:
        from flows.checkup_slurm import slurm_findings

        findings += slurm_findings(config, project=project, root=root, state=state)
    if kind is ClusterKind.KUBERNETES:
        from flows.checkup_kubernetes import kubernetes_findings

        findings += kubernetes_findings(config, project=project, root=root)
    return [*findings, check_compiler()]


def _kind_of(option: str | None) -> ClusterKind | None:
    """Returns what `--cluster` names. Raises ConfigError."""
    if option is None:
        return None
    if option not in list(ClusterKind):
        problem = Problem("--cluster", repr(option), f"must be one of {', '.join(ClusterKind)}", nearest=nearest_choice(option, list(ClusterKind)))
        raise ConfigError((problem,), source="headrace doctor")
    return ClusterKind(option)


# ---- packages ---------------------------------------------------------------------------------------------------------


def check_python() -> Finding:
    """The interpreter's version."""
    version = ".".join(map(str, sys.version_info[:3]))
    if (3, 11) <= sys.version_info[:2] <= (3, 12):
        return finding("ok", "python", f"{version} at {sys.executable}")
    return finding("error", "python", f"{version} at {sys.executable}; Headrace needs 3.11 or 3.12", "make clean venv PYTHON=python3.11")


def check_packages(folder: Path = _CHECKOUT / "infra" / "requirements") -> list[Finding]:
    """Installed versions against the lock files; torch may be the site's own, but must be there."""
    lock = folder / os.environ.get(LOCK, "base.txt")
    if not lock.exists():
        return [finding("warning", "packages", f"no lock file {lock}", "run doctor from a checkout")]
    problems, locked = [], _locked_versions(lock)
    for name, wanted in locked.items():
        found = _installed(name)
        if found is None:
            problems.append(finding("error", "packages", f"{name} is not installed, the lock says {wanted}", "make venv"))
        elif found.partition("+")[0] != wanted.partition("+")[0]:
            what = f"{name} {found} is installed, the lock says {wanted}"
            problems.append(finding("warning", "packages", what, "make venv, or keep it: only the lock is tested"))
    if _installed("torch") is None and lock.name != "control.txt":
        problems.append(finding("error", "packages", "torch is not installed", "make venv ACCEL=cpu, or ACCEL=site with the site's own"))
    return problems or [finding("ok", "packages", f"all {len(locked)} as locked in {lock.name}; torch {_installed('torch')}")]


def _locked_versions(lock: Path) -> dict[str, str]:
    matches = (_LOCK.match(line) for line in lock.read_text(encoding="utf-8").splitlines())
    return {match["name"]: match["version"] for match in matches if match}


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def check_compiler() -> Finding:
    """A C++ compiler and ninja: DeepSpeed compiles some optimizers at first use; Headrace does without."""
    missing = [name for name in ("g++", "ninja") if shutil.which(name) is None and not (Path(sys.executable).parent / name).exists()]
    if missing:
        return finding(
            "warning",
            "compiler",
            f"{' and '.join(missing)} not found: DeepSpeed options that compile (CPU offload) will fail",
            "apt-get install g++ ninja-build",
        )
    return finding("ok", "compiler", "g++ and ninja are there for DeepSpeed options that compile")


# ---- the machine ------------------------------------------------------------------------------------------------------


def check_memory(config: RunConfig | None) -> Finding:
    """Memory against the estimate for the recipe's ranks on one node."""
    available, limit = _meminfo("MemAvailable"), _cgroup_limit()
    have = min(available, limit) if limit else available
    if config is None or config.cluster.kind is not ClusterKind.LOCAL or (config.cluster.gpus_per_node or 0) > 0:
        return finding("ok", "memory", f"{of_bytes(have)} available")
    size = training_size(config)
    if size.memory is None:
        return finding("ok", "memory", f"{of_bytes(have)} available; the model's need is not known")
    need = size.world_size * (size.memory.total + PROCESS_BYTES)
    what = f"{of_bytes(have)} available, about {of_bytes(need)} needed for {size.world_size} ranks"
    if need > have:
        return finding(
            "error", "memory", what, "lower training.micro_batch_size, raise training.zero_stage, or set training.activation_checkpointing: true"
        )
    return finding("ok", "memory", what)


def _meminfo(key: str) -> int:
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return 0


def _cgroup_limit() -> int:
    """Returns the memory limit of this process's cgroup, or 0."""
    for path in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        with contextlib.suppress(OSError, ValueError):  # no such controller, or `max`
            limit = int(path.read_text(encoding="ascii"))
            return limit if limit < 1 << 60 else 0
    return 0


def check_cores(config: RunConfig | None) -> Finding:
    """Cores against the threads that the recipe's ranks use."""
    cores = len(os.sched_getaffinity(0))
    ranks = (config.cluster.ranks_per_node or 1) if config is not None and config.cluster.kind is ClusterKind.LOCAL else 1
    threads = ranks * ((config.cluster.threads_per_rank or 1) if config is not None else 1)
    if threads > cores:
        return finding(
            "warning", "cores", f"{cores} cores for {threads} threads of {ranks} ranks", "lower cluster.ranks_per_node or cluster.threads_per_rank"
        )
    return finding("ok", "cores", f"{cores}")


def check_shared_memory(folder: Path = Path("/dev/shm")) -> Finding:  # noqa: S108  # this is the thing that is looked at
    """What dead processes left in shared memory, and how much of it is free."""
    if not folder.is_dir():
        return finding("warning", "shared memory", f"{folder} is missing", "mount a tmpfs there; in containers: --shm-size")
    found = {path: _size_of(path) for path in folder.iterdir() if _LEFTOVERS.match(path.name) and not _is_in_use(path)}
    left = {path: size for path, size in found.items() if size is not None}
    if left:
        names = " ".join(str(path) for path in list(left)[:10])
        return finding("warning", "shared memory", f"{len(left)} leftovers of dead processes, {of_bytes(sum(left.values()))}", f"rm {names}")
    free = shutil.disk_usage(folder).free
    if free < 64_000_000:
        return finding("warning", "shared memory", f"only {of_bytes(free)} free in {folder}", "in containers: --shm-size=1g")
    return finding("ok", "shared memory", f"{of_bytes(free)} free, nothing left over")


def _size_of(path: Path) -> int | None:
    """Returns a file's bytes; None when it is gone since it was listed."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def _is_in_use(path: Path) -> bool:
    """Whether a process that we may look at maps the file."""
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):  # ended meanwhile, or another user's
            if str(path) in maps.read_text(encoding="utf-8", errors="replace"):
                return True
    return False


def check_loopback() -> Finding:
    """A free port on the loopback interface, and a connection to it."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname(), timeout=2.0):
            pass
    except OSError as error:
        return finding("error", "ports", f"no connection over 127.0.0.1: {error}", "allow loopback connections; ranks and servers talk over them")
    proxy = next((name for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY") if os.environ.get(name)), None)
    what = "127.0.0.1 connects" + (f"; {proxy} is set, Headrace goes around it for 127.0.0.1" if proxy else "")
    return finding("ok", "ports", what)
