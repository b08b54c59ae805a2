"""What only the demo does: whether it kills, what it leaves alone, and what it tells to do next."""

import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from cluster.layout import REPORT_NAME
from cluster.storage import FileStorage
from flows import demo
from flows.conduct import isolate
from flows.demo import data_report, kill_is_wanted, killing_a_rank, next_commands
from schemas.journal import RunHandle
from tests.fakes.in_process_work import config_with


@pytest.mark.parametrize(
    ("environment", "wanted"), [({}, True), ({"DEMO_KILL": "1"}, True), ({"DEMO_KILL": "0"}, False), ({"DEMO_KILL": "no"}, False)]
)
def test_the_kill_can_be_switched_off(environment: dict[str, str], wanted: bool) -> None:
    assert kill_is_wanted(environment) is wanted


def test_ambient_services_do_not_reach_the_demo(tmp_path: Path) -> None:
    environment = {
        "PREFECT_API_URL": "a",
        "MLFLOW_TRACKING_URI": "b",
        "AWS_PROFILE": "c",
        "KUBECONFIG": "d",
        "PATH": "/bin",
        "HF_HOME": "/home/me",
        "LANG": "C",
    }
    isolate(environment, state_dir=tmp_path)
    assert {name: value for name, value in environment.items() if str(tmp_path) not in value} == {"PATH": "/bin", "LANG": "C"}
    assert environment["HF_HOME"] == str(tmp_path / "huggingface")
    assert environment["TORCH_EXTENSIONS_DIR"] == str(tmp_path / "torch-extensions")


def test_next_commands_are_as_short_as_the_folder_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(sys, "executable", str(tmp_path / ".venv" / "bin" / "python"))
    monkeypatch.chdir(tmp_path)
    commands = dict(next_commands("models:/demo@champion", state_dir=tmp_path / ".headrace" / "state"))
    assert commands == {
        "verify": ".venv/bin/headrace verify models:/demo@champion",
        "your text": ".venv/bin/headrace init my.yaml --text FOLDER",
        "curves": ".venv/bin/mlflow ui --backend-store-uri sqlite:///.headrace/state/mlflow.db",
        "flow run": "PREFECT_HOME=.headrace/state/prefect .venv/bin/prefect server start",
    }
    monkeypatch.chdir("/")
    assert str(tmp_path / ".headrace/state/mlflow.db") in dict(next_commands("m", state_dir=tmp_path / ".headrace" / "state"))["curves"]


def test_the_data_report_is_named_where_there_is_one_to_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    storage = FileStorage(tmp_path / "data")
    assert data_report(storage, "validate/demo-0") == []
    storage.create_exclusive(f"validate/demo-0/{REPORT_NAME}", b"page")
    assert data_report(storage, "validate/demo-0") == [("data", "data/validate/demo-0/report/index.html")]


def test_a_kill_that_fails_is_no_trace_on_the_screen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    called = threading.Event()

    def fail(*_: Any, **__: Any) -> None:
        called.set()
        raise RuntimeError("odd")

    monkeypatch.delenv("DEMO_KILL", raising=False)
    monkeypatch.setattr(demo, "kill_rank", fail)
    config = config_with(cluster={"kind": "local", "ranks_per_node": 2})
    handle = RunHandle(run_id="demo-20261122t020000-7f3a", storage_root=str(tmp_path), state_dir=str(tmp_path))
    with killing_a_rank(handle, config):
        assert called.wait(timeout=10)
    assert capsys.readouterr().err == ""
