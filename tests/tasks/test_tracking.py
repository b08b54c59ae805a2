"""The tracker on a SQLite database: one run, points once and in order, nothing ambient; pure parts as tables."""

import json
import threading
import traceback
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from schemas.errors import ConfigError, UnreachableError
from schemas.progress import MetricPoint
from tasks.mlflow_connection import MlflowConnection, TrackingTarget, environment, without_credentials
from tasks.mlflow_registry import ModelRegistry
from tasks.tracking import STEP_TAG, RunStatus, SystemSample, Tracker, flat_params
from tests.fakes.in_process_work import config_with

# SQLAlchemy 2.1 finds mlflow 3.17's mappings old-fashioned
pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning", "ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> TrackingTarget:
    folder = tmp_path_factory.mktemp("tracking")
    return TrackingTarget(uri=f"sqlite:///{folder / 'mlflow.db'}", artifact_root=folder / "artifacts", experiment="demo")


def points(first: int, last: int, *, text: bool = False) -> tuple[MetricPoint, ...]:
    return tuple(
        MetricPoint(
            step=step, at=1000.25 + step, epoch=0, values={"loss": 1 / step, "learning_rate": 0.1}, text={"sample": f"s{step}"} if text else {}
        )
        for step in range(first, last + 1)
    )


def curve(tracker: Tracker, name: str) -> list[tuple[int, float, int]]:
    history = tracker.connection.client.get_metric_history(tracker.mlflow_run_id, name)
    return [(point.step, point.value, point.timestamp) for point in history]


@pytest.mark.slow
def test_the_same_pipeline_run_is_the_same_mlflow_run(target: TrackingTarget) -> None:
    first = Tracker(target, run_id="run-a", run_name="demo-a", tags={"recipe": "demo"})
    run_id = first.mlflow_run_id
    first.end(RunStatus.KILLED)
    again = Tracker(target, run_id="run-a", run_name="demo-a")
    assert again.mlflow_run_id == run_id
    run = again.connection.client.get_run(run_id)
    assert (run.info.status, run.info.run_name, run.data.tags["recipe"]) == ("RUNNING", "demo-a", "demo")
    assert Tracker(target, run_id="run-b", run_name="demo-b").mlflow_run_id != run_id


@pytest.mark.slow
def test_replayed_points_are_there_once_with_the_ranks_timestamps(target: TrackingTarget) -> None:
    tracker = Tracker(target, run_id="run-replay", run_name="demo")
    assert tracker.forwarded_step() == -1
    tracker.forward(points(1, 20, text=True))
    tracker.forward(points(1, 20, text=True))
    tracker.connection.client.set_tag(tracker.mlflow_run_id, STEP_TAG, "10")  # died after the points, before the mark
    again = Tracker(target, run_id="run-replay", run_name="demo")
    again.forward(points(1, 25))
    assert again.forwarded_step() == 25
    assert curve(again, "loss") == [(step, 1 / step, int((1000.25 + step) * 1000)) for step in range(1, 26)]
    assert again.connection.client.get_run(again.mlflow_run_id).data.tags[STEP_TAG] == "25"


@pytest.mark.slow
def test_redone_steps_below_the_mark_are_not_told_again(target: TrackingTarget) -> None:
    tracker = Tracker(target, run_id="run-redo", run_name="demo")
    tracker.forward(points(1, 5))
    redone = tuple(point.model_copy(update={"at": point.at + 100, "epoch": 1}) for point in points(4, 7))
    tracker.forward(redone)
    assert [step for step, _, _ in curve(tracker, "loss")] == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.slow
def test_more_points_than_one_call_takes(target: TrackingTarget) -> None:
    tracker = Tracker(target, run_id="run-many", run_name="demo")
    tracker.forward(points(1, 1234))
    assert len(curve(tracker, "loss")) == len(curve(tracker, "learning_rate")) == 1234
    assert tracker.forwarded_step() == 1234


@pytest.mark.slow
def test_texts_params_figures_and_system_samples(target: TrackingTarget, tmp_path: Path) -> None:
    tracker = Tracker(target, run_id="run-rest", run_name="demo")
    tracker.forward(points(7, 7, text=True))
    client = tracker.connection.client
    (entry,) = client.list_artifacts(tracker.mlflow_run_id, "text/sample")
    assert Path(client.download_artifacts(tracker.mlflow_run_id, entry.path, str(tmp_path))).read_text() == "s7"
    params = flat_params(config_with())
    tracker.log_params(params)
    tracker.log_params(params | {"name": "changed later: the first value stays"})
    assert client.get_run(tracker.mlflow_run_id).data.params["training.steps"] == "200"
    assert client.get_run(tracker.mlflow_run_id).data.params["name"] == "test"
    tracker.log_system([SystemSample("node-0/cpu_percent", 33.0, 5, 2000.0)])
    assert curve(tracker, "system/node-0/cpu_percent") == [(5, 33.0, 2_000_000)]
    for _ in range(2):
        tracker.log_figures({"evaluation/loss": 2.0}, at=3.0)
    assert curve(tracker, "evaluation/loss") == [(0, 2.0, 3000)]


@pytest.mark.slow
def test_what_is_not_registered_has_neither_version_nor_alias(target: TrackingTarget) -> None:
    registry = ModelRegistry(MlflowConnection(target))
    assert registry.alias("no-such-model", "champion") is None
    assert registry.content_of("no-such-model", 1) is None


@pytest.mark.slow
def test_a_server_that_does_not_answer_is_unreachable() -> None:
    target = TrackingTarget(uri="http://name:secret@127.0.0.1:9", artifact_root=None, experiment="demo")
    tracker = Tracker(target, run_id="run", run_name="demo")
    with pytest.raises(UnreachableError) as caught:
        tracker.forward(points(1, 2))
    assert "secret" not in str(caught.value)


CANARY = "p%40ss-canary"
"""A password with `@` in it, as it stands in a URL."""


class _Guarded(BaseHTTPRequestHandler):
    """Answers as an MLflow server behind basic authentication; who is refused gets to read what they sent."""

    def do_GET(self) -> None:
        sent = self.headers.get("Authorization", "")
        allowed = sent == "Basic " + b64encode(f"bot:{unquote(CANARY)}".encode()).decode()
        experiment = {"experiment_id": "7", "name": "demo", "lifecycle_stage": "active"}
        body = json.dumps({"experiment": experiment} if allowed else {"error_code": "UNAUTHENTICATED", "message": f"{sent}: {CANARY}?"}).encode()
        self.send_response(200 if allowed else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


@pytest.fixture
def guarded() -> Iterator[str]:
    """`host:port` of a server that lets in only who knows the password."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Guarded)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def secret_target(reference: str, host: str) -> TrackingTarget:
    return TrackingTarget(uri=f"http://bot:{reference}@{host}", artifact_root=None, experiment="demo")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["env", "file"])
def test_a_secret_is_resolved_when_the_server_is_reached(guarded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setenv("HEADRACE_TEST_PW", CANARY)
    (tmp_path / "pw").write_text(CANARY + "\n")
    connection = MlflowConnection(secret_target("${env:HEADRACE_TEST_PW}" if kind == "env" else f"${{file:{tmp_path}/pw}}", guarded))
    assert connection.experiment_id == "7"
    assert CANARY not in repr(connection.target)


@pytest.mark.slow
def test_a_secret_in_a_variable_of_mlflow_s_own_is_still_there_to_be_resolved(guarded: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_BOT_PASSWORD", CANARY)
    assert MlflowConnection(secret_target("${env:MLFLOW_BOT_PASSWORD}", guarded)).experiment_id == "7"


@pytest.mark.slow
@pytest.mark.parametrize("host", ["guarded", "127.0.0.1:9", "127.0.0.1:port"], ids=["refused", "down", "no URL"])
def test_no_error_text_holds_a_secret(host: str, guarded: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the message, and not the causes that a logger writes below it."""
    monkeypatch.setenv("HEADRACE_TEST_PW", CANARY)
    target = secret_target("${env:HEADRACE_TEST_PW}", guarded if host == "guarded" else host)
    if host == "guarded":
        target = replace(target, uri=target.uri.replace("bot", "somebody"))
    with pytest.raises(UnreachableError) as caught:
        Tracker(target, run_id="run", run_name="demo").forward(points(1, 2))
    written = "".join(traceback.format_exception(caught.value))
    assert "could not be" in written
    assert CANARY not in written
    assert unquote(CANARY) not in written


def test_a_secret_that_is_not_there_is_named_and_nothing_is_asked() -> None:
    with pytest.raises(ConfigError, match="HEADRACE_NO_SUCH"):
        MlflowConnection(secret_target("${env:HEADRACE_NO_SUCH}", "127.0.0.1:9")).experiment_id  # noqa: B018


def test_target_defaults_to_the_state_folder() -> None:
    target = TrackingTarget.of(config_with(state="/some/state"))
    assert target == TrackingTarget(uri="sqlite:////some/state/mlflow.db", artifact_root=Path("/some/state/mlflow-artifacts"), experiment="test")
    own = TrackingTarget.of(config_with(tracking={"mlflow_uri": "http://mlflow:5000", "experiment": "mills"}))
    assert own == TrackingTarget(uri="http://mlflow:5000", artifact_root=None, experiment="mills")


def test_ambient_settings_are_ignored_but_a_servers_credentials_stay() -> None:
    ambient = {"MLFLOW_TRACKING_URI": "http://elsewhere", "MLFLOW_TRACKING_TOKEN": "t", "PATH": "/bin", "MLFLOW_HTTP_REQUEST_TIMEOUT": "900"}
    local, remote = environment(ambient, own_server=False), environment(ambient, own_server=True)
    for settings in (local, remote):
        assert "MLFLOW_TRACKING_URI" not in settings
        assert settings["PATH"] == "/bin"
        assert settings["MLFLOW_DISABLE_TELEMETRY"] == "true"
        assert settings["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "20"
    assert "MLFLOW_TRACKING_TOKEN" not in local
    assert remote["MLFLOW_TRACKING_TOKEN"] == "t"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://ann:pw@db:5432/mlflow", "postgresql://…@db:5432/mlflow"),
        ("sqlite:////a/b@c.db", "sqlite:////a/b@c.db"),
        ("http://host/x", "http://host/x"),
        ("see https://u:p@h and http://t@g", "see https://…@h and http://…@g"),
    ],
)
def test_credentials_in_urls_are_blotted_out(text: str, shown: str) -> None:
    assert without_credentials(text) == shown


def test_params_are_flat_and_hold_no_credentials() -> None:
    config: Any = config_with(tracking={"mlflow_uri": "http://ann:pw@host"}, evaluation={"prompts": ["a", "b"]})
    params = flat_params(config)
    assert params["training.optimizer.learning_rate"] == "0.0003"
    assert params["evaluation.prompts"] == "['a', 'b']"
    assert "pw" not in params["tracking.mlflow_uri"]
    assert all(len(value) <= 500 for value in params.values())
