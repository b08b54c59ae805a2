"""The register stage on a real MLflow: over HTTP with its own server, and on a SQLite file. Slow: servers and 2-4 s of imports."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import UnreachableError, VerificationError
from schemas.stage import Stage
from tasks.mlflow_connection import MlflowConnection, TrackingTarget
from tasks.mlflow_registry import ModelRegistry
from tasks.register.build import build
from tasks.register.promotion import history
from tasks.register.registration import Registration
from tests.fakes.in_process_work import InProcessWork
from tests.fakes.mlflow_server import MlflowServer
from tests.fakes.model_chain import Chain
from tests.fakes.model_registry import CrashError
from tests.tasks.register.conftest import RegisterWork

# SQLAlchemy 2.1 finds mlflow 3.17's mappings old-fashioned
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning", "ignore::DeprecationWarning")]


@pytest.fixture
def tracking(mlflow_server: MlflowServer, request: pytest.FixtureRequest) -> dict[str, Any]:
    """The recipe sections of a test: an experiment and a model of its own on the shared server."""
    name = request.node.name.partition("[")[0]
    return {"tracking": {"mlflow_uri": mlflow_server.uri, "experiment": name}, "registration": {"model_name": name}}


def registration_of(work: InProcessWork) -> Registration:
    return Registration.model_validate_json((work.output_dir / "registration.json").read_bytes())


def versions(work: InProcessWork) -> dict[int, dict[str, str]]:
    """Tags by version of the work's model, as MLflow tells them."""
    client = MlflowConnection(TrackingTarget.of(work.config)).client
    return {int(found.version): found.tags for found in client.search_model_versions(f"name = '{work.config.model_name}'")}


def aliases(work: InProcessWork) -> dict[str, int]:
    client = MlflowConnection(TrackingTarget.of(work.config)).client
    return {alias: int(version) for alias, version in client.get_registered_model(work.config.model_name).aliases.items()}


def test_registers_over_http_with_tags_card_aliases_and_dataset(register_work: RegisterWork, evaluated: Chain, tracking: dict[str, Any]) -> None:
    work = register_work(**tracking)
    draft = build(work)
    registration = registration_of(work)
    (tags,) = versions(work).values()
    assert tags["headrace.root_hash"] == evaluated.records[Stage.EXPORT].content_hash == registration.root_hash
    assert tags["headrace.dataset"] == evaluated.records[Stage.VALIDATE].content_hash
    assert tags["headrace.tokenizer"] == evaluated.records[Stage.TOKENIZER].content_hash
    assert tags["headrace.checkpoint"] == f"{evaluated.records[Stage.TRAIN].content_hash} step 40"
    assert (tags["headrace.commit"], tags["headrace.run_id"]) == ("c0ffee", work.bench.run_id)  # type: ignore[attr-defined]
    assert aliases(work) == {"candidate": 1, "champion": 1}
    assert [(entry.alias, entry.version) for entry in history(work.storage, work.config.model_name)] == [("candidate", 1), ("champion", 1)]
    client = MlflowConnection(TrackingTarget.of(work.config)).client
    run = client.get_run(registration.mlflow_run_id)
    assert {dataset.dataset.digest for dataset in run.inputs.dataset_inputs} >= {evaluated.records[Stage.VALIDATE].content_hash[:36]}
    assert run.data.metrics["evaluation/bits_per_byte"] == pytest.approx(work.inputs[Stage.EVALUATE].summary["bits_per_byte"])
    assert {entry.path for entry in client.list_artifacts(run.info.run_id, "evaluation")} >= {"evaluation/report.json", "evaluation/plots"}
    card = (work.output_dir / "README.md").read_text()
    assert client.get_model_version(work.config.model_name, "1").description == card
    assert draft.summary["model_uri"] == registration.model_uri == f"models:/{work.config.model_name}/1"
    assert registration.model_dir is None, "the server keeps the copy"


@pytest.mark.filterwarnings("ignore::UserWarning")  # mlflow 3.17 warns about its own type hints
def test_serves_what_was_exported_without_a_pickle(register_work: RegisterWork, tmp_path: Path) -> None:
    """On the default SQLite: MLflow's copy is complete and hashed, loads as it would be served, and has its signature."""
    import mlflow

    work = register_work()
    build(work)
    registration = registration_of(work)
    assert registration.model_dir is not None
    folder = Path(registration.model_dir)
    assert {entry.path for entry in registration.model_files} == {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert [path for path in folder.rglob("*") if path.suffix in (".pkl", ".pickle", ".pt", ".bin")] == []
    assert "README.md" in {Path(entry.path).name for entry in registration.model_files}
    target = TrackingTarget.of(work.config)
    mlflow.set_tracking_uri(target.uri)
    mlflow.set_registry_uri(target.uri)
    try:
        served = mlflow.pyfunc.load_model(f"models:/{work.config.model_name}@champion")
        long, short = served.predict(["the water"]), served.predict(["the water"], params={"max_new_tokens": 3})
        assert isinstance(short, list)
        assert len(long[0]) > len(short[0]) > 0
        requirements = (folder / "requirements.txt").read_text().split()
    finally:
        mlflow.set_tracking_uri(None)
        mlflow.set_registry_uri(None)
    assert all("==" in requirement and "+" not in requirement for requirement in requirements)
    assert {requirement.partition("==")[0] for requirement in requirements} == {"mlflow", "torch", "transformers", "tokenizers", "safetensors"}


def test_a_gate_that_says_no_leaves_a_candidate(register_work: RegisterWork, tracking: dict[str, Any]) -> None:
    gate = {"max_bits_per_byte": 0.5}
    work = register_work(**tracking | {"registration": tracking["registration"] | {"gate": gate}})
    draft = build(work)
    assert aliases(work) == {"candidate": 1}
    assert draft.summary["gate_passed"] is False
    assert draft.summary["aliases"] == ["candidate"]
    assert registration_of(work).verdict.reasons[0].startswith("no: bits per byte")
    # the same model under a gate that it passes becomes champion, as the same version
    later = register_work(key="register/test-000000000001", run_id="demo-20260102t000000-aaaa", **tracking)
    build(later)
    assert aliases(later) == {"candidate": 1, "champion": 1}
    assert list(versions(later)) == [1]


@pytest.mark.parametrize(
    ("method", "run_id"),
    [("create_version", "demo-20260105t000000-bbbb"), ("set_alias", "demo-20260101t000000-7f3a"), ("local_dir", "demo-20260101t000000-7f3a")],
    ids=["before the version, another run goes on", "before the first alias", "before the record"],
)
def test_a_crash_between_log_and_record_leads_to_one_version(
    register_work: RegisterWork, tracking: dict[str, Any], monkeypatch: pytest.MonkeyPatch, method: str, run_id: str
) -> None:
    name = f"crash-{method}"
    monkeypatch.setattr("tasks.register.registry._PATIENCE_S", 0.5)  # for the claimant that crashed
    sections = {"tracking": tracking["tracking"] | {"experiment": name}, "registration": {"model_name": name}}
    with monkeypatch.context() as patch:
        patch.setattr(ModelRegistry, method, crash)
        with pytest.raises(CrashError):
            build(register_work(**sections))
    work = register_work(run_id=run_id, **sections)
    build(work)
    assert list(versions(work)) == [registration_of(work).version] == [1]
    assert aliases(work) == {"candidate": 1, "champion": 1}
    connection = MlflowConnection(TrackingTarget.of(work.config))
    assert len(connection.client.search_logged_models([connection.experiment_id])) == 1
    assert [entry.alias for entry in history(work.storage, name)] == ["candidate", "champion"]


def crash(*arguments: object, **named: object) -> None:
    raise CrashError


def test_two_registrars_at_once_leave_one_version(register_work: RegisterWork, tracking: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have searched, found nothing and logged the model before either creates its version."""
    barrier = threading.Barrier(2, timeout=120)
    create = ModelRegistry.create_version

    def meet(self: ModelRegistry, *arguments: Any, **named: Any) -> int:
        barrier.wait()
        return create(self, *arguments, **named)

    monkeypatch.setattr(ModelRegistry, "create_version", meet)
    monkeypatch.setattr("tasks.register.registry._PATIENCE_S", 0.0)
    works = [register_work(key=f"register/test-00000000000{number}", run_id=f"demo-20260101t000000-000{number}", **tracking) for number in (1, 2)]
    errors: list[BaseException] = []

    def run(work: InProcessWork) -> None:
        try:
            build(work)
        except BaseException as error:  # noqa: BLE001  # a thread's failure is shown by the test
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=300)
    assert errors == []
    lowest = registration_of(works[0]).version
    assert list(versions(works[0])) == [lowest] == [registration_of(works[1]).version]
    assert aliases(works[0]) == {"candidate": lowest, "champion": lowest}


def test_a_server_that_is_down_says_so_and_the_same_folder_goes_on_later(register_work: RegisterWork, tracking: dict[str, Any]) -> None:
    down = register_work(**tracking | {"tracking": {"mlflow_uri": "http://127.0.0.1:9"}})
    with pytest.raises(UnreachableError, match="MLflow"):
        build(down)
    assert not (down.output_dir / "registration.json").exists()
    work = register_work(**tracking)
    build(work)
    assert list(versions(work)) == [1]


def test_a_changed_model_file_is_never_registered(register_work: RegisterWork, tracking: dict[str, Any]) -> None:
    work = register_work(**tracking)
    path = work.input_dir(Stage.EXPORT) / "model/model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(VerificationError, match=r"model\.safetensors"):
        build(work)
    assert versions(work) == {}


def test_registration_says_what_the_record_needs(register_work: RegisterWork, tracking: dict[str, Any]) -> None:
    work = register_work(**tracking)
    draft = build(work)
    assert {entry.path for entry in draft.files} == {"README.md", "registration.json"}
    assert set(draft.summary) >= {"model_name", "version", "model_uri", "aliases", "gate_passed", "gate_reasons"}
    json.dumps(draft.summary)
