"""The whole pipeline as a user runs it, on real text, through a real Prefect server and a real MLflow server."""

import json
import shutil
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from schemas.stage import Stage, stages_of
from tests.fakes.finished_pipeline import TRAINING
from tests.fakes.mlflow_server import MlflowServer
from tests.fakes.tiny_pipeline import Project

pytestmark = pytest.mark.slow


def get(server: MlflowServer, path: str, **query: str) -> Any:
    with urllib.request.urlopen(f"{server.uri}/api/2.0/mlflow/{path}?{urllib.parse.urlencode(query)}", timeout=20) as answer:
        return json.load(answer)


def post(server: MlflowServer, path: str, body: Any) -> Any:
    request = urllib.request.Request(f"{server.uri}/api/2.0/mlflow/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.load(answer)


def test_every_stage_leaves_a_record(finished: Project) -> None:
    view = finished.answer("status", finished.run_ids()[0])
    assert view["state"] == "finished"
    assert [(stage["stage"], stage["state"]) for stage in view["stages"]] == [(stage.value, "made") for stage in stages_of(prepared=False)]


def test_a_second_run_has_nothing_to_do(finished: Project) -> None:
    runs = finished.run_ids()
    done = finished.headrace("run", "tiny.yaml")
    assert done.returncode == 0
    assert "nothing to do" in done.stdout
    assert finished.run_ids() == runs, "nothing to do leaves no run behind"


def test_a_change_is_planned_with_its_reason_and_nothing_before_it(finished: Project) -> None:
    plan = finished.answer("plan", "tiny.yaml", "--set", "training.optimizer.learning_rate=0.001")
    actions = {stage["stage"]: stage["action"] for stage in plan["stages"]}
    assert [actions[stage] for stage in ("validate", "tokenizer", "tokenize")] == ["reuse"] * 3
    assert actions["train"] == "build"
    assert {actions[stage] for stage in ("export", "evaluate", "register")} == {"depends"}
    reasons = next(stage["reasons"] for stage in plan["stages"] if stage["stage"] == "train")
    assert reasons == ["training.optimizer.learning_rate: 0.003 -> 0.001"]


def test_mlflow_holds_one_run_with_its_curves_and_one_version(finished: Project, mlflow_server: MlflowServer) -> None:
    experiment = get(mlflow_server, "experiments/get-by-name", experiment_name="tiny")["experiment"]["experiment_id"]
    (run,) = post(mlflow_server, "runs/search", {"experiment_ids": [experiment]})["runs"]
    assert run["info"]["status"] == "FINISHED"
    history = get(mlflow_server, "metrics/get-history", run_id=run["info"]["run_id"], metric_key="loss")["metrics"]
    assert sorted(int(point["step"]) for point in history) == list(range(1, TRAINING["training.steps"] + 1))
    (version,) = get(mlflow_server, "model-versions/search", filter="name='tiny'")["model_versions"]
    tags = {tag["key"]: tag["value"] for tag in version["tags"]}
    root = json.loads((finished.artifact("export") / "record.json").read_text())["content_hash"]
    assert root in tags.values()


def test_verify_passes_and_names_every_damaged_file(finished: Project, tmp_path: Path) -> None:
    whole = finished.headrace("verify", "tiny")
    assert whole.returncode == 0, whole.stdout + whole.stderr
    victims = [
        next((finished.artifact("tokenize") / "shards").iterdir()),
        next((finished.artifact("train") / "checkpoints").glob("*/rank-0001.bin")),
        max((finished.artifact("train") / "commits").iterdir()),
        finished.artifact("export") / "model" / "model.safetensors",
        finished.artifact("evaluate") / "report.json",
        *(finished.artifact(stage.value) / "record.json" for stage in stages_of(prepared=False) if stage is not Stage.REGISTER),
    ]
    for victim in victims:
        kept = shutil.copy(victim, tmp_path / "kept")
        flip(victim, victim.stat().st_size // 2)
        found = finished.here("verify", "tiny")
        shutil.copy(kept, victim)
        assert found.code == 7, f"{victim}: exit {found.code}\n{found.out}"
        assert victim.name in found.err, victim


def test_status_logs_and_resume_of_a_finished_run(finished: Project) -> None:
    run = finished.run_ids()[0]
    logs = finished.headrace("logs", run, "--stage", "train", "--rank", "0")
    assert logs.returncode == 0, logs.stderr
    assert "rank 0" in logs.stdout
    again = finished.headrace("resume", run)
    assert again.returncode == 0
    assert "nothing to do" in again.stdout


def test_ambient_settings_of_others_are_ignored(finished: Project) -> None:
    """A stale profile or a dead server in the shell must not reach a pipeline that has its own."""
    done = finished.headrace("run", "tiny.yaml", env={"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "AWS_PROFILE": "no-such"})
    assert done.returncode == 0, done.stderr


def flip(path: Path, position: int) -> None:
    """Flips one bit."""
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(bytes(data))
