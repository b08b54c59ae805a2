"""A real job of a test: real supervisor, launcher and agents, fake programs. Whatever is left when the test ends is killed, by pid."""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from cluster.attempt import list_attempts, read_heartbeats, read_spec
from cluster.job_view import JobView
from cluster.launchers.local import LocalLauncher
from cluster.launchers.protocol import AGENT_MODULE, Launcher
from cluster.layout import ArtifactLayout, AttemptLayout
from cluster.storage import open_storage
from cluster.supervisor import run_job
from schemas.attempt import ExitRecord
from schemas.cluster_config import ClusterConfig
from schemas.job import JobSpec
from tests.fakes.gang_job import ENOUGH

PATIENCE_S = 180.0


class LiveJob:
    """A request and what becomes of it."""

    def __init__(self, request: JobSpec, *, launcher: Launcher | None = None, patience_s: float = PATIENCE_S) -> None:
        self.request = request
        self._launcher, self._patience_s = launcher, patience_s
        self.storage = open_storage(request.storage_root)
        self.layout = ArtifactLayout(request.artifact_key)
        self.views: list[JobView] = []
        self._act: Callable[[JobView], None] | None = None

    def run(self, **options: Any) -> ExitRecord:
        """Sees the job through; `when` may act on it meanwhile. A job that goes on for ever fails the test."""
        deadline = time.monotonic() + self._patience_s
        launcher = self._launcher or LocalLauncher(ClusterConfig())  # each time one without a memory, as another control process has it

        def on_view(view: JobView) -> None:
            assert time.monotonic() < deadline, f"the job does not end: {view}"
            self.views.append(view)
            if self._act is not None:
                self._act(view)

        return run_job(self.request, storage=self.storage, launcher=launcher, on_view=on_view, poll_s=0.05, **options)

    def when(self, condition: Callable[[JobView], bool], act: Callable[[], None]) -> None:
        """Does something once, at the first view for which the condition holds."""

        def once(view: JobView) -> None:
            if condition(view):
                self._act = None
                act()

        self._act = once

    def lasting(self, *, through: int = 0) -> "LiveJob":
        """From now on its ranks take steps until `let_go`, in attempts up to this one: whatever is to happen finds them at work."""
        self.request = self.request.model_copy(update={"options": {**self.request.options, "lasts": through}})
        return self

    def let_go(self) -> None:
        """Lets a job that lasts come to its end. Its storage is a folder."""
        folder = Path(self.request.storage_root, self.request.artifact_key)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ENOUGH).touch()

    def attempt(self, number: int = 0) -> AttemptLayout:
        return self.layout.attempt(self.request.step_name, number)

    @property
    def attempts(self) -> tuple[int, ...]:
        return list_attempts(self.storage, self.layout, step_name=self.request.step_name)

    def agents(self) -> list[psutil.Process]:
        """The live agents of this job's attempts."""
        keys = {read_spec(self.storage, self.attempt(number)).key for number in self.attempts}
        return [process for process in psutil.process_iter() if keys & set(_command_line(process)) and AGENT_MODULE in _command_line(process)]

    def family(self) -> list[psutil.Process]:
        """Agents, zygotes, ranks."""
        return [process for agent in self.agents() for process in (agent, *_descendants(agent))]

    def rank_pid(self, rank: int) -> int:
        """The pid that a rank told in its progress. A heartbeat may be replaced between listing and reading: then the next one tells."""
        attempt, found = self.attempt(self.attempts[-1]), list[int]()

        def is_told() -> bool:
            beats = read_heartbeats(self.storage, attempt)
            found.extend(progress.pid for beat in beats for progress in beat.ranks if progress.rank == rank)
            return bool(found)

        wait_until(is_told)
        return found[0]

    def sweep(self) -> None:
        """Kills what is left."""
        for process in self.family():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def wait_until(condition: Callable[[], bool], *, patience_s: float = PATIENCE_S) -> None:
    """Waits; a condition that never comes true fails the test, by its message and not by a hang."""
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    """The processes below one; none when it has just ended."""
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _command_line(process: psutil.Process) -> list[str]:
    try:
        return [] if process.status() == psutil.STATUS_ZOMBIE else process.cmdline()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return []
