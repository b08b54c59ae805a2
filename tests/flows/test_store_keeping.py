"""`headrace store` as its users call it."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.layout import ArtifactLayout
from cluster.lease import Lease
from cluster.storage import FileStorage
from flows.cancellation import refuse_foreign
from flows.lookup import remember_storage
from flows.store_keeping import pin_what
from schemas.errors import InputError
from schemas.journal import EventKind
from schemas.stage import Stage, stages_of
from tests.fakes.stored_chain import StoredChain
from tests.fakes.tiny_pipeline import Project, make_project


@pytest.fixture
def project(tmp_path: Path) -> Project:
    (tmp_path / ".headrace" / "data").mkdir(parents=True)
    return Project(tmp_path)


@pytest.fixture
def chain(project: Project) -> StoredChain:
    return StoredChain(FileStorage(project.root))


def test_what_is_listed_tells_whose_it_is_and_why_it_stays(project: Project, chain: StoredChain) -> None:
    kept, loose = chain.finish(Stage.VALIDATE, variant="kept", owner="bob@there"), chain.finish(Stage.VALIDATE, variant="loose")
    run = chain.run([kept])
    lines = project.here("store", "ls").out.splitlines()
    (of_kept,) = (line for line in lines if line.startswith(kept.key))
    assert "bob@there" in of_kept
    assert of_kept.endswith(f"used by the recent run {run.layout.run_id}")
    assert any(line.startswith(loose.key) and line.endswith("nothing keeps it") for line in lines)
    (listing,) = project.answer("store", "ls", "--keep-runs", "0")
    assert [artifact["why"] for artifact in listing["artifacts"]] == [[], []]


def test_disk_use_by_artifact_and_user(project: Project, chain: StoredChain) -> None:
    big = chain.finish(Stage.VALIDATE, owner="bob@there")
    (chain.storage.root / big.key / "data" / "part-0.bin").write_bytes(b"x" * 3_000_000)
    chain.finish(Stage.VALIDATE, variant="small")
    said = project.here("store", "du").out
    assert said.splitlines()[1].split()[:5] == ["3.0", "MB", "4", "files", big.key]
    assert "bob@there" in said.partition("by user")[2].splitlines()[1]
    (listing,) = project.answer("store", "du")
    assert max(artifact["use"]["bytes"] for artifact in listing["artifacts"]) > 3_000_000


def test_a_store_without_artifacts(project: Project) -> None:
    assert project.here("store", "ls").out.splitlines()[1:] == ["no artifacts"]
    assert project.here("store", "du").code == 0
    assert project.here("store", "gc").out.splitlines()[1:] == ["nothing to remove"]


def test_a_run_that_will_not_go_on_is_given_up(project: Project, chain: StoredChain) -> None:
    model = chain.model()
    run = chain.run(list(model.values()), ended=EventKind.RUN_FAILED)
    with Lease.take(chain.storage, run.layout.control):
        held = project.here("store", "give-up", run.layout.run_id)
    assert (held.code, f"headrace cancel {run.layout.run_id}" in held.err) == (2, True)
    given = project.here("store", "give-up", run.layout.run_id)
    assert (given.code, f"headrace resume {run.layout.run_id}" in given.out) == (0, True)
    removed = project.here("store", "gc", "--keep-runs", "5").out
    assert all(record.key in removed for record in model.values())
    finished = chain.run([chain.finish(Stage.VALIDATE, variant="good")])
    assert "is finished" in project.here("store", "give-up", finished.layout.run_id).out


def test_pin_then_collect_then_unpin(project: Project, chain: StoredChain) -> None:
    model, other = chain.model(), chain.finish(Stage.VALIDATE, variant="other")
    run = chain.run([model[Stage.VALIDATE], model[Stage.TOKENIZER]])
    pinned = project.here("store", "pin", run.layout.run_id, "--reason", "paper")
    assert (pinned.code, model[Stage.TOKENIZER].key in pinned.out) == (0, True)
    assert "pin 0" in project.here("store", "ls").out
    announced = project.here("store", "gc", "--dry-run", "--keep-runs", "0").out
    assert any(line.split()[:3] == ["would", "go", other.key] for line in announced.splitlines())
    assert "6 artifacts would free" in announced
    assert chain.finished() == {record.key for record in (*model.values(), other)}
    done = project.answer("store", "gc", "--keep-runs", "0")
    assert chain.finished() == {model[Stage.VALIDATE].key, model[Stage.TOKENIZER].key}
    assert {fate["key"] for fate in done["removed"]} == {other.key, *(model[stage].key for stage in stages_of(prepared=False)[2:])}
    assert project.here("store", "unpin", "0").code == 0
    assert project.here("store", "gc", "--keep-runs", "0").code == 0
    assert chain.finished() == set()


@pytest.mark.parametrize("form", ["key", "path", "short run name", "whole run name", "last"])
def test_pins_name_what_people_call_things(project: Project, chain: StoredChain, form: str) -> None:
    record = chain.finish(Stage.VALIDATE)
    run = chain.run([record])
    path = f"{chain.storage.local_path(record.key)}/"
    name = {"key": record.key, "path": path, "short run name": run.name, "whole run name": run.layout.run_id, "last": "last"}[form]
    assert project.answer("store", "pin", name)["keys"] == [record.key]
    assert project.answer("store", "unpin", name)[0]["subject"] == name


def test_what_is_not_there_cannot_be_pinned_or_unpinned(project: Project, chain: StoredChain) -> None:
    run = chain.run([])
    for name in ("nothing", "validate/demo-0123456789ab", "../validate", "models:/demo@champion", run.layout.run_id):
        answer = project.here("store", "pin", name)
        assert (answer.code, "Traceback" in answer.err) == (2, False), name
    assert project.here("store", "unpin", "7").code == 2


def test_a_pin_that_comes_while_its_artifact_is_removed_says_so(project: Project, chain: StoredChain, monkeypatch: pytest.MonkeyPatch) -> None:
    record = chain.finish(Stage.VALIDATE)
    monkeypatch.setattr("tasks.store_hygiene.pin_log.wait_for_sweep", lambda storage, key: storage.delete(key))
    with pytest.raises(InputError, match="not in the store"):
        pin_what(record.key, reason="", storage=str(project.root), as_json=False)
    monkeypatch.undo()
    assert project.answer("store", "ls")[0]["pins"] == []


def test_one_store_at_a_time_is_collected(project: Project, chain: StoredChain, tmp_path: Path) -> None:
    chain.finish(Stage.VALIDATE)
    (tmp_path / "other").mkdir()
    remember_storage(project.folder, str(tmp_path / "other"))
    refused = project.here("store", "gc", "--keep-runs", "0")
    assert (refused.code, "--storage" in refused.err) == (2, True)
    assert len(project.answer("store", "ls")) == 2
    assert project.here("store", "gc", "--keep-runs", "0", "--storage", str(project.root)).code == 0
    assert chain.finished() == set()


def test_what_cannot_be_read_stops_a_collection_and_is_named(project: Project, chain: StoredChain) -> None:
    record = chain.finish(Stage.VALIDATE)
    chain.storage.create_exclusive("pins/000000.json", b"{}")
    refused = project.here("store", "gc", "--keep-runs", "0")
    assert (refused.code, "pins/000000.json" in refused.err) == (7, True)
    assert chain.finished() == {record.key}


def test_what_is_kept_from_us_is_told_with_its_own_exit_code(project: Project, chain: StoredChain, monkeypatch: pytest.MonkeyPatch) -> None:
    record = chain.finish(Stage.VALIDATE)
    forbidden = chain.storage.root / record.key
    monkeypatch.setattr(os, "access", lambda path, _mode, **_: Path(path) != forbidden)
    answer = project.here("store", "gc", "--keep-runs", "0")
    assert (answer.code, f"this user may not write in {forbidden}" in answer.out) == (9, True)
    assert chain.finished() == {record.key}


def test_a_lease_that_is_held_keeps_its_artifact(project: Project, chain: StoredChain) -> None:
    record = chain.finish(Stage.VALIDATE)
    with Lease.take(chain.storage, ArtifactLayout(record.key).leases):
        said = project.here("store", "gc", "--keep-runs", "0").out
    assert "works on it" in said
    assert chain.finished() == {record.key}


def test_of_another_users_run_the_owner_is_named(chain: StoredChain) -> None:
    with pytest.raises(InputError, match="is a run of bob@there") as caught:
        refuse_foreign(chain.run([], owner="bob@there", ended=None))
    assert "--force" in caught.value.mend
    refuse_foreign(chain.run([], ended=None))


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A disk that takes a megabyte."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(("mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=60", "tmpfs", str(folder)), check=True)
    yield folder
    subprocess.run(("umount", str(folder)), check=True)


@pytest.mark.mount
def test_a_run_that_cannot_fit_is_refused_before_it_begins_and_a_plan_warns(tmp_path: Path, small: Path) -> None:
    project = make_project(tmp_path / "project", changes={"storage.root": str(small / "data"), "model.config.hidden_size": 512})
    plan = project.answer("plan", "tiny.yaml")
    assert "cannot do with less than" in plan["lacks_room"]
    assert any("files; this run may need" in warning for warning in plan["warnings"])
    refused = project.here("run", "tiny.yaml")
    assert (refused.code, "no room for this run" in refused.err) == (9, True)
    assert not (small / "data" / "runs").exists()
