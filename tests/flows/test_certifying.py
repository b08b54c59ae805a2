"""What an answer "nothing to do" rested on: once any of it changed, the answer is not given again."""

import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from flows import certifying, piloting
from schemas.recipe import load_recipe
from tests.fakes.finished_store import finish_store
from tests.fakes.remembered_project import (
    MODULE,
    RUN,
    SEVERAL_TICKS_S,
    ask,
    asked_with,
    begun_rebuild,
    flipped,
    inside,
    make_finished_project,
    record,
    remembered,
    rewritten,
    texts,
)
from tests.fakes.tiny_pipeline import Project

pytestmark = pytest.mark.slow


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    return make_finished_project(tmp_path, monkeypatch)


def new_text(project: Project) -> None:
    (project.folder / "text" / "zzz.py").write_text("pass\n")


def new_folder(project: Project) -> None:
    (project.folder / "text" / "more").mkdir()
    (project.folder / "text" / "more" / "a.py").write_text("pass\n")


def removed_text(project: Project) -> None:
    texts(project)[0].unlink()


def edited_text(project: Project) -> None:
    flipped(texts(project)[3])


def touched_text(project: Project) -> None:
    texts(project)[3].touch()


def renamed_text(project: Project) -> None:
    texts(project)[0].rename(project.folder / "text" / "zzz.py")


def replaced_text(project: Project) -> None:
    status = texts(project)[0].stat()
    shutil.copy(texts(project)[0], project.folder / "copy")
    os.utime(project.folder / "copy", ns=(status.st_atime_ns, status.st_mtime_ns))
    (project.folder / "copy").rename(texts(project)[0])


def moved_source(project: Project) -> None:
    (project.folder / "text").rename(project.folder / "elsewhere")
    (project.folder / "text").symlink_to("elsewhere")


def edited_recipe(project: Project) -> None:
    rewritten(project.recipe, project.recipe.read_bytes().replace(b"steps: 12", b"steps: 13"))


def removed_recipe(project: Project) -> None:
    project.recipe.unlink()


def removed_record(project: Project) -> None:
    record(project).unlink()


def edited_record(project: Project) -> None:
    flipped(record(project))


def linked_record(project: Project) -> None:
    record(project).rename(project.folder / "record.json")
    (project.artifact("validate").parent.parent / "train" / record_folder(project) / "record.json").symlink_to(project.folder / "record.json")


def record_folder(project: Project) -> str:
    (folder,) = os.listdir(project.root / "train")
    return folder


def removed_artifact(project: Project) -> None:
    shutil.rmtree(project.artifact("register"))


def rebuilt(project: Project) -> None:
    finish_store(project, rebuild=1)


def test_a_rebuild_that_ends_is_found(project: Project) -> None:
    begun_rebuild(project)
    ask(project)
    assert remembered(project) is not None
    folder = project.artifact("train")
    shutil.copy(folder / "record.json", folder.with_name(f"{folder.name}.r1"))
    assert remembered(project) is None


def marked_for_removal(project: Project) -> None:
    mark = project.root / "sweeps" / "train" / f"{project.artifact('train').name}.json"
    mark.parent.mkdir(parents=True)
    mark.write_text("{}")


def moved_storage(project: Project) -> None:
    project.root.rename(project.folder / "data")
    project.root.symlink_to(project.folder / "data")


def edited_code(_: Project) -> None:
    flipped(Path(str(sys.modules[MODULE].__file__)))


def new_code(_: Project) -> None:
    Path(str(sys.modules[MODULE].__file__)).with_name("yaml.py").write_text("")


def removed_code(_: Project) -> None:
    Path(str(sys.modules[MODULE].__file__)).unlink()


def new_project_folder(project: Project) -> None:
    """The recipe's relative paths would start elsewhere, were it nearer; this one only hides the certificate."""
    shutil.rmtree(project.folder / ".headrace" / "certificates")


def damaged_certificate(project: Project) -> None:
    (certificate,) = (project.folder / ".headrace" / "certificates").iterdir()
    flipped(certificate)


def cut_certificate(project: Project) -> None:
    (certificate,) = (project.folder / ".headrace" / "certificates").iterdir()
    certificate.write_bytes(certificate.read_bytes()[:1000])


def emptied_certificate(project: Project) -> None:
    (certificate,) = (project.folder / ".headrace" / "certificates").iterdir()
    certificate.write_bytes(b"")


CHANGES: Sequence[Callable[[Project], None]] = (
    *(new_text, new_folder, removed_text, edited_text, touched_text, renamed_text, replaced_text, moved_source),
    *(edited_recipe, removed_recipe, removed_record, edited_record, linked_record, removed_artifact, rebuilt, begun_rebuild, marked_for_removal),
    *(moved_storage, edited_code, new_code, removed_code, new_project_folder, damaged_certificate, cut_certificate, emptied_certificate),
)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_after_a_change_nothing_is_remembered(change: Callable[[Project], None], project: Project) -> None:
    ask(project)
    assert remembered(project) is not None
    change(project)
    assert remembered(project) is None


def test_a_run_that_ends_well_leaves_a_certificate(project: Project) -> None:
    time.sleep(SEVERAL_TICKS_S)
    with inside(project):
        piloting._certify_finished(load_recipe(project.recipe), modules=frozenset(sys.modules))
    known = remembered(project)
    assert known is not None
    assert known["text"] + "\n" == project.here(*RUN).out


@pytest.mark.parametrize("change", [edited_recipe, removed_recipe, removed_record, edited_record, removed_text], ids=lambda change: change.__name__)
def test_a_run_whose_inputs_changed_meanwhile_leaves_none(change: Callable[[Project], None], project: Project) -> None:
    with inside(project):
        loaded = load_recipe(project.recipe)
        change(project)
        piloting._certify_finished(loaded, modules=frozenset(sys.modules))
    assert not (project.folder / ".headrace" / "certificates").exists()


def test_a_model_that_its_gate_refused_is_said_so_every_time(project: Project) -> None:
    shutil.rmtree(project.root)
    finish_store(project, gate_passed=False)
    assert ask(project).code == 4
    assert remembered(project) is None


def test_files_that_changed_while_the_answer_was_found_are_not_believed(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    started = time.time_ns()
    monkeypatch.setattr(certifying, "_process_started_ns", lambda: started)
    time.sleep(SEVERAL_TICKS_S)
    texts(project)[0].touch()
    ask(project)
    assert remembered(project) is None


def test_young_files_are_not_believed(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certifying, "_YOUNG_NS", 30_000_000_000)
    ask(project)
    assert remembered(project) is None


def test_this_process_began_before_now() -> None:
    assert 0 < time.time_ns() - certifying._process_started_ns() < 86_400e9


def test_certificates_stay_few(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certifying, "_MOST", 2)
    for seed in range(4):
        asked_with(project, f"training.seed={seed}")
    assert len(list((project.folder / ".headrace" / "certificates").iterdir())) == 2


def test_a_project_that_cannot_be_written_to_is_answered_all_the_same(project: Project) -> None:
    (project.folder / ".headrace" / "certificates").touch()
    assert ask(project).out.startswith("nothing to do")


def moved_alias(project: Project) -> None:
    """A rollback: neither way asks which version an alias names now."""
    folder = project.root / "registry" / "promotions" / "tiny"
    folder.mkdir(parents=True)
    (folder / "0001.json").write_text("{}")


def another_artifact(project: Project) -> None:
    finish_store(project, ["training.seed=7"])


def another_run(project: Project) -> None:
    (project.root / "runs" / "tiny-20260101t000000-aaaa").mkdir(parents=True)


def lost_hashes(project: Project) -> None:
    (project.folder / ".headrace" / "state" / "file-hashes.sqlite").unlink()


@pytest.mark.parametrize("change", [moved_alias, another_artifact, another_run, lost_hashes], ids=lambda change: change.__name__)
def test_what_the_answer_does_not_rest_on_changes_nothing(change: Callable[[Project], None], project: Project) -> None:
    ask(project)
    change(project)
    known = remembered(project)
    assert known is not None
    assert known["text"] + "\n" == project.here(*RUN).out
