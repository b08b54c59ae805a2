"""What a stage's control half does with the jobs of its arrays."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.storage import FileStorage
from schemas.canonical import canonical_json
from schemas.job import ItemRecord, JobSpec, WorkItem, WorkPlan
from schemas.stage import Stage
from tasks.work import Work
from tests.fakes.in_process_work import config_with
from tests.fakes.job_request import ARTIFACT, array_request
from tests.fakes.scripted_launcher import ScriptedLauncher

PLAN = WorkPlan(stage=Stage.TRAIN, step_name="scan", items=tuple(WorkItem(index=i, weight_bytes=i, label=f"group {i}") for i in range(2)))


@pytest.fixture
def work(tmp_path: Path) -> Work:
    bench: Any = SimpleNamespace(storage=FileStorage(tmp_path / "data"), config=config_with(), run_id="run", state_dir=tmp_path, project_dir=tmp_path)
    identity: Any = SimpleNamespace(stage=Stage.TRAIN)
    return Work(bench=bench, identity=identity, key=ARTIFACT, inputs={})


@pytest.fixture
def launcher(monkeypatch: pytest.MonkeyPatch) -> ScriptedLauncher:
    launcher = ScriptedLauncher([])
    monkeypatch.setattr("cluster.launchers.launcher_for", lambda _config: launcher)
    return launcher


def finish_item(work: Work, index: int) -> None:
    work.storage.create_exclusive(work.layout.item("scan", index), canonical_json(ItemRecord(index=index, epoch=0, files=(), output={})))


def test_items_that_an_earlier_start_finished_are_read_and_what_its_job_left_is_removed(
    work: Work, launcher: ScriptedLauncher, tmp_path: Path
) -> None:
    for index in range(2):
        finish_item(work, index)
    spec = array_request(tmp_path, items=2).model_copy(update={"key": "run-scan-1"})
    work.storage.create_exclusive(work.layout.attempt("scan", 0).spec, canonical_json(spec))
    assert [record.index for record in work.run_array(PLAN, module="none")] == [0, 1]
    assert (launcher.released, launcher.submitted) == (["run-scan-1"], [])


@pytest.mark.parametrize(("items", "preload"), [(2, ("some.module",)), (1, ())])
def test_what_several_items_import_is_imported_once(work: Work, monkeypatch: pytest.MonkeyPatch, items: int, preload: tuple[str, ...]) -> None:
    requests: list[JobSpec] = []

    def run(_work: Work, request: JobSpec) -> None:
        requests.append(request)
        for index in range(items):
            finish_item(work, index)

    monkeypatch.setattr(Work, "_run", run)
    work.run_array(PLAN.model_copy(update={"items": PLAN.items[:items]}), module="some.module")
    assert [request.preload for request in requests] == [preload]
