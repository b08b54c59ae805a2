"""Secrets in the user's environment and in the recipe, a whole pipeline run with them, and a search for them in everything it left.

Also what can only be seen while it runs: who inherits what, what command lines say, where anything listens, whose code runs.
"""

import ipaddress
import os
import secrets
import stat
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from schemas.stage import Stage
from tests.fakes.mlflow_server import MlflowServer
from tests.fakes.tiny_pipeline import Project, make_project

pytestmark = pytest.mark.slow

OF_THE_USER = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "GITHUB_TOKEN", "SLURM_JWT", "PREFECT_API_KEY", "MLFLOW_TRACKING_TOKEN")
"""What a user's shell may hold and compute must never see."""


COMPUTE = ("cluster.agent.zygote", ".job --spec")
"""What marks the command line of a rank or a work item."""


def new_canary() -> str:
    return f"canary-{secrets.token_hex(8)}"


@dataclass
class Watch:
    """What was seen of a project's processes while it ran."""

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
        if any(program in line for program in COMPUTE):
            self.compute_pids.add(process.pid)
            self.leaks.update(f"{name} of {line[:80]}" for name, value in environment.items() if any(canary in value for canary in self.canaries))
        for connection in process.net_connections(kind="inet"):
            if connection.status == psutil.CONN_LISTEN:
                self.listeners.add((line[:80], connection.laddr.ip))


@dataclass(frozen=True)
class Outcome:
    """A finished pipeline that worked with secrets."""

    project: Project
    canaries: tuple[str, ...]
    environment: dict[str, str]
    watch: Watch
    said: str
    """Everything printed by all commands."""


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    folder = tmp_path_factory.mktemp("canaries")
    server = MlflowServer(folder)
    server.start()
    environment = {name: new_canary() for name in (*OF_THE_USER, "HEADRACE_TEST_SECRET")}
    secret_file = folder / "secret"
    secret_file.write_text(new_canary())
    canaries = (*environment.values(), secret_file.read_text())
    uri = server.uri.replace("http://", "http://me:${env:HEADRACE_TEST_SECRET}@")
    project = make_project(folder / "project", changes={"tracking.mlflow_uri": uri})
    for name in ("random.py", "sitecustomize.py", "torch.py"):
        (project.folder / name).write_text(f"import os\nos.makedirs({str(folder / 'ran')!r}, exist_ok=True)\n")
    said = []
    with Watch(project.folder, canaries) as watch:
        said.append(_call(project, environment, "run", "tiny.yaml", code=0))
    server.stop()
    gone = f"tracking.mlflow_uri=http://me:${{file:{secret_file}}}@127.0.0.1:{server.port}"
    said.append(_call(project, environment, "run", "tiny.yaml", "--set", gone, code=9))
    for arguments in (("status", "last", "--json"), ("plan", "tiny.yaml", "--json"), ("logs", "last"), ("verify", "tiny", "--json")):
        said.append(_call(project, environment, *arguments, code=0))
    time.sleep(1)
    return Outcome(project, canaries, environment, watch, "\n".join(said))


def _call(project: Project, environment: dict[str, str], *arguments: str, code: int) -> str:
    done = subprocess.run(
        project.argv(*arguments), cwd=project.folder, env=project.environment(environment), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == code, f"{arguments}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stdout + done.stderr
    return done.stdout + done.stderr


def test_no_secret_is_printed(outcome: Outcome) -> None:
    assert [canary for canary in outcome.canaries if canary in outcome.said] == []
    assert "MLflow at http://" in outcome.said, "the server that was gone is named all the same"


def test_no_secret_is_in_any_file(outcome: Outcome) -> None:
    """Run folder, journal, records, specs, logs, Prefect's database, MLflow's database and artifacts: everything below the test's folder."""
    top = outcome.project.folder.parent
    files = [path for path in top.rglob("*") if path.is_file() and path != top / "secret"]
    assert len(files) > 100
    names = {path.name for path in files}
    assert {"config.json", "record.json", "spec.json", "prefect.db", "server.db", "control.log"} <= names
    holders = {str(path.relative_to(top)) for path in files for canary in outcome.canaries if canary.encode() in path.read_bytes()}
    assert holders == set()


def test_compute_inherits_no_secret_and_no_command_line_holds_one(outcome: Outcome) -> None:
    assert len(outcome.watch.compute_pids) >= 4, "ranks and items were seen"
    assert outcome.watch.leaks == set()


def test_everything_listens_on_this_machine_alone(outcome: Outcome) -> None:
    assert outcome.watch.listeners, "Prefect's server was seen"
    assert {(line, ip) for line, ip in outcome.watch.listeners if not ipaddress.ip_address(ip).is_loopback} == set()


def test_nothing_of_the_projects_folder_was_run(outcome: Outcome) -> None:
    assert not (outcome.project.folder.parent / "ran").exists()


def test_nobody_else_may_write_what_was_left(outcome: Outcome) -> None:
    loose = [path for path in (outcome.project.folder / ".headrace").rglob("*") if not path.is_symlink() and path.stat().st_mode & stat.S_IWOTH]
    assert loose == []


def test_the_secret_was_used(outcome: Outcome) -> None:
    """A search for canaries proves nothing when they were never resolved: the first run reached its server."""
    assert (outcome.project.artifact(Stage.REGISTER.value) / "registration.json").exists()
