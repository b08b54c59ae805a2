"""Jobs as processes of this machine: one detached agent per "node", found again by the attempt key in their command lines."""

import os
import secrets
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psutil

from cluster.environment import checkout
from cluster.launchers.protocol import AGENT_MODULE, Command, Handle, JobReport, JobState, Submission
from cluster.layout import ArtifactLayout
from cluster.process import ProcessId, is_dead, process_table
from schemas.cluster_config import ClusterConfig
from schemas.errors import UnreachableError
from schemas.job import JobSpec

_SUBMISSION = "--submission"
_START_TIMEOUT_S = 60.0


class LocalLauncher:
    """Starts agents on this machine. They live in sessions of their own and survive the process that submitted them."""

    kind = "local"

    def __init__(self, cluster: ClusterConfig) -> None:
        """Args: cluster: for the interpreter of each stage."""
        self._cluster = cluster
        self._submitted: dict[str, tuple[ProcessId, ...]] = {}

    def render(self, spec: JobSpec) -> Submission:
        """See `Launcher.render`: one command per node."""
        python = self._cluster.resources(spec.stage).python or sys.executable
        commands = tuple(self._command(spec, python=python, node_rank=rank) for rank in range(spec.num_nodes))
        return Submission(key=spec.key, text="\n".join(shlex.join(command.argv) for command in commands) + "\n", commands=commands)

    def submit(self, submission: Submission) -> Handle:
        """See `Launcher.submit`. The agents detach themselves and say their pids."""
        token = secrets.token_hex(4)
        agents = []
        for command in submission.commands:
            argv = (*command.argv, _SUBMISSION, token)
            try:
                started = subprocess.run(
                    argv,
                    env={**os.environ, **command.env},
                    cwd=command.cwd,
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    text=True,
                    timeout=_START_TIMEOUT_S,
                    check=False,
                )
            except (OSError, subprocess.TimeoutExpired) as error:
                raise UnreachableError(f"the agent of job {submission.key} cannot be started", why=str(error), mend=_MEND) from error
            if started.returncode != 0:
                why = started.stderr.strip()[-2000:] or f"exit code {started.returncode}"
                raise UnreachableError(f"the agent of job {submission.key} did not start", why=why, mend=_MEND)
            pid, since = started.stdout.split()
            agents.append(ProcessId(host=socket.gethostname(), table=process_table(), pid=int(pid), started=float(since)))
        self._submitted[submission.key] = (*self._submitted.get(submission.key, ()), *agents)
        return Handle(key=submission.key, job_id="+".join(str(agent.pid) for agent in agents))

    def query(self, keys: Sequence[str]) -> Mapping[str, JobReport]:
        """See `Launcher.query`. Of what is not found only what was submitted here is known to have ended: the rest may run on another machine."""
        found = {key for key, _ in _agents()}
        return {key: JobReport(JobState.RUNNING if key in found else JobState.ENDED if self._has_ended(key) else JobState.ABSENT) for key in keys}

    def cancel(self, key: str) -> None:
        """See `Launcher.cancel`."""
        for found, process in _agents():
            if found == key:
                try:
                    process.send_signal(signal.SIGTERM)
                except psutil.NoSuchProcess:
                    continue  # it ended by itself

    def release(self, key: str) -> None:
        """See `Launcher.release`: ended processes leave nothing."""

    def _has_ended(self, key: str) -> bool:
        agents = self._submitted.get(key, ())
        return bool(agents) and all(is_dead(agent) for agent in agents)

    def _command(self, spec: JobSpec, *, python: str, node_rank: int) -> Command:
        attempt = ArtifactLayout(spec.artifact_key).attempt(spec.step_name, spec.attempt)
        log = Path(spec.scratch_dir) / f"n{node_rank:04d}" / "agent.log"
        arguments = {
            "--storage": spec.storage_root,
            "--attempt": attempt.key,
            "--key": spec.key,
            "--node-rank": str(node_rank),
            "--advertise": "127.0.0.1",
            "--detach": str(log),
        }
        argv = (python, "-P", "-m", AGENT_MODULE, *(word for pair in arguments.items() for word in pair))
        return Command(argv=argv, env={"PYTHONPATH": str(checkout())}, cwd=spec.project_dir)


def _agents() -> Iterator[tuple[str, psutil.Process]]:
    """Yields (attempt key, process) of the agents that run on this machine."""
    for process in psutil.process_iter():
        try:
            line = process.cmdline()
            if AGENT_MODULE in line and "--key" in line and process.status() != psutil.STATUS_ZOMBIE:
                yield line[line.index("--key") + 1], process
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue  # ended meanwhile, or another user's


_MEND = "check cluster.python (or cluster.stages.….python) and that the environment is whole: make venv"
