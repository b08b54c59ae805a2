"""`headrace doctor`: looks at this machine, changes nothing, and says for each finding how to mend it.

Each check is a function that returns a finding as plain data: `level` (`ok`, `warning`, `error`), `subject`, `what`, `mend`.
"""

import contextlib
import errno
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from flows.figure import of_bytes
from flows.terminal import paint, show, show_json
from schemas.config import RunConfig
from schemas.execution_config import ClusterKind
from schemas.recipe import load_recipe, project_dir_of
from schemas.sizing import training_size

Finding = dict[str, str]

_CHECKOUT = Path(__file__).resolve().parent.parent
_LOCK = re.compile(r"^(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>[^\s;\\]+)")
_LEFTOVERS = re.compile(r"^(deepspeed_|torch_|headrace-|sem\.loky|psm_|__KMP_)")
_FEW_BYTES = 5_000_000_000
_NETWORK_FILE_SYSTEMS = ("nfs", "nfs4", "lustre", "gpfs", "beegfs", "cifs", "smb3", "ceph", "fuse.sshfs", "fuse.s3fs", "9p")
_CLIENTS = {ClusterKind.SLURM: ("sbatch", "squeue", "sacct", "scancel"), ClusterKind.KUBERNETES: ("kubectl",)}


def report(recipe: Path | None, *, as_json: bool) -> bool:
    """Prints all findings; returns whether none is an error. Raises ConfigError when the recipe is wrong."""
    findings = findings_of(load_recipe(recipe).config if recipe is not None else None)
    if as_json:
        show_json({"findings": findings})
    else:
        styles = {"ok": "green", "warning": "yellow", "error": "red"}
        for finding in findings:
            show(f"{paint(finding['level'].ljust(7), styles[finding['level']])}  {finding['subject']}: {finding['what']}")
            if finding["mend"]:
                show(f"         mend: {finding['mend']}")
    return all(finding["level"] != "error" for finding in findings)


def findings_of(config: RunConfig | None) -> list[Finding]:
    """Returns every finding, for a recipe or for the project around the current folder."""
    project = project_dir_of(Path.cwd() / "recipe")
    root = config.storage.root if config is not None else str(project / ".headrace" / "data")
    state = Path(config.state if config is not None else project / ".headrace" / "state")
    findings = [check_python(), *check_packages(), check_memory(config), check_cores(config), check_shared_memory(), check_loopback()]
    if "://" not in root:
        findings += [
            check_disk(Path(root), subject="storage.root", config=config),
            *check_storage(Path(root)),
            *check_file_system(Path(root), subject="storage.root"),
        ]
    findings += [*check_storage(state, subject="state"), *check_file_system(state, subject="state")]
    findings += check_clients(config.cluster.kind) if config is not None else []
    findings += [check_compiler()]
    return findings


def _finding(level: str, subject: str, what: str, mend: str = "") -> Finding:
    return {"level": level, "subject": subject, "what": what, "mend": mend}


# ---- packages ---------------------------------------------------------------------------------------------------------


def check_python() -> Finding:
    """The interpreter's version."""
    version = ".".join(map(str, sys.version_info[:3]))
    if (3, 11) <= sys.version_info[:2] <= (3, 12):
        return _finding("ok", "python", f"{version} at {sys.executable}")
    return _finding("error", "python", f"{version} at {sys.executable}; Headrace needs 3.11 or 3.12", "make clean venv PYTHON=python3.11")


def check_packages(folder: Path = _CHECKOUT / "infra" / "requirements") -> list[Finding]:
    """Installed versions against the lock files; torch may be the site's own, but must be there."""
    lock = folder / "base.txt"
    if not lock.exists():
        return [_finding("warning", "packages", f"no lock file {lock}", "run doctor from a checkout")]
    problems, locked = [], _locked_versions(lock)
    for name, wanted in locked.items():
        found = _installed(name)
        if found is None:
            problems.append(_finding("error", "packages", f"{name} is not installed, the lock says {wanted}", "make venv"))
        elif found.partition("+")[0] != wanted.partition("+")[0]:
            what = f"{name} {found} is installed, the lock says {wanted}"
            problems.append(_finding("warning", "packages", what, "make venv, or keep it: only the lock is tested"))
    if _installed("torch") is None:
        problems.append(_finding("error", "packages", "torch is not installed", "make venv ACCEL=cpu, or ACCEL=site with the site's own"))
    return problems or [_finding("ok", "packages", f"all {len(locked)} as locked in {lock.name}; torch {_installed('torch')}")]


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
        return _finding(
            "warning",
            "compiler",
            f"{' and '.join(missing)} not found: DeepSpeed options that compile (CPU offload) will fail",
            "apt-get install g++ ninja-build",
        )
    return _finding("ok", "compiler", "g++ and ninja are there for DeepSpeed options that compile")


# ---- the machine ------------------------------------------------------------------------------------------------------


def check_memory(config: RunConfig | None) -> Finding:
    """Memory against the estimate for the recipe's ranks on one node."""
    available, limit = _meminfo("MemAvailable"), _cgroup_limit()
    have = min(available, limit) if limit else available
    if config is None or config.cluster.kind is not ClusterKind.LOCAL or (config.cluster.gpus_per_node or 0) > 0:
        return _finding("ok", "memory", f"{of_bytes(have)} available")
    size = training_size(config)
    if size.memory is None:
        return _finding("ok", "memory", f"{of_bytes(have)} available; the model's need is not known")
    process_bytes = 1_000_000_000  # interpreter, torch and DeepSpeed, measured at 0.9 GB
    need = size.world_size * (size.memory.total + process_bytes)
    what = f"{of_bytes(have)} available, about {of_bytes(need)} needed for {size.world_size} ranks"
    if need > have:
        return _finding(
            "error", "memory", what, "lower training.micro_batch_size, raise training.zero_stage, or set training.activation_checkpointing: true"
        )
    return _finding("ok", "memory", what)


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
        return _finding(
            "warning", "cores", f"{cores} cores for {threads} threads of {ranks} ranks", "lower cluster.ranks_per_node or cluster.threads_per_rank"
        )
    return _finding("ok", "cores", f"{cores}")


def check_shared_memory(folder: Path = Path("/dev/shm")) -> Finding:  # noqa: S108  # this is the thing that is looked at
    """What dead processes left in shared memory, and how much of it is free."""
    if not folder.is_dir():
        return _finding("warning", "shared memory", f"{folder} is missing", "mount a tmpfs there; in containers: --shm-size")
    left = [path for path in folder.iterdir() if _LEFTOVERS.match(path.name) and not _is_in_use(path)]
    if left:
        size = sum(path.stat().st_size for path in left)
        names = " ".join(str(path) for path in left[:10])
        return _finding("warning", "shared memory", f"{len(left)} leftovers of dead processes, {of_bytes(size)}", f"rm {names}")
    free = shutil.disk_usage(folder).free
    if free < 64_000_000:
        return _finding("warning", "shared memory", f"only {of_bytes(free)} free in {folder}", "in containers: --shm-size=1g")
    return _finding("ok", "shared memory", f"{of_bytes(free)} free, nothing left over")


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
        return _finding("error", "ports", f"no connection over 127.0.0.1: {error}", "allow loopback connections; ranks and servers talk over them")
    proxy = next((name for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY") if os.environ.get(name)), None)
    what = "127.0.0.1 connects" + (f"; {proxy} is set, Headrace goes around it for 127.0.0.1" if proxy else "")
    return _finding("ok", "ports", what)


# ---- storage ----------------------------------------------------------------------------------------------------------


def check_disk(folder: Path, *, subject: str, config: RunConfig | None) -> Finding:
    """Free space against what checkpoints will take."""
    free = shutil.disk_usage(_existing(folder)).free
    size = training_size(config) if config is not None else None
    need = (size.checkpoint_bytes or 0) * (size.kept_checkpoints or 0) if size is not None else _FEW_BYTES
    what = f"{of_bytes(free)} free for {folder}"
    if size is not None:
        what += f", up to {of_bytes(need)} needed for checkpoints"
    return _finding(
        "error" if free < need and size is not None else "warning" if free < need else "ok",
        subject,
        what,
        "free space, or name another storage.root" if free < need else "",
    )


def check_storage(folder: Path, *, subject: str = "storage.root") -> list[Finding]:
    """What the file system promises: exclusive creation, `link(2)` that refuses an existing target, fsync of files and folders."""
    home = _existing(folder)
    probe = home / f".headrace-doctor-{secrets.token_hex(4)}"
    try:
        probe.mkdir()
    except OSError as error:
        return [
            _finding(
                "error", subject, f"{home} cannot be written: {error.strerror}", f"give yourself the right to write there, or name another {subject}"
            )
        ]
    try:
        problems = list(_broken_promises(probe))
    finally:
        shutil.rmtree(probe, ignore_errors=True)
    if problems:
        mend = f"name a {subject} on a local disk or NFS; object stores mounted as folders do not keep these promises"
        return [_finding("error", subject, f"{home}: {problem}", mend) for problem in problems]
    return [_finding("ok", subject, f"{home} keeps its promises: exclusive create, link, fsync, flock")]


def _broken_promises(folder: Path) -> Iterator[str]:
    import fcntl

    first, second = folder / "first", folder / "second"
    first.write_bytes(b"1")
    try:
        os.close(os.open(first, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        yield "exclusive creation overwrote an existing file"
    except FileExistsError:
        pass
    try:
        os.link(first, second)
    except OSError as error:
        yield f"link(2) fails: {error.strerror}"
    else:
        try:
            os.link(first, second)
            yield "link(2) overwrote an existing target"
        except FileExistsError:
            pass
    for path, flags in ((first, os.O_RDONLY), (folder, os.O_RDONLY | os.O_DIRECTORY)):
        descriptor = os.open(path, flags)
        try:
            os.fsync(descriptor)
        except OSError as error:
            yield f"fsync of a {'folder' if path == folder else 'file'} fails: {error.strerror}"
        finally:
            os.close(descriptor)
    with first.open("rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK,):
                yield f"flock fails: {error.strerror}"


def check_file_system(folder: Path, *, subject: str) -> list[Finding]:
    """Whether a folder lies on a kind of file system that suits it: state belongs on a local disk."""
    kind = file_system_of(_existing(folder), mounts=Path("/proc/mounts").read_text(encoding="utf-8", errors="replace"))
    if subject == "state" and kind in _NETWORK_FILE_SYSTEMS:
        return [_finding("warning", subject, f"{folder} lies on {kind}; its SQLite databases want a local disk", "set `state` to a local folder")]
    if kind in ("tmpfs", "ramfs"):
        return [_finding("warning", subject, f"{folder} lies in memory ({kind}) and is gone after a restart", f"set {subject} to a folder on disk")]
    return []


def file_system_of(folder: Path, *, mounts: str) -> str:
    """Returns the type of the file system that `folder` lies on, from the text of /proc/mounts."""
    best, kind = "", "unknown"
    for line in mounts.splitlines():
        fields = line.split()
        if len(fields) < 3:
            continue
        point = fields[1].replace("\\040", " ")
        if (folder == Path(point) or Path(point) in folder.parents) and len(point) >= len(best):
            best, kind = point, fields[2]
    return kind


def _existing(folder: Path) -> Path:
    """Returns the deepest existing folder on the way to `folder`."""
    return next(parent for parent in (folder, *folder.parents) if parent.is_dir())


# ---- clusters ---------------------------------------------------------------------------------------------------------


def check_clients(kind: ClusterKind) -> list[Finding]:
    """The scheduler's own programs, and whether it answers."""
    if kind is ClusterKind.LOCAL:
        return []
    missing = [name for name in _CLIENTS[kind] if shutil.which(name) is None]
    if missing:
        level = "error" if kind is ClusterKind.SLURM else "warning"
        return [_finding(level, kind.value, f"{', '.join(missing)} not found on PATH", "run Headrace where the scheduler's clients are installed")]
    question = ("sinfo", "--version") if kind is ClusterKind.SLURM else ("kubectl", "version", "--request-timeout=5s")
    answer = subprocess.run(question, capture_output=True, text=True, timeout=20, check=False)
    if answer.returncode:
        return [_finding("error", kind.value, f"{question[0]} fails: {answer.stderr.strip()[:200]}", "check your login, KUBECONFIG or slurm.conf")]
    return [_finding("ok", kind.value, answer.stdout.strip().splitlines()[0])]
