"""Secrets in the user's environment and in the recipe, a whole pipeline run with them, and a search for them in everything it left.

Also what can only be seen while it runs: who inherits what, what command lines say, where anything listens, whose code runs.
"""

import ipaddress
import stat
from dataclasses import dataclass
from pathlib import Path

import pytest

from schemas.exit_code import ExitCode
from schemas.stage import Stage, stages_of
from tests.fakes.finished_pipeline import TRAINING, FinishedPipeline, Watch, new_canary
from tests.fakes.tiny_pipeline import Project, make_project

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Outcome:
    """A finished pipeline that worked with secrets, and a copy of it that lost its tracking server."""

    top: Path
    """Holds both projects, and the tracking server's database and artifacts."""
    secret_file: Path
    project: Project
    canaries: tuple[str, ...]
    watch: Watch
    trap: Path
    said: str
    """Everything printed by all commands."""


@pytest.fixture(scope="module")
def outcome(finished_pipeline: FinishedPipeline) -> Outcome:
    project, top = finished_pipeline.project, finished_pipeline.server.folder
    secret_file = top / "secret"
    secret_file.write_text(new_canary())
    gone = f"http://me:${{file:{secret_file}}}@127.0.0.1:9"
    lost = make_project(top / "lost", changes={**TRAINING, "tracking.mlflow_uri": gone}, secrets=project.secrets)
    lost.take(project, *(stage.value for stage in stages_of(prepared=False) if stage is not Stage.REGISTER))
    done = lost.headrace("run", "tiny.yaml")
    said = [finished_pipeline.said, done.stdout, done.stderr]
    assert done.returncode == ExitCode.UNREACHABLE, said
    looks = (("status", "last", "--json"), ("plan", "tiny.yaml", "--json"), ("logs", "last"))
    for asked, arguments in (*((asked, look) for asked in (lost, project) for look in looks), (project, ("verify", "tiny", "--json"))):
        answer = asked.here(*arguments)
        assert answer.code == 0, f"{arguments}: exit {answer.code}\n{answer.out}\n{answer.err}"
        said += [answer.out, answer.err]
    assert [asked.left_behind() for asked in (lost, project)] == [[], []], "what their servers still write is written"
    canaries = (*project.secrets.values(), secret_file.read_text())
    return Outcome(top, secret_file, project, canaries, finished_pipeline.watch, finished_pipeline.trap, "\n".join(said))


def test_no_secret_is_printed(outcome: Outcome) -> None:
    assert [canary for canary in outcome.canaries if canary in outcome.said] == []
    assert "Traceback" not in outcome.said
    assert "MLflow at http://" in outcome.said, "the server that was gone is named all the same"


def test_no_secret_is_in_any_file(outcome: Outcome) -> None:
    """Run folder, journal, records, specs, logs, Prefect's database, MLflow's database and artifacts: everything below the test's folder."""
    files = [path for path in outcome.top.rglob("*") if path.is_file() and path != outcome.secret_file]
    assert len(files) > 100
    names = {path.name for path in files}
    assert {"config.json", "record.json", "spec.json", "prefect.db", "server.db", "control.log"} <= names
    holders = {str(path.relative_to(outcome.top)) for path in files for canary in outcome.canaries if canary.encode() in path.read_bytes()}
    assert holders == set()


def test_compute_inherits_no_secret_and_no_command_line_holds_one(outcome: Outcome) -> None:
    assert len(outcome.watch.compute_pids) >= 4, "ranks and items were seen"
    assert outcome.watch.leaks == set()


def test_everything_listens_on_this_machine_alone(outcome: Outcome) -> None:
    assert outcome.watch.listeners, "Prefect's server was seen"
    assert {(line, ip) for line, ip in outcome.watch.listeners if not ipaddress.ip_address(ip).is_loopback} == set()


def test_nothing_of_the_projects_folder_was_run(outcome: Outcome) -> None:
    assert not outcome.trap.exists()


def test_nobody_else_may_write_what_was_left(outcome: Outcome) -> None:
    loose = [path for path in (outcome.project.folder / ".headrace").rglob("*") if not path.is_symlink() and path.stat().st_mode & stat.S_IWOTH]
    assert loose == []


def test_the_secret_was_used(outcome: Outcome) -> None:
    """A search for canaries proves nothing when they were never resolved: the first run reached its server."""
    assert (outcome.project.artifact(Stage.REGISTER.value) / "registration.json").exists()
