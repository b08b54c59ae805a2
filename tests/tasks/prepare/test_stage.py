"""The optional stage among the others: plans, runs, jobs and records with it and without."""

from pathlib import Path
from typing import Any

import pytest

from cluster.storage import FileStorage
from schemas.artifact import ArtifactRef
from schemas.config import RunConfig
from schemas.errors import InputError
from schemas.plan import Action
from schemas.stage import Stage, stages_of
from tasks.planned_jobs import planned_jobs
from tasks.planning import make_plan
from tasks.prepare.task import prepare
from tasks.runs import create_run, open_run
from tasks.verify import verify_model
from tasks.views import view_of
from tests.fakes.finished_records import finish
from tests.fakes.in_process_work import config_with


def configuration(folder: Path, **preparation: Any) -> RunConfig:
    (folder / "text").mkdir(exist_ok=True)
    (folder / "text" / "a.txt").write_text("text")
    corpus = {"sources": [str(folder / "text")], "preparation": preparation}
    return config_with(corpus=corpus, storage={"root": str(folder / "data")}, state=str(folder / "state"))


def actions(config: RunConfig, **wish: Any) -> dict[str, str]:
    return {stage.stage.value: stage.action.value for stage in make_plan(config, **wish).stages}


def test_a_plan_names_the_stage_where_it_is_and_only_there(tmp_path: Path) -> None:
    plain, prepared = configuration(tmp_path), configuration(tmp_path, normalization="nfc")
    assert list(actions(plain)) == [stage.value for stage in stages_of(prepared=False)]
    assert list(actions(prepared)) == [stage.value for stage in Stage]
    assert make_plan(prepared).stage(Stage.TOKENIZER).reasons[0].startswith("depends on prepare")


def test_what_was_validated_is_found_again_when_preparation_is_declared_or_edited(tmp_path: Path) -> None:
    finish(configuration(tmp_path))
    prepared = configuration(tmp_path, normalization="nfc")
    declared = actions(prepared)
    assert (declared.pop("validate"), declared.pop("prepare"), set(declared.values())) == ("reuse", "build", {"depends"})
    finish(prepared, run_id="other")
    assert set(actions(prepared).values()) == {"reuse"}
    assert set(actions(configuration(tmp_path)).values()) == {"reuse"}, "the one without stays as it is"
    edited = make_plan(configuration(tmp_path, normalization="nfkc"))
    assert edited.stage(Stage.PREPARE).action is Action.BUILD
    assert edited.stage(Stage.PREPARE).reasons == ('corpus.preparation.normalization: "nfc" -> "nfkc"',)


def test_a_corpus_that_comes_out_equal_changes_nothing_after_it(tmp_path: Path) -> None:
    finish(configuration(tmp_path, normalization="nfc"))
    finish(configuration(tmp_path, normalization="nfkc"), run_id="other")  # its prepared corpus has the same content
    records = {path.parent.parent.name for path in (tmp_path / "data").glob("*/*/record.json")}
    assert records == {stage.value for stage in Stage}
    assert len(list((tmp_path / "data/prepare").glob("*/record.json"))) == 2
    assert len(list((tmp_path / "data/tokenizer").glob("*/record.json"))) == 1


def test_texts_to_compare_with_that_changed_are_named_as_the_reason(tmp_path: Path) -> None:
    named = tmp_path / "questions.txt"
    named.write_text("one")
    config = configuration(tmp_path, decontamination={"ngram": 13, "files": [str(named)]})
    finish(config)
    named.write_text("two")
    assert make_plan(config).stage(Stage.PREPARE).reasons == ("the texts to compare with changed",)
    named.unlink()
    with pytest.raises(InputError, match=r"questions\.txt: cannot be read"):
        make_plan(config)


def test_from_a_stage_that_the_recipe_has_not_is_refused(tmp_path: Path) -> None:
    config = configuration(tmp_path)
    finish(config)
    with pytest.raises(InputError, match="--from prepare: this recipe has no such stage"):
        make_plan(config, from_stage=Stage.PREPARE)
    prepared = configuration(tmp_path, normalization="nfc")
    finish(prepared, run_id="other")
    rebuilt = actions(prepared, from_stage=Stage.PREPARE)
    assert (rebuilt["validate"], rebuilt["prepare"]) == ("reuse", "rebuild")


@pytest.mark.parametrize("preparation", [{}, {"pii": {"mask": ["email"]}}])
def test_a_run_is_shown_with_the_stages_that_it_has(tmp_path: Path, preparation: dict[str, Any]) -> None:
    config = configuration(tmp_path, **preparation)
    run = open_run(create_run(config, project_dir=tmp_path, recipe="r.yaml"))
    assert tuple(stage.stage for stage in view_of(run).stages) == config.stages


def test_its_first_job_is_planned(tmp_path: Path) -> None:
    jobs = {
        prepared: planned_jobs(configuration(tmp_path, **prepared_by), storage_root="/data", project_dir=tmp_path)
        for prepared, prepared_by in ((False, {}), (True, {"normalization": "nfc"}))
    }
    assert list(jobs[True]) == [stage for stage in Stage if stage is not Stage.REGISTER]
    assert list(jobs[False]) == [stage for stage in jobs[True] if stage is not Stage.PREPARE]
    assert (jobs[True][Stage.PREPARE].argv[-1], jobs[True][Stage.PREPARE].step_name) == ("tasks.prepare.job", "filter")


def test_verification_walks_through_it_to_the_raw_files(tmp_path: Path) -> None:
    config = configuration(tmp_path, normalization="nfc")
    records = finish(config)
    assert records[Stage.TOKENIZER].inputs == (records[Stage.PREPARE].ref(),)
    storage = FileStorage(tmp_path / "data")
    report = verify_model(storage, records[Stage.REGISTER].key)
    assert verify_model(storage, f"{storage.root / records[Stage.REGISTER].key}/").artifacts == report.artifacts  # as a shell completes it
    assert {artifact.key.partition("/")[0] for artifact in report.artifacts} == {stage.value for stage in Stage}


def test_without_a_step_the_accepted_corpus_itself_is_handed_on(tmp_path: Path) -> None:
    run = create_run(configuration(tmp_path), project_dir=tmp_path, recipe="r.yaml")
    accepted = ArtifactRef(stage=Stage.VALIDATE, key="validate/test-000000000000", fingerprint="0", content_hash="0")
    assert prepare(run, accepted) is accepted
