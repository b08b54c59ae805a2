"""Runs are found by the names people use, from anywhere in the project."""

from pathlib import Path
from typing import Any

import pytest

from cluster.layout import RunLayout
from cluster.storage import TEMPORARY_PREFIX, FileStorage
from flows.lookup import all_runs, find_run, remember_storage, storages
from schemas.canonical import canonical_json
from schemas.errors import InputError
from schemas.journal import RunFile

IDS = ("demo-20261122t020000-7f3a", "demo-20261122t030000-aaaa", "other-20261121t000000-7f3a")


def make_run(root: Path, run_id: str) -> None:
    fields: dict[str, Any] = {
        "run_id": run_id,
        "recipe": "r.yaml",
        "overrides": (),
        "from_stage": None,
        "project_dir": "/p",
        "state_dir": "/s",
        "config": {},
    }
    FileStorage(root).create_exclusive(RunLayout(run_id).config, canonical_json(RunFile(**fields, created_at=0.0, argv=())))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    project = tmp_path / "project"
    (project / ".git").mkdir(parents=True)
    (project / "deep" / "inside").mkdir(parents=True)
    for run_id in IDS[:2]:
        make_run(project / ".headrace" / "data", run_id)
    make_run(tmp_path / "elsewhere", IDS[2])
    remember_storage(project, str(tmp_path / "elsewhere"))
    remember_storage(project, str(tmp_path / "elsewhere"))
    remember_storage(project, str(tmp_path / "gone"))
    remember_storage(project, str(project / ".headrace" / "data"))
    monkeypatch.chdir(project / "deep" / "inside")
    return project


@pytest.mark.parametrize(
    ("name", "run_id"),
    [
        (IDS[0], IDS[0]),
        ("demo-7f3a", IDS[0]),
        ("other-7f3a", IDS[2]),
        ("demo-20261122t03", IDS[1]),
        ("oth", IDS[2]),
        ("last", IDS[1]),
        ("latest", IDS[1]),
    ],
)
def test_names(project: Path, name: str, run_id: str) -> None:
    assert find_run(name, storage=None).layout.run_id == run_id


def test_what_does_not_fit_or_fits_twice_is_told(project: Path) -> None:
    with pytest.raises(InputError, match="fits 2 runs"):
        find_run("demo-", storage=None)
    with pytest.raises(InputError, match=f"the newest are {IDS[1]}"):
        find_run("nothing", storage=None)


def test_all_runs_newest_first_and_each_once(project: Path) -> None:
    assert [run.layout.run_id for run in all_runs(storages(None))] == [IDS[1], IDS[0], IDS[2]]


def test_a_storage_that_is_named_settles_it(project: Path, tmp_path: Path) -> None:
    assert [run.layout.run_id for run in all_runs(storages(str(tmp_path / "elsewhere")))] == [IDS[2]]
    with pytest.raises(InputError, match="does not exist"):
        storages(str(tmp_path / "gone"))


@pytest.mark.parametrize("left", [b"", b"/", b"/tmp/\xc3"], ids=["empty", "its beginning", "half a letter"])
def test_an_address_that_was_half_written_is_left_out_until_a_run_leaves_it_anew(project: Path, tmp_path: Path, left: bytes) -> None:
    """A disk was full, or the power went."""
    folder = project / ".headrace" / "storages"
    address = next(path for path in folder.iterdir() if path.read_text() == str(tmp_path / "elsewhere"))
    address.write_bytes(left)
    (folder / f"{TEMPORARY_PREFIX}{address.name}-1").symlink_to("gone")  # it was given its name after it was listed
    assert [run.layout.run_id for run in all_runs(storages(None))] == [IDS[1], IDS[0]]
    remember_storage(project, str(tmp_path / "elsewhere"))
    assert [run.layout.run_id for run in all_runs(storages(None))] == [IDS[1], IDS[0], IDS[2]]


def test_a_project_without_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="no runs in project"):
        storages(None)
