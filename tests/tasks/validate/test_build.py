"""The stage as a whole: from raw files to a judged corpus with its manifest, and what stops it."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cluster.layout import REPORT_NAME
from cluster.storage import file_entry, hash_file
from schemas.artifact import ArtifactRecord, Provenance
from schemas.canonical import canonical_json
from schemas.config import RunConfig
from schemas.errors import DataVerdictError, InputError, LeaseHeldError
from schemas.exit_code import ExitCode
from schemas.manifest import CorpusManifest, CorpusPlan
from schemas.stage import Stage
from tasks.validate import judge as judging
from tasks.validate.build import build, previous_corpus
from tasks.validate.checks import Verdict
from tasks.validate.judge import Finding, Judgement
from tasks.validate.stats import CorpusStats
from tasks.work import Draft

Recipe = Callable[..., RunConfig]
WorkOn = Callable[..., Any]

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture
def lenient_judge(monkeypatch: pytest.MonkeyPatch) -> list[CorpusStats]:
    """Stands for Great Expectations where a test is about something else: passes everything, keeps what it was shown."""
    shown: list[CorpusStats] = []

    def judge(stats: CorpusStats, *, docs_dir: Path, **_: Any) -> Judgement:
        shown.append(stats)
        (docs_dir / "index.html").write_text("judged")
        return Judgement(Verdict.PASS_WITH_QUARANTINE if stats.total.num_quarantined else Verdict.PASS, 1, ())

    monkeypatch.setattr(judging, "judge", judge)
    monkeypatch.setattr(judging, "preload", lambda: None)
    return shown


def write_shards(folder: Path, *, shards: int = 6, documents: int = 40) -> Path:
    folder.mkdir(parents=True)
    for shard in range(shards):
        lines = [json.dumps({"text": f"document {i + (documents - 5) * shard} of the corpus"}) for i in range(documents)]
        (folder / f"part-{shard}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def manifest_of(work: Any) -> CorpusManifest:
    return CorpusManifest.model_validate_json((work.output_dir / "manifest.json").read_bytes())


def texts_of(work: Any) -> list[str]:
    return [text for file in manifest_of(work).files for text in pq.read_table(work.output_dir / file.file.path)["text"].to_pylist()]


def test_several_groups_give_each_text_once_and_counts_that_balance(
    tmp_path: Path, recipe: Recipe, work_on: WorkOn, lenient_judge: list[CorpusStats]
) -> None:
    config = recipe(str(write_shards(tmp_path / "in")), group_bytes=2000, splits={"validation": 0.2, "test": 0.2})
    work = work_on(config)
    draft = build(work)
    manifest = manifest_of(work)
    plan = CorpusPlan.model_validate_json((work.output_dir / "plan.json").read_bytes())
    assert len(plan.groups) > 2
    texts = texts_of(work)
    assert sorted(texts) == sorted({f"document {i} of the corpus" for i in range(35 * 5 + 40)})
    assert (manifest.read, manifest.accepted, manifest.quarantined, manifest.reasons) == (240, 215, 25, {"duplicate": 25})
    assert lenient_judge[0].total.num_accepted == 215
    assert draft.summary["verdict"] == "pass with quarantine"
    assert sum(draft.summary["documents"].values()) == 215
    assert {file.relative_path for file in manifest.inputs} == {f"part-{i}.jsonl" for i in range(6)}


def test_what_the_draft_lists_is_all_there_is_and_nothing_is_left_over(
    tmp_path: Path, recipe: Recipe, work_on: WorkOn, lenient_judge: list[CorpusStats]
) -> None:
    work = work_on(recipe(str(write_shards(tmp_path / "in")), group_bytes=2000))
    draft = build(work)
    for entry in draft.files:
        path = work.output_dir / entry.path
        assert (hash_file(path), path.stat().st_size) == (entry.xxh3, entry.size)
    listed = {entry.path for entry in draft.files}
    there = {path.relative_to(work.output_dir).as_posix() for path in work.output_dir.rglob("*") if path.is_file()}
    assert {name for name in there - listed if not name.startswith(("items/", "superseded/"))} == set()


def test_the_content_hash_is_of_the_accepted_text_alone(tmp_path: Path, recipe: Recipe, work_on: WorkOn, lenient_judge: list[CorpusStats]) -> None:
    drafts = [
        build(
            work_on(recipe(str(write_shards(tmp_path / place)), group_bytes=2000, max_quarantined_share=share), key=f"validate/{place}-000000000000")
        )
        for place, share in (("here", 0.1), ("there", 0.2))
    ]
    assert drafts[0].content_hash == drafts[1].content_hash
    changed = write_shards(tmp_path / "changed")
    (changed / "part-0.jsonl").write_text('{"text": "another"}\n')
    assert build(work_on(recipe(str(changed), group_bytes=2000), key="validate/changed-000000000000")).content_hash != drafts[0].content_hash


@pytest.mark.parametrize("stop_after", range(1, 6))
def test_a_build_that_was_stopped_goes_on_and_ends_the_same(
    stop_after: int, tmp_path: Path, recipe: Recipe, work_on: WorkOn, lenient_judge: list[CorpusStats], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = recipe(str(write_shards(tmp_path / "in")), group_bytes=2000)
    calm = build(work_on(config, key="validate/calm-000000000000"))
    work = work_on(config, key="validate/stopped-000000000000")

    class StoppedError(Exception):
        pass

    publish, run, left = type(work).publish_json, type(work).run_array, [stop_after]

    def count(act: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise StoppedError
            return act(*args, **kwargs)

        return counted

    with monkeypatch.context() as patch:
        patch.setattr(type(work), "publish_json", count(publish))
        patch.setattr(type(work), "run_array", count(run))
        with pytest.raises(StoppedError):
            build(work)
    again = build(work_on(config, key="validate/stopped-000000000000"))
    assert again.content_hash == calm.content_hash
    assert again.summary == calm.summary
    repeated = build(work_on(config, key="validate/stopped-000000000000"))
    assert repeated.files == again.files
    assert [file for file in again.files if file.path != REPORT_NAME] == [file for file in calm.files if file.path != REPORT_NAME]  # it has the key


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_the_same_files_may_lie_elsewhere_when_an_unfinished_corpus_goes_on(
    stop_after: int, tmp_path: Path, recipe: Recipe, work_on: WorkOn, lenient_judge: list[CorpusStats], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after its plan, its manifest, and its figures: the first two say where files lie."""
    folder, elsewhere = write_shards(tmp_path / "in"), tmp_path / "moved"
    key, left = "validate/moved-000000000000", [stop_after]
    work = work_on(recipe(str(folder), group_bytes=2000), key=key)

    class StoppedError(Exception):
        pass

    def stop(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise StoppedError
        return publish(*args, **kwargs)

    publish = type(work).publish_json
    with monkeypatch.context() as patch:
        patch.setattr(type(work), "publish_json", stop)
        patch.setattr(judging, "judge", stop)
        with pytest.raises(StoppedError):
            build(work)
    folder.rename(elsewhere)
    draft = build(work_on(recipe(str(elsewhere), group_bytes=2000), key=key))
    for name in ("plan.json", "manifest.json"):
        made = tmp_path / "storage" / key / name
        assert f"{elsewhere}/" in made.read_text()
        assert f"{folder}/" not in made.read_text()
        assert file_entry(made, relative_to=made.parent) in draft.files


def test_who_lost_its_lease_leaves_the_plan_of_whoever_goes_on(
    tmp_path: Path, recipe: Recipe, work_on: WorkOn, lenient_judge: list[CorpusStats]
) -> None:
    """Its machine slept, and the other one found the same files elsewhere."""
    folder, elsewhere, key = write_shards(tmp_path / "in"), tmp_path / "moved", "validate/moved-000000000000"
    draft = build(work_on(recipe(str(folder), group_bytes=2000), key=key))
    folder.rename(elsewhere)
    late = work_on(recipe(str(elsewhere), group_bytes=2000), key=key)
    late.still_held = lambda: False
    with pytest.raises(LeaseHeldError, match=f"{key} was taken over by another process"):
        build(late)
    for file in draft.files:
        assert file_entry(tmp_path / "storage" / key / file.path, relative_to=tmp_path / "storage" / key) == file


def test_a_column_missing_in_one_shard_stops_the_stage_and_names_shard_and_column(
    tmp_path: Path, recipe: Recipe, work_on: WorkOn, lenient_judge: list[CorpusStats]
) -> None:
    folder = write_shards(tmp_path / "in", shards=20)
    (folder / "part-17.jsonl").write_text('{"body": "a"}\n{"body": "b"}\n')
    (folder / "part-18.jsonl").write_text('{"text": 1}\n{"text": 2}\n')
    with pytest.raises(InputError) as caught:
        build(work_on(recipe(str(folder), group_bytes=2000)))
    assert "part-17.jsonl: no column 'text', in all 2 records" in str(caught.value)
    assert "part-18.jsonl: 'text' is integer, must be string, in all 2 records" in str(caught.value)
    assert not lenient_judge
    assert not (tmp_path / "storage/validate/test-000000000000/manifest.json").exists()


def test_a_failed_verdict_keeps_the_reports_and_says_where(
    tmp_path: Path, recipe: Recipe, work_on: WorkOn, monkeypatch: pytest.MonkeyPatch, lenient_judge: list[CorpusStats]
) -> None:
    def fail(stats: CorpusStats, *, docs_dir: Path, **_: Any) -> Judgement:
        (docs_dir / "index.html").write_text("failed")
        return Judgement(Verdict.FAIL, 9, (Finding("corpus", "at most 0.1 quarantined: 0.5", "mend the files"),))

    monkeypatch.setattr(judging, "judge", fail)
    work = work_on(recipe(str(write_shards(tmp_path / "in"))))
    for _ in range(2):  # the second time as after a restart
        with pytest.raises(DataVerdictError, match="the corpus failed 1 of 9 checks") as caught:
            build(work)
    assert caught.value.exit_code is ExitCode.DATA_VERDICT
    assert "at most 0.1 quarantined: 0.5" in caught.value.what
    assert str(work.output_dir / "docs/index.html") in caught.value.mend
    assert (work.output_dir / "docs/index.html").read_text() == "failed"
    assert (work.output_dir / "stats.json").exists()


def test_the_previous_corpus_is_the_newest_finished_one_of_the_same_name(tmp_path: Path, recipe: Recipe, work_on: WorkOn) -> None:
    work = work_on(recipe("nowhere"))

    def finish(folder: str, *, created_at: str, read: int) -> None:
        provenance = Provenance(run_id="r", created_at=created_at, created_by="", argv=(), commit="", versions={})
        record = ArtifactRecord(
            stage=Stage.VALIDATE,
            stage_version=1,
            name="test",
            key=f"validate/{folder}",
            fingerprint="0" * 64,
            content_hash="0" * 64,
            inputs=(),
            recipe={},
            files=(),
            summary={"read": read},
            provenance=provenance,
        )
        work.storage.create_exclusive(f"validate/{folder}/record.json", record.sealed().to_bytes())

    assert previous_corpus(work.storage, name="test", key=work.key) is None
    finish("test-aaaaaaaaaaaa", created_at="2026-01-01T00:00:00+00:00", read=1)
    finish("test-bbbbbbbbbbbb", created_at="2026-01-03T00:00:00+00:00", read=2)
    finish("other-cccccccccccc", created_at="2026-01-04T00:00:00+00:00", read=3)
    work.storage.create_exclusive("validate/test-dddddddddddd/plan.json", canonical_json({}))
    found = previous_corpus(work.storage, name="test", key=work.key)
    assert found is not None
    assert (found.key, found.read) == ("validate/test-bbbbbbbbbbbb", 2)
    other = previous_corpus(work.storage, name="test", key="validate/test-bbbbbbbbbbbb")
    assert other is not None
    assert other.read == 1


@pytest.mark.slow
def test_a_corpus_with_planted_bad_records_is_judged_for_real(tmp_path: Path, recipe: Recipe, work_on: WorkOn) -> None:
    planted = [b"{broken", b'{"text": "caf\xe9"}', b'{"text": null}', b'{"text": ""}', b'{"text": "a\\u0000b"}', b'{"other": 1}', b"", b'{"text": 7}']
    lines = [json.dumps({"text": f"A good document, number {i}."}).encode() for i in range(500)]
    for index, line in enumerate(planted):
        lines.insert(index * 50, line)
    (tmp_path / "docs.jsonl.gz").write_bytes(gzip.compress(b"\n".join(lines) + b"\n"))
    work = work_on(recipe(str(tmp_path / "docs.jsonl.gz")))
    draft: Draft = build(work)
    manifest = manifest_of(work)
    assert (manifest.read, manifest.accepted, manifest.quarantined) == (508, 500, 8)
    assert sum(manifest.reasons.values()) == 8
    assert set(manifest.reasons.values()) == {1}
    rows = pq.read_table(work.output_dir / "quarantine/g0000.parquet").to_pylist()
    assert [(row["path"], row["row"]) for row in rows] == [("docs.jsonl.gz", index * 50 + 1) for index in range(8)]
    assert draft.summary["verdict"] == "pass with quarantine"
    assert any(note.startswith("pass with quarantine: 508 records read, 500 accepted, 8 quarantined") for note in work.notes)
    assert (work.output_dir / "docs/index.html").exists()


@pytest.mark.slow
def test_a_corpus_of_rubbish_fails_for_real(tmp_path: Path, recipe: Recipe, work_on: WorkOn) -> None:
    (tmp_path / "a.jsonl").write_text("broken\n" * 50 + '{"text": "one"}\n' * 3)
    with pytest.raises(DataVerdictError) as caught:
        build(work_on(recipe(str(tmp_path / "a.jsonl"))))
    assert "corpus.rules.max_quarantined_share): 0.9434" in caught.value.what
    assert "raise corpus.rules.max_quarantined_share" in caught.value.mend
