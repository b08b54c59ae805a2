"""Trouble with Slurm, made on purpose: its commands behind programs that fail, hang and lie as told, and what an administrator does to jobs."""

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cluster.attempt import read_exit, read_spec
from cluster.epoch import newest_epoch, read_epoch
from cluster.job_view import JobView
from cluster.launchers.slurm import SlurmLauncher
from cluster.launchers.slurm_queue import ANSWER_S, call
from schemas.attempt import ExitRecord
from schemas.cluster_config import ClusterConfig, ClusterKind
from schemas.exit_code import ExitCode
from schemas.job import JobSpec
from tests.fakes.child_process import running
from tests.fakes.live_job import LiveJob, wait_until

CHECKOUT = Path(__file__).resolve().parents[2]
COMMANDS = ("sbatch", "squeue", "scancel", "sacct")
MAIN = ClusterConfig(kind=ClusterKind.SLURM, queue="main")
"""Jobs in the default partition."""
CPU = ClusterConfig(kind=ClusterKind.SLURM, queue="cpu")
"""The partition that tests switch off."""
LOST_AFTER_S = 4.0
"""Of jobs that say nothing else."""
SAVED_AFTER_S = 3.0
"""A controller that dies sooner after a submission has not saved it, and forgets the job."""

MakeJob = Callable[..., LiveJob]
SOON_S = 3.0
"""When a command that hangs on purpose is given up."""
_ACTIVE = "PENDING,RUNNING,SUSPENDED,COMPLETING,CONFIGURING"

_SHIM = """#!/bin/bash
# {name}: does what the newest wish says, or what Slurm's own does.
cd {folder}
echo x >>{name}.calls
mv {name}.once {name}.now.$$ 2>/dev/null || cp {name}.always {name}.now.$$ 2>/dev/null
wish=$(cat {name}.now.$$ 2>/dev/null)
fail() {{ echo "{name}: error: Unable to contact slurm controller (connect failure)" >&2; exit 1; }}
case "$wish" in
  "") exec {real} "$@" ;;
  fail) fail ;;
  hang) sleep 3600; fail ;;
  lie) exit 0 ;;
  take-and-fail) {real} "$@" >/dev/null; fail ;;
  take-and-hang) {real} "$@" >/dev/null; sleep 3600 ;;
  take-twice) cat >script.$$; {real} "$@" <script.$$ >/dev/null; exec {real} "$@" <script.$$ ;;
  take-late) cat >late.part; printf '%s\\n' "$@" >late.options; mv late.part late.script; fail ;;
  die) kill -KILL $PPID; exit 1 ;;
  take-and-die) {real} "$@"; kill -KILL $PPID ;;
  *) echo "no such wish: $wish" >&2; exit 1 ;;
esac
"""
"""`lie`: answers, with nothing in it. `late`: the request is under way, and arrives when the test says so. `die`: whoever called is killed."""

_SUPERVISE = """
import sys
from schemas.job import JobSpec
from tests.chaos.slurm_trouble import slurm_job
record = slurm_job(JobSpec.model_validate_json(sys.stdin.read())).run()
sys.exit(int(record.exit_code))
"""


def slurm_job(request: JobSpec, *, cluster: ClusterConfig = MAIN, patience_s: float = 300.0, answer_s: float = ANSWER_S) -> LiveJob:
    """Returns the job for the tests' cluster. `answer_s`: when a command that does not answer is given up."""
    return LiveJob(request, launcher=SlurmLauncher(cluster, run=partial(call, answer_s=answer_s)), patience_s=patience_s)


@contextmanager
def supervising(request: JobSpec) -> Iterator["subprocess.Popen[bytes]"]:
    """A supervisor of the job in a process of its own, at most as long as the body."""
    with running(sys.executable, "-c", _SUPERVISE, stdin=subprocess.PIPE, cwd=CHECKOUT) as process:
        assert process.stdin is not None
        with process.stdin as stream:
            stream.write(request.model_dump_json().encode())
        yield process


class Shims:
    """Slurm's commands as this process and its children find them on PATH."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self._folder = folder
        folder.mkdir()
        for name in COMMANDS:
            real = shutil.which(name)
            assert real is not None
            (folder / name).write_text(_SHIM.format(name=name, folder=shlex.quote(str(folder)), real=real))
            (folder / name).chmod(0o755)
        patch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def let(self, name: str, wish: str, *, once: bool = False) -> None:
        """From now on a command does as wished; `once`: only the next time."""
        part = self._folder / f"{name}.part"
        part.write_text(wish)
        part.rename(self._folder / f"{name}.{'once' if once else 'always'}")

    def heal(self, *names: str) -> None:
        """Commands are Slurm's own again; all, when none is named."""
        for name in names or COMMANDS:
            for kind in ("once", "always"):
                (self._folder / f"{name}.{kind}").unlink(missing_ok=True)

    def calls(self, name: str) -> int:
        """Returns how often a command was called."""
        calls = self._folder / f"{name}.calls"
        return len(calls.read_text().splitlines()) if calls.exists() else 0

    def arrive(self) -> None:
        """Submits what `take-late` kept back."""
        options = (self._folder / "late.options").read_text().split()
        slurm("sbatch", *options, stdin=(self._folder / "late.script").read_text())


def slurm(*argv: str, stdin: str = "") -> str:
    """Returns what one of Slurm's own commands prints; one that fails fails the test."""
    real = shutil.which(argv[0], path="/usr/sbin:/usr/bin:/usr/local/bin")
    assert real is not None
    done = subprocess.run((real, *argv[1:]), input=stdin, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def job_ids(job: LiveJob, *, active: bool = True) -> list[str]:
    """Returns the jobs that Slurm has for this one's attempts, oldest first; `active`: only those that have not ended."""
    keys = [read_spec(job.storage, job.attempt(number)).key for number in job.attempts]
    if not keys:
        return []
    states = _ACTIVE if active else "all"
    return sorted(slurm("squeue", "--noheader", f"--states={states}", f"--name={','.join(keys)}", "--format=%A").split(), key=int)


def starts(job: LiveJob) -> list[int]:
    """Returns the attempt of every start of ranks there ever was: what took effect."""
    newest = newest_epoch(job.storage, job.layout)
    return [read_epoch(job.storage, job.layout, number).attempt for number in range(newest + 1)]


def leaves_nothing(job: LiveJob) -> bool:
    """Whether neither a job nor a process of it is left."""
    return job_ids(job) == [] and job.family() == []


def sweep(job: LiveJob) -> None:
    """Ends what is left of a job, however the test ended."""
    for job_id in job_ids(job):
        slurm("scancel", "--quiet", job_id)
    job.sweep()
    wait_until(lambda: leaves_nothing(job))


@contextmanager
def partition_down(name: str) -> Iterator[None]:
    """A partition whose jobs wait."""
    slurm("scontrol", "update", f"PartitionName={name}", "State=DOWN")
    try:
        yield
    finally:
        slurm("scontrol", "update", f"PartitionName={name}", "State=UP")


def repair(cluster: Any) -> None:
    """Brings back what a test has switched off."""
    for name in cluster.daemons:
        cluster.start(name)
    if not cluster.healthy():
        for name in cluster.nodes:
            cluster.ask("scontrol", "update", f"NodeName={name}", "State=RESUME")
    wait_until(cluster.healthy)


def is_pending(view: JobView) -> bool:
    """Whether the launcher says that the job waits."""
    return view.job is not None and view.job.told.startswith("PENDING")


def works(view: JobView) -> bool:
    return view.committed_step >= 5


def own_step(view: JobView) -> int:
    """The newest step that this attempt's ranks say: the view's own is the earlier attempt's until they speak."""
    return max((rank.step for beat in view.heartbeats for rank in beat.ranks), default=0)


def after(seconds: float) -> Callable[[JobView], bool]:
    """Comes true so long after now."""
    until = time.monotonic() + seconds
    return lambda _view: time.monotonic() > until


def record_of(job: LiveJob, number: int) -> ExitRecord:
    record = read_exit(job.storage, job.attempt(number))
    assert record is not None
    return record


def went_through(job: LiveJob, record: ExitRecord, *, attempts: list[int]) -> None:
    """The job is done, these attempts took effect in this order, and nothing is left."""
    assert record.exit_code is ExitCode.DONE, record.message
    assert starts(job) == attempts, record.incidents
    wait_until(lambda: leaves_nothing(job))
