"""Scratch folders that ended attempts left behind on this machine."""

import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from cluster.layout import ArtifactLayout
from schemas.attempt import Cause, ExitRecord
from schemas.canonical import canonical_json
from schemas.exit_code import ExitCode
from schemas.job import JobKind, JobSpec, RestartLimits
from schemas.journal import EventKind
from schemas.stage import Stage
from tasks.runs import Run
from tasks.store_hygiene.collection import Collector
from tasks.store_hygiene.scratch import leftover_scratch
from tests.fakes.stored_chain import StoredChain

HOUR_S = 3600.0


def attempt(chain: StoredChain, run: Run, *, number: int, ended_at: float | None) -> Path:
    """An attempt of the run's training, and its scratch folder with what Slurm wrote there."""
    pointer = run.pointer(Stage.TRAIN)
    assert pointer is not None
    key = f"{run.layout.run_id}-train-00000{number}"
    layout = ArtifactLayout(pointer.key).attempt("", number)
    limits = RestartLimits(max_failures=0, max_interruptions=0, max_attempts_without_progress=1, backoff_s=0.0)
    paths = {"storage_root": "/d", "scratch_dir": "/s", "project_dir": "/p", "inputs": {}, "config": {}}
    told = {"run_id": run.layout.run_id, "stage": Stage.TRAIN, "artifact_key": pointer.key, "attempt": number, "key": key, "kind": JobKind.GANG}
    spec = JobSpec.model_validate({**told, **paths, "argv": (), "limits": limits})
    chain.storage.create_exclusive(layout.spec, canonical_json(spec))
    if ended_at is not None:
        record = ExitRecord(key=key, exit_code=ExitCode.DONE, cause=Cause.FINISHED, message="", epoch=0, incidents=(), ended_at=ended_at)
        chain.storage.create_exclusive(layout.exit, canonical_json(record))
    return scratch(chain, key)


def scratch(chain: StoredChain, key: str, *, age_s: float = 9 * HOUR_S) -> Path:
    folder = chain.storage.root / "state" / "scratch" / key
    folder.mkdir(parents=True)
    (folder / "slurm-7.out").touch()
    os.utime(folder, (time.time() - age_s,) * 2)
    return folder


@pytest.fixture
def run(chain: StoredChain) -> Run:
    return chain.run([chain.finish(Stage.TRAIN)])


def found(chain: StoredChain) -> set[Path]:
    return set(leftover_scratch(chain.storage, now=time.time(), young_s=HOUR_S))


def test_of_attempts_that_ended_a_while_ago(chain: StoredChain, run: Run) -> None:
    now = time.time()
    old = attempt(chain, run, number=0, ended_at=now - 2 * HOUR_S)
    attempt(chain, run, number=1, ended_at=now - 60)  # other nodes may still publish
    attempt(chain, run, number=2, ended_at=None)
    assert found(chain) == {old}


def test_of_attempts_whose_artifact_is_gone_the_run_must_be_finished(chain: StoredChain, run: Run) -> None:
    gone, young = scratch(chain, f"{run.layout.run_id}-train-0000aa"), scratch(chain, f"{run.layout.run_id}-train-0000bb", age_s=60)
    assert found(chain) == {gone}
    assert young.exists()
    run.append(EventKind.RUN_RESUMED)
    assert found(chain) == set()


@pytest.mark.parametrize("name", ["another-20260101t000001-0001-train-0000aa", "notes", "a-b-c"])
def test_what_belongs_to_no_run_of_the_store_is_not_looked_at(chain: StoredChain, run: Run, name: str) -> None:
    scratch(chain, name)
    assert found(chain) == set()


def test_links_and_what_other_users_own_stay(chain: StoredChain, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = scratch(chain, "notes")
    (elsewhere.parent / f"{run.layout.run_id}-train-0000cc").symlink_to(elsewhere)
    scratch(chain, f"{run.layout.run_id}-train-0000aa")
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert found(chain) == set()


def test_what_its_agent_removes_meanwhile_is_passed_over(chain: StoredChain, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once after the first look at it."""
    going, genuine = scratch(chain, f"{run.layout.run_id}-train-0000aa"), os.stat

    def look(path: Any, **options: Any) -> os.stat_result:
        status = genuine(path, **options)
        if path == going:
            shutil.rmtree(going)
        return status

    monkeypatch.setattr(os, "stat", look)
    assert found(chain) == set()
    monkeypatch.undo()
    assert not going.exists()


def test_a_state_folder_that_is_not_here_or_not_to_be_entered_is_passed_over(chain: StoredChain, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(chain) == set()
    scratch(chain, f"{run.layout.run_id}-train-0000aa")
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    assert found(chain) == set()


def test_a_collection_removes_them_and_a_dry_run_names_them(chain: StoredChain, run: Run) -> None:
    old = attempt(chain, run, number=0, ended_at=time.time() - 2 * HOUR_S)
    assert Collector(chain.storage, keep_runs=9).collect(dry_run=True).scratch == (str(old),)
    assert old.exists()
    assert Collector(chain.storage, keep_runs=9).collect(dry_run=False).scratch == (str(old),)
    assert not old.exists()
