"""A pipeline whose recipe declares preparation: its jobs by one worker and by three, on a folder and in a bucket, and all of it as a user runs it."""

import json
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cluster.s3_requests import S3Requests
from cluster.storage import open_storage
from schemas.artifact import ArtifactRecord
from schemas.stage import Stage
from tests.fakes.made_stages import judge_leniently, make_stages
from tests.fakes.s3_faults import troubled
from tests.fakes.s3_server import BUCKET, S3Server
from tests.fakes.tiny_pipeline import Project, make_project

PREPARATION: dict[str, Any] = {
    "corpus.preparation.normalization": "nfc",
    "corpus.preparation.pii.mask": ["email"],
    "corpus.preparation.decontamination.ngram": 50,
    "corpus.preparation.duplicates.near": True,
}


def add_near_copies(project: Project) -> None:
    """Lays changed copies of some files beside them."""
    for number, path in enumerate(sorted((project.folder / "text").glob("*.py"))[:20:4]):
        lines = path.read_text().splitlines()
        lines[len(lines) // 2] += f"  # changed in copy {number}: somebody@example.org"
        path.with_name(f"copy_of_{path.name}").write_text("\n".join(lines))


@pytest.fixture
def lenient_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    judge_leniently(monkeypatch)


@pytest.mark.slow
@pytest.mark.usefixtures("lenient_judge")
def test_one_worker_and_three_make_the_same_corpus(tmp_path: Path) -> None:
    one = make_project(tmp_path / "one", changes=PREPARATION)
    add_near_copies(one)
    _, alone = make_stages(one, "cluster.max_parallel_items=1", until=Stage.PREPARE)
    three = make_project(tmp_path / "three", changes=PREPARATION)
    shutil.rmtree(three.folder / "text")
    shutil.copytree(one.folder / "text", three.folder / "text")
    three.take(one, "validate")
    accepted, together = make_stages(three, "cluster.max_parallel_items=3", until=Stage.PREPARE)
    assert (together.files, together.content_hash, together.fingerprint) == (alone.files, alone.content_hash, alone.fingerprint)
    assert together.inputs == (accepted.ref(),)
    assert together.summary["read"] == accepted.summary["accepted"]
    assert sum(together.summary["reasons"].values()) == 5, "a copy each of five documents, in training where the other is held out"
    assert set(together.summary["reasons"]) <= {"near-duplicate", "contaminated"}
    stats = json.loads((three.root / together.key / "stats.json").read_text())
    assert {step["name"]: step["read"] for step in stats["steps"]}["pii"] == together.summary["read"]
    folder = three.root / together.key
    assert not [path for path in folder.rglob("*") if path.name.startswith(".tmp-")]
    assert not (folder / "ngrams").exists()


@pytest.mark.exhaustive
@pytest.mark.usefixtures("lenient_judge")
def test_a_bucket_whose_server_fails_now_and_then_gets_the_corpus_that_a_folder_gets(
    tmp_path: Path, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"s3://{BUCKET}/prepared-{secrets.token_hex(4)}"
    project = make_project(tmp_path / "project", changes=PREPARATION)
    add_near_copies(project)
    on_folder = make_stages(project, until=Stage.TOKENIZE)
    with troubled(s3_server.endpoint, share=0.05, seed=7) as (endpoint, trouble):
        set_all(monkeypatch, s3_server.environment(endpoint=endpoint))
        in_bucket = make_stages(project, f"storage.root={url}", until=Stage.TOKENIZE)
        assert made_of(in_bucket) == made_of(on_folder)
        changed = sorted((project.folder / "text").glob("*.py"))[7]
        changed.write_text(changed.read_text() + "# one line more\n")
        again_on_folder = make_stages(project, until=Stage.TOKENIZE)
        again_in_bucket = make_stages(project, f"storage.root={url}", until=Stage.TOKENIZE)
    assert trouble.struck
    assert made_of(again_in_bucket) == made_of(again_on_folder) != made_of(on_folder)
    for stage in (0, 1):
        assert again_in_bucket[stage].summary["reused_groups"] == again_on_folder[stage].summary["reused_groups"] > 0
    prepared = in_bucket[1]
    assert prepared.files == on_folder[1].files
    assert sum(prepared.summary["reasons"].values()) == 5, "a copy each of five documents"
    set_all(monkeypatch, s3_server.environment())
    folder, bucket = open_storage(str(project.root)), open_storage(url)
    for record in (prepared, in_bucket[3]):
        assert bucket.read(f"{record.key}/manifest.json") == folder.read(f"{record.key}/manifest.json")
    assert_nothing_is_left(url, prepared)


def made_of(records: list[ArtifactRecord]) -> list[tuple[str, str]]:
    """What was made, whatever it was made on."""
    return [(record.key, record.content_hash) for record in records]


def assert_nothing_is_left(url: str, prepared: ArtifactRecord) -> None:
    """No upload in parts, no unfinished name, no index of texts to compare with, no corpus from before its duplicates were removed."""
    requests, prefix = S3Requests(BUCKET, url=url), url.rpartition("/")[2]
    assert not requests.call("list_multipart_uploads", Prefix=prefix).get("Uploads")
    names = [str(item["Key"]).removeprefix(f"{prefix}/") for page in requests.pages(prefix) for item in page.get("Contents", ())]
    assert [name for name in names if "/.tmp-" in name] == []
    of_prepared = {name.removeprefix(f"{prepared.key}/") for name in names if name.startswith(prepared.key)}
    data = {name for name in of_prepared if name.endswith((".parquet", ".npy"))}
    assert data == {file.path for file in prepared.files if file.path.endswith(".parquet")}


def set_all(monkeypatch: pytest.MonkeyPatch, environment: Mapping[str, str]) -> None:
    """Sets variables of this process's environment."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


@pytest.mark.exhaustive
def test_a_whole_run_with_preparation(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project", changes=PREPARATION)
    add_near_copies(project)
    done = project.headrace("run", "tiny.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    stages = [stage.value for stage in Stage]
    assert [(stage["stage"], stage["state"]) for stage in project.answer("status", "last")["stages"]] == [(stage, "made") for stage in stages]
    record = json.loads((project.artifact("tokenizer") / "record.json").read_text())
    assert [ref["stage"] for ref in record["inputs"]] == ["prepare"]
    verified = project.headrace("verify", "tiny")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert "nothing to do" in project.headrace("run", "tiny.yaml").stdout
    victim = sorted((project.folder / "text").glob("copy_of_*"))[0]
    victim.write_text(victim.read_text() + "\n# one more line\n")
    again = project.headrace("run", "tiny.yaml")
    assert again.returncode == 0, again.stdout + again.stderr
    newest = max((project.root / "prepare").glob("*/record.json"), key=lambda path: path.stat().st_mtime)
    summary = json.loads(newest.read_text())["summary"]
    assert summary["groups"] - 1 <= summary["reused_groups"] + 1
    project.end()
    assert project.left_behind() == []
