"""One finished pipeline for all tests that only look at it, or compare with it.

Run as a user runs it: on real text, through a real Prefect server and a real MLflow server, by the command line. Also with secrets in
the environment and in the recipe, in a folder with files that want to be imported, and watched while it ran.
"""

import os
import secrets
import threading
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.fakes.mlflow_server import MlflowServer
from tests.fakes.tiny_pipeline import Project, make_project

OF_THE_USER = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "GITHUB_TOKEN", "SLURM_JWT", "PREFECT_API_KEY", "MLFLOW_TRACKING_TOKEN")
"""What a user's shell may hold and compute must never see."""

IN_THE_RECIPE = "HEADRACE_TEST_SECRET"
"""What the recipe refers to."""

TRAINING = {"training.steps": 200, "checkpoint.every_steps": 5, "tracking.validate_every_steps": 100}
"""Its training, which a project with these changes finds: long enough that it can be disturbed in the middle, also on a fast machine."""

_COMPUTE = ("cluster.agent.zygote", ".job --spec")
"""What marks the command line of a rank or a work item."""


def new_canary() -> str:
    """Returns a secret that is found wherever it leaks."""
    return f"canary-{secrets.token_hex(8)}"


@dataclass
class Watch:
    """What was seen of a project's processes while it ran: who inherits what, what command lines say, where anything listens."""

    folder: Path
    canaries: tuple[str, ...]
    leaks: set[str] = field(default_factory=set)
    compute_pids: set[int] = field(default_factory=set)
    listeners: set[tuple[str, str]] = field(default_factory=set)
    """(program, address)."""
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> "Watch":
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.3):
            for process in psutil.process_iter():
                try:
                    self._look_at(process)
                except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                    continue

    def _look_at(self, process: psutil.Process) -> None:
        line = " ".join(process.cmdline())
        environment = process.environ()
        if process.pid == os.getpid() or str(self.folder) not in line + " ".join(environment.values()):
            return
        self.leaks.update(f"command line of {line[:80]}" for canary in self.canaries if canary in line)
        if any(program in line for program in _COMPUTE):
            self.compute_pids.add(process.pid)
            self.leaks.update(f"{name} of {line[:80]}" for name, value in environment.items() if any(canary in value for canary in self.canaries))
        for connection in process.net_connections(kind="inet"):
            if connection.status == psutil.CONN_LISTEN:
                self.listeners.add((line[:80], connection.laddr.ip))


@dataclass(frozen=True)
class FinishedPipeline:
    """A finished pipeline, and what was seen of it."""

    project: Project
    server: MlflowServer
    """Where it tracked."""
    watch: Watch
    said: str
    """Everything that the run printed."""
    trap: Path
    """Is there when a file of the project's folder was run."""


def finish_pipeline(folder: Path, server: MlflowServer) -> FinishedPipeline:
    """Runs the pipeline once, in `folder`."""
    environment = {name: new_canary() for name in (*OF_THE_USER, IN_THE_RECIPE)}
    uri = server.uri.replace("http://", f"http://me:${{env:{IN_THE_RECIPE}}}@")
    project = make_project(folder / "project", changes={**TRAINING, "tracking.mlflow_uri": uri}, secrets=environment)
    trap = folder / "ran"
    for name in ("random.py", "sitecustomize.py", "torch.py"):
        (project.folder / name).write_text(f"import os\nos.makedirs({str(trap)!r}, exist_ok=True)\n")
    with Watch(project.folder, tuple(environment.values())) as watch:
        done = project.headrace("run", "tiny.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return FinishedPipeline(project=project, server=server, watch=watch, said=done.stdout + done.stderr, trap=trap)
