"""The command that moves an alias back, on a registry in memory."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.storage import FileStorage
from flows import cli
from flows.rollback import name_and_alias
from schemas.canonical import canonical_json
from schemas.errors import InputError
from schemas.journal import RunFile
from tasks import mlflow_registry
from tasks.register.promotion import CANDIDATE, CHAMPION, promote
from tasks.runs import Run
from tests.fakes.in_process_work import config_with
from tests.fakes.model_registry import FakeRegistry

RUN_ID = "demo-20261122t020000-7f3a"


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeRegistry:
    """A storage with a run that promoted versions 1 and 2 of `demo` to champion, and the registry they are in."""
    registry, storage = FakeRegistry(), FileStorage(tmp_path)
    config = config_with(name="demo", storage={"root": str(tmp_path)}, tracking={"mlflow_uri": "http://bot:${env:HEADRACE_TEST_PW}@mlflow"})
    fields: dict[str, Any] = {"run_id": RUN_ID, "recipe": "r.yaml", "overrides": (), "from_stage": None, "project_dir": "/p", "state_dir": "/s"}
    file = RunFile(**fields, config=config.model_dump(mode="json"), created_at=0.0, argv=())
    storage.create_exclusive(Run(storage, RUN_ID).layout.config, canonical_json(file))
    for version in (1, 2):
        registry.create_version("demo", model_id="m", tags={"headrace.root_hash": "a"}, description="")
        for alias in (CANDIDATE, CHAMPION):
            promote(registry, storage, model_name="demo", alias=alias, version=version, root_hash="a", run_id=RUN_ID, reason="gate")

    def opened(connection: mlflow_registry.MlflowConnection) -> FakeRegistry:
        assert connection.target.uri == "http://bot:${env:HEADRACE_TEST_PW}@mlflow", "where MLflow is, the run tells"
        return registry

    monkeypatch.setattr(mlflow_registry, "ModelRegistry", opened)
    return registry


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["headrace", "rollback", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return int(caught.value.code or 0)


def test_one_command_goes_back(registry: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "demo", "--storage", str(tmp_path)) == 0
    assert registry.aliases == {("demo", CANDIDATE): 2, ("demo", CHAMPION): 1}
    assert "demo@champion is version 1 again; it was version 2" in capsys.readouterr().out
    assert call(monkeypatch, "models:/demo@candidate", "--storage", str(tmp_path), "--json") == 0
    moved = json.loads(capsys.readouterr().out)
    assert (moved["alias"], moved["previous"], moved["version"]) == (CANDIDATE, 2, 1)
    assert "@" in moved["run_id"], "who did it"
    assert call(monkeypatch, "demo", "--storage", str(tmp_path)) == 2
    assert "no earlier version" in capsys.readouterr().err


def test_a_move_that_overtakes_the_rollback_is_told(
    registry: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    registry.create_version("demo", model_id="m", tags={"headrace.root_hash": "a"}, description="")

    def be_overtaken(operation: str) -> None:
        if operation == "set_alias":
            registry.before = lambda name: None
            storage = FileStorage(tmp_path)
            promote(registry, storage, model_name="demo", alias=CHAMPION, version=3, root_hash="a", run_id=RUN_ID, reason="gate")

    registry.before = be_overtaken
    assert call(monkeypatch, "demo", "--storage", str(tmp_path)) == 0
    assert registry.aliases["demo", CHAMPION] == 3
    assert "demo@champion was moved back to version 1, and is version 3 now" in capsys.readouterr().out


def test_the_history_moves_nothing(
    registry: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = dict(registry.aliases)
    assert call(monkeypatch, "demo", "--history", "--storage", str(tmp_path)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[2:6] for line in lines] == [
        ["@candidate", "-", "->", "1"],
        ["@champion", "-", "->", "1"],
        ["@candidate", "1", "->", "2"],
        ["@champion", "1", "->", "2"],
    ]
    assert call(monkeypatch, "demo", "--alias", "champion", "--history", "--storage", str(tmp_path), "--json") == 0
    assert [move["version"] for move in json.loads(capsys.readouterr().out)] == [1, 2]
    assert registry.aliases == before


@pytest.mark.usefixtures("registry")
def test_an_unknown_model_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for more in ((), ("--history",)):
        assert call(monkeypatch, "dmeo", *more, "--storage", str(tmp_path)) == 2
        assert "'dmeo'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "alias", "expected"),
    [
        ("demo", None, ("demo", "champion")),
        ("models:/demo@candidate", None, ("demo", "candidate")),
        ("demo", "best", ("demo", "best")),
        ("demo@best", "best", ("demo", "best")),
    ],
)
def test_names(model: str, alias: str | None, expected: tuple[str, str]) -> None:
    assert name_and_alias(model, alias=alias) == expected


@pytest.mark.parametrize(("model", "alias"), [("demo/3", None), ("", None), ("demo@champion", "candidate")])
def test_names_that_are_refused(model: str, alias: str | None) -> None:
    with pytest.raises(InputError):
        name_and_alias(model, alias=alias)
