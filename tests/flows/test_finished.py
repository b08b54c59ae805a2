"""An answer "nothing to do" that is given again: the same to the byte, and to the plainest questions only."""

import json
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import pytest

from tests.fakes.finished_store import finish_store
from tests.fakes.remembered_project import RUN, ask, make_finished_project, remembered, remembered_of
from tests.fakes.tiny_pipeline import ROOT, Project, make_project


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    return make_finished_project(tmp_path, monkeypatch)


@pytest.mark.slow
def test_a_new_process_answers_the_same_without_what_found_the_answer(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project", changes={"evaluation.prompts": []})  # which makes a warning
    finish_store(project)
    time.sleep(2.1)  # files are believed when they are older than the process by two seconds
    code = "import sys; old = {*sys.modules}; from flows.finished import main; main(); print(*{*sys.modules} - old, file=open('modules', 'w'))"
    answers: list[tuple[int, str, str]] = []
    for arguments in (RUN, RUN, (*RUN, "--json")):
        (project.folder / "modules").unlink(missing_ok=True)
        program = [sys.executable, "-P", "-c", code, *arguments]
        done = subprocess.run(program, cwd=project.folder, env=project.environment(), capture_output=True, text=True, timeout=60)
        answers.append((done.returncode, done.stdout, done.stderr))
    loaded = (project.folder / "modules").read_text().split()  # typer ends the process, so only the short way writes it
    assert {name for name in loaded if name.partition(".")[0] not in sys.stdlib_module_names} == {"flows", "flows.finished"}
    found = project.here(*RUN)
    assert answers[0] == answers[1] == (found.code, found.out, found.err)
    assert "warning: evaluation.max_new_tokens" in found.err
    assert json.loads(answers[2][1]) == json.loads(project.here(*RUN, "--json").out)
    assert answers[2][1] == project.here(*RUN, "--json").out


def test_what_is_remembered_is_what_is_printed(project: Project) -> None:
    found = ask(project)
    known = remembered(project)
    assert known is not None
    assert (known["text"] + "\n", known["json"] + "\n") == (found.out, ask(project, *RUN, "--json").out)
    assert found.out == "nothing to do: models:/tiny@champion, version 1, is made from exactly this\n"


def test_the_program_is_this_one() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    assert 'headrace = "flows.finished:main"' in text


@pytest.mark.parametrize(
    ("name", "value"),
    [("HOME", "/elsewhere"), ("PYTHONPATH", "/elsewhere"), ("PYTHONHASHSEED", "1"), ("PYTHONSAFEPATH", "1"), ("PYDANTIC_DISABLE_PLUGINS", "1")],
)
def test_a_variable_that_counts_is_compared(name: str, value: str, project: Project) -> None:
    ask(project)
    with mock.patch.dict(project.secrets, {name: value}):  # type: ignore[arg-type]  # a dict, in truth
        assert remembered(project) is None
    assert remembered(project) is not None


@pytest.mark.parametrize("attribute", ["path", "version", "executable", "prefix"])
def test_another_python_is_another_answer(attribute: str, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    ask(project)
    monkeypatch.setattr(sys, attribute, [*sys.path, "/elsewhere"] if attribute == "path" else "other")
    assert remembered(project) is None


def test_a_reference_must_still_stand_for_something(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    override = "tracking.mlflow_uri=http://me:${env:OF_THIS_TEST}@127.0.0.1:1"
    monkeypatch.setenv("OF_THIS_TEST", "hidden-7f3a")
    finish_store(project, [override])
    asked = (*RUN, "--set", override)
    assert ask(project, *asked).code == 0
    assert remembered(project, *asked) is not None
    (certificate,) = (project.folder / ".headrace" / "certificates").iterdir()
    assert "hidden-7f3a" not in certificate.read_text()
    monkeypatch.delenv("OF_THIS_TEST")
    assert remembered(project, *asked) is None


def test_only_the_plainest_questions_are_looked_up(project: Project) -> None:
    ask(project)
    for arguments in (
        (),
        ("run",),
        ("run", "tiny.yaml", "tiny.yaml"),
        ("run", "tiny.yaml", "--from", "train"),
        ("run", "tiny.yaml", "--help"),
        ("run", "tiny.yaml", "--set"),
        ("run", "tiny.yaml", "--set", "--json"),
        ("run", "tiny.yaml", "--set=name=tiny"),
        ("run", "--", "tiny.yaml"),
        ("run", "~/tiny.yaml"),
        ("run", ""),
        ("--json", "run", "tiny.yaml"),
        ("plan", "tiny.yaml"),
        ("demo", "tiny.yaml"),
    ):
        assert remembered_of(project, arguments) is None, arguments
    assert remembered(project) is not None


def test_overrides_are_part_of_the_question(project: Project) -> None:
    ask(project)
    assert remembered(project, *RUN, "--set", "training.steps=13") is None


def test_options_may_stand_anywhere(project: Project) -> None:
    ask(project, *RUN, "--set", "training.seed=1234")
    ask(project)
    assert remembered(project, "run", "--json", "tiny.yaml") is not None
