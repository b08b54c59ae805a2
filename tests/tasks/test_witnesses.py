"""Inputs from outside the store: whatever changes there is seen without being read, and nothing that a plan looks at is left out."""

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from flows import finished
from schemas import recipe
from tests.fakes.finished_store import finish_store
from tests.fakes.remembered_project import (
    RUN,
    ask,
    asked_with,
    begun_rebuild,
    flipped,
    inside,
    make_finished_project,
    remembered,
    texts,
)
from tests.fakes.tiny_pipeline import Project

pytestmark = pytest.mark.slow


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    return make_finished_project(tmp_path, monkeypatch)


@pytest.mark.parametrize("name", ["data/b/new.txt", "data/a/one.txt", "data/.hidden/a.txt"])
def test_a_glob_matches_what_it_matched(name: str, project: Project) -> None:
    for file in ("a/one.txt", "b/two.txt"):
        (project.folder / "data" / file).parent.mkdir(parents=True)
        (project.folder / "data" / file).write_text("text\n")
    asked = asked_with(project, "corpus.sources=['data/*/*.txt']")
    (project.folder / name).parent.mkdir(exist_ok=True)
    (project.folder / name).write_text("other\n")
    assert remembered(project, *asked) is None


def test_a_glob_over_links_to_folders_is_not_remembered(project: Project) -> None:
    (project.folder / "data").mkdir()
    (project.folder / "data" / "a").symlink_to(project.folder / "text")
    (project.folder / "data" / "b.txt").write_text("text\n")
    finish_store(project, ["corpus.sources=['data/*.txt']"])
    asked = (*RUN, "--set", "corpus.sources=['data/*.txt']")
    assert ask(project, *asked).out.startswith("nothing to do")
    assert remembered(project, *asked) is None


def test_texts_that_documents_are_compared_with_count(project: Project) -> None:
    questions = project.folder / "questions.jsonl"
    questions.write_text('{"question": "one"}\n')
    asked = asked_with(project, "corpus.preparation.decontamination={ngram: 13, files: [questions.jsonl]}")
    assert remembered(project, *asked) is not None
    questions.write_text('{"question": "two"}\n')
    assert remembered(project, *asked) is None


def test_what_a_recipe_leaves_out_does_not_count(project: Project) -> None:
    (project.folder / "text" / "cache" / "deep").mkdir(parents=True)
    asked = asked_with(project, "corpus.sources=[{path: text, exclude: ['cache/*', '*.txt']}]")
    (project.folder / "text" / "cache" / "deep" / "new.py").touch()
    assert remembered(project, *asked) is not None
    (project.folder / "text" / "new.txt").touch()  # a folder counts whole
    assert remembered(project, *asked) is None


def test_a_single_file_is_the_one_that_it_was(project: Project) -> None:
    (project.folder / "one.txt").write_text("text\n")
    asked = asked_with(project, "corpus.sources=['one.txt']")
    flipped(project.folder / "one.txt")
    assert remembered(project, *asked) is None


def test_a_link_inside_of_a_source_leads_where_it_led(project: Project) -> None:
    (project.folder / "text" / ".store").mkdir()
    for name in ("a", "b"):
        (project.folder / "text" / ".store" / name).write_text(f"text {name}\n")
    (project.folder / "text" / ".now").symlink_to(".store/a")
    (project.folder / "text" / "link.py").symlink_to(".now")
    asked = asked_with(project, "name=linked")
    (project.folder / "text" / ".next").symlink_to(".store/b")
    (project.folder / "text" / ".next").rename(project.folder / "text" / ".now")
    assert remembered(project, *asked) is None


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "new.bin"])
def test_an_existing_tokenizer_is_the_one_that_it_was(name: str, project: Project) -> None:
    folder = project.folder / "mine"
    folder.mkdir()
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).write_text('{"a": 1}')
    asked = asked_with(project, "tokenizer={path: mine}")
    (folder / name).write_text('{"b": 1}')
    assert remembered(project, *asked) is None


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "below/more.json"])
def test_a_pretrained_model_is_the_one_that_it_was(name: str, project: Project) -> None:
    folder = project.folder / "mine"
    (folder / "below").mkdir(parents=True)
    for file in ("config.json", "model.safetensors"):
        (folder / file).write_text("{}")
    asked = asked_with(project, "model={pretrained: mine}")
    (folder / name).write_text("[]")
    assert remembered(project, *asked) is None


def test_a_deepspeed_file_is_the_one_that_it_was(project: Project) -> None:
    (project.folder / "ds.json").write_text('{"zero_optimization": {"overlap_comm": true}}')
    asked = asked_with(project, "deepspeed=ds.json")
    (project.folder / "ds.json").write_text('{"zero_optimization": {"overlap_comm": false}}')
    assert remembered(project, *asked) is None


def test_relative_overrides_belong_to_a_folder(project: Project) -> None:
    asked = asked_with(project, "corpus.sources=['text']")
    (project.folder / "below").mkdir()
    with inside(project), contextlib.chdir("below"):
        assert finished.standing_certificate(("run", "../tiny.yaml", *asked[2:])) is None
        assert finished.standing_certificate(("run", str(project.recipe))) is None  # asked for with overrides only
    ask(project)
    with inside(project), contextlib.chdir("below"):
        assert finished.standing_certificate(("run", "../tiny.yaml")) is not None


def test_every_kind_of_path_in_a_recipe_is_known() -> None:
    """What a new one leads to must be among the witnesses (`tasks.witnesses`), or its recipes must get no certificate."""
    assert [pattern.pattern.replace("\\", "") for pattern in recipe._PATH_KEYS] == [
        "storage.root",
        "state",
        "corpus.sources.d+(.path)?",
        "corpus.preparation.decontamination.files.d+",
        "tokenizer.path",
        "model.pretrained",
        "deepspeed",
        "tracking.mlflow_uri",
    ]


_TRACED = """
import builtins, io, json, os, sys
import flows.cli, flows.piloting, flows.certifying, cluster.launchers.local, encodings.utf_8_sig, sqlite3
asked = set()
def tell(function):
    def told(path=".", *arguments, **options):
        if isinstance(path, (str, os.PathLike)):
            asked.add(os.path.abspath(path))
        return function(path, *arguments, **options)
    return told
for module, names in ((os, ("stat", "lstat", "listdir", "scandir", "open", "access", "readlink")), (io, ("open",)), (builtins, ("open",))):
    for name in names:
        setattr(module, name, tell(getattr(module, name)))
flows.certifying.certify = lambda *_, **__: None
flows.cli.main.__globals__["app"](standalone_mode=False)
json.dump(sorted(asked), open("asked.json", "w"))
"""


def with_everything(project: Project) -> tuple[str, ...]:
    """A recipe that reads from outside whatever a recipe can, beside a rebuild that was begun; and how it is asked for."""
    for name, text in {"one.txt": "text", "data/a/b.txt": "text", "mine/tokenizer.json": "{}", "model/config.json": "{}"}.items():
        (project.folder / name).parent.mkdir(exist_ok=True, parents=True)
        (project.folder / name).write_text(text)
    (project.folder / "mine" / "more.bin").write_text("{}")
    (project.folder / "model" / "model.safetensors").write_text("")
    (project.folder / "ds.json").write_text('{"zero_optimization": {"overlap_comm": true}}')
    (project.folder / "text" / "link.py").symlink_to(texts(project)[0])
    shutil.rmtree(project.root)
    sources = "[{path: text, name: a}, {path: one.txt, name: b}, {path: 'data/*/*.txt', name: c}]"
    asked = asked_with(project, f"corpus.sources={sources}", "tokenizer={path: mine}", "model={pretrained: model}", "deepspeed=ds.json")
    begun_rebuild(project)
    ask(project, *asked)
    return asked


def test_every_file_and_folder_that_the_long_way_asks_for_is_in_the_certificate(project: Project) -> None:
    asked_for = with_everything(project)
    known = remembered(project, *asked_for)
    assert known is not None
    done = subprocess.run(
        (sys.executable, "-P", "-c", _TRACED, *asked_for), cwd=project.folder, env=project.environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    named = {*known["stamps"], *known["links"], *known["records"], *known["absent"], known["recipe"][0], *(folder for folder, _, _ in known["names"])}
    folders = {str(parent) for path in named for parent in Path(path).parents}  # on the way to what is compared
    state = str(project.folder / ".headrace" / "state")
    asked: list[str] = json.loads((project.folder / "asked.json").read_text())
    below = [path for path in asked if path.startswith(str(project.folder))]
    inputs = [project.folder / name for name in ("one.txt", "data/a/b.txt", "mine/tokenizer.json", "model/model.safetensors", "ds.json")]
    assert {*map(str, (project.recipe, *inputs, *texts(project))), *known["records"]} <= set(below)
    marks = {str(project.folder / mark) for mark in finished._PROJECT_MARKS}
    left_out = [Path(path) for path in below if path not in named | folders | marks and not path.startswith(state)]
    assert [path for path in left_out if path.exists() or not is_told_by_its_folder(path, known["stamps"])] == []


def is_told_by_its_folder(path: Path, stamps: Mapping[str, object]) -> bool:
    """Whether the folder in which something is missing would change with it."""
    return str(next(parent for parent in path.parents if parent.exists())) in stamps
