"""What MLflow is asked, and what is done where it cannot be."""

from pathlib import Path

import pytest

from cluster.storage import FileStorage
from schemas.errors import UnreachableError
from schemas.stage import stages_of
from tasks.mlflow_connection import TrackingTarget
from tasks.register.registry import RegistryClaim
from tasks.store_hygiene.collection import Collector
from tasks.store_hygiene.registered import unregistered
from tasks.store_hygiene.roots import read_claims
from tests.fakes.finished_pipeline import IN_THE_RECIPE, FinishedPipeline
from tests.fakes.stored_chain import StoredChain


@pytest.mark.parametrize("has_version", [True, False])
def test_a_database_of_ones_own_is_asked(chain: StoredChain, has_version: bool) -> None:
    claim = chain.claim(chain.model(), run=chain.run([]))
    state = chain.storage.root / "state"
    state.mkdir()
    asked: list[str] = []

    def ask(target: TrackingTarget, _: RegistryClaim) -> bool:
        asked.append(target.uri)
        return has_version

    chain.config = chain.config.model_copy(update={"state": str(state)})
    claim = claim.model_copy(update={"run_id": chain.run([]).layout.run_id, "root_hash": "0" * 64})
    assert unregistered(chain.storage, [claim], has_versions=ask) == frozenset()  # its database is not there
    (state / "mlflow.db").touch()
    assert unregistered(chain.storage, [claim], has_versions=ask) == (frozenset() if has_version else {claim.root_hash})
    assert asked == [f"sqlite:///{state}/mlflow.db"]


@pytest.mark.parametrize("damage", ["gone", "unreadable"])
def test_of_a_run_that_is_gone_nobody_knows_whom_to_ask(chain: StoredChain, damage: str) -> None:
    run = chain.run([])
    claim = chain.claim(chain.model(), run=run)
    config = chain.storage.root / run.layout.config
    config.unlink() if damage == "gone" else config.write_text("{}")
    assert unregistered(chain.storage, [claim], has_versions=lambda *_: pytest.fail("nobody can be asked")) == frozenset()


@pytest.mark.slow
def test_a_real_registry_knows_what_is_registered(finished_pipeline: FinishedPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(IN_THE_RECIPE, finished_pipeline.project.secrets[IN_THE_RECIPE])
    storage = FileStorage(finished_pipeline.project.root)
    (claim,) = read_claims(storage)
    deleted = claim.model_copy(update={"root_hash": "0" * 64})
    assert unregistered(storage, [claim, deleted]) == {deleted.root_hash}
    report = Collector(storage, keep_runs=0, young_s=-1.0).collect(dry_run=True)
    assert report.removed == ()
    assert {fate.key.partition("/")[0] for fate in report.kept} == {stage.value for stage in stages_of(prepared=False)}


@pytest.mark.slow
def test_a_server_that_does_not_answer_stops_everything(chain: StoredChain, tmp_path: Path) -> None:
    run = chain.run([])
    claim = chain.claim(chain.model(), run=run)
    path = chain.storage.root / run.layout.config
    path.write_text(path.read_text().replace('"mlflow_uri":null', f'"mlflow_uri":"sqlite:////proc/{tmp_path.name}.db"'))
    assert unregistered(chain.storage, [claim]) == frozenset()  # no file, so nobody's here
    path.write_text(path.read_text().replace(f"sqlite:////proc/{tmp_path.name}.db", "http://127.0.0.1:9"))
    with pytest.raises(UnreachableError, match=r"127\.0\.0\.1:9") as caught:
        unregistered(chain.storage, [claim])
    assert "nothing was removed" in str(caught.value)
