"""What a run finds, makes and fixes, with a stage that makes next to nothing."""

from pathlib import Path
from typing import Any

import pytest

from schemas.errors import InputError
from schemas.stage import Stage
from tasks.runs import RunHandle, create_run
from tasks.wiring import Listener, bench_of, find_or_make, ignore_view
from tasks.work import Draft, Work
from tests.fakes.in_process_work import config_with


def build(work: Work) -> Draft:
    return Draft(files=(work.publish_json("manifest.json", {"made": "it"}),), summary={})


@pytest.fixture
def new_run(tmp_path: Path) -> Any:
    """Gives runs of recipes that differ in their names alone."""
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("text")
    places = {"storage": {"root": str(tmp_path / "data")}, "state": str(tmp_path / "state")}

    def create(name: str, **options: Any) -> RunHandle:
        config = config_with(name=name, corpus={"sources": [str(tmp_path / "text")]}, **places)
        return create_run(config, project_dir=tmp_path, recipe="recipe.yaml", **options)

    return create


def made(handle: RunHandle) -> str:
    """Returns the folder of the corpus that a run finds or makes."""
    return find_or_make(Stage.VALIDATE, bench=bench_of(handle, listener=Listener(note=lambda _: None, view=ignore_view)), build=build).key


def test_a_corpus_of_another_name_is_found_and_one_that_is_gone_is_made_under_ones_own(new_run: Any, tmp_path: Path) -> None:
    theirs = made(new_run("a"))
    run = new_run("b")
    assert made(run) == theirs
    assert theirs.startswith("validate/a-")
    (tmp_path / "data" / theirs / "record.json").unlink()
    with pytest.raises(InputError, match="is not there any more"):
        made(run)
    assert not (tmp_path / "data" / theirs / "record.json").exists(), "nobody makes another recipe's artifact"
    assert made(new_run("b")).startswith("validate/b-")


def test_a_rebuild_is_made_under_ones_own_name_and_knows_it(new_run: Any) -> None:
    made(new_run("a"))
    asked: list[bool] = []

    def building(work: Work) -> Draft:
        asked.append(work.is_rebuild)
        return build(work)

    for options in ({"from_stage": Stage.VALIDATE}, {"from_stage": Stage.VALIDATE}):
        bench = bench_of(new_run("b", **options), listener=Listener(note=lambda _: None, view=ignore_view))
        find_or_make(Stage.VALIDATE, bench=bench, build=building)
    assert asked == [True, True]
    assert made(new_run("b")).endswith(".r1")
