"""Raw text in a bucket, from `validate` to token shards, with real jobs: what text in a folder makes, wherever artifacts lie."""

import json
import os
import secrets
import shutil
from pathlib import Path

import pytest

from cluster.storage import open_storage
from flows.checkup_sources import check_sources
from schemas.errors import InputError, UnreachableError
from schemas.exit_code import ExitCode
from schemas.recipe import load_recipe
from schemas.stage import Stage
from tasks.planning import make_plan
from tasks.verify import verify_model
from tasks.witnesses import witnesses_of
from tests.fakes.made_stages import judge_leniently, make_stages
from tests.fakes.remote_text import InBucket
from tests.fakes.s3_server import BUCKET, S3Server
from tests.fakes.tiny_pipeline import Project, make_project

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def lenient_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    judge_leniently(monkeypatch)


@pytest.fixture
def place(s3_bucket: S3Server) -> InBucket:
    return InBucket()


def upload_text(project: Project, place: InBucket) -> str:
    """Moves a project's text into a bucket, and returns the override that names it there."""
    for path in (project.folder / "text").iterdir():
        place.put(f"raw/{path.name}", path.read_bytes())
    shutil.rmtree(project.folder / "text")
    return f"corpus.sources=[{{path: '{place.url}/raw', format: text, name: code}}]"


def test_text_in_a_bucket_makes_the_shards_that_text_in_a_folder_makes(tmp_path: Path, place: InBucket, finished: Project) -> None:
    project = make_project(tmp_path / "project")
    there = upload_text(project, place)
    made = make_stages(project, there, until=Stage.TOKENIZE)
    for record in made:
        here = json.loads((finished.artifact(record.stage.value) / "record.json").read_text())
        assert (record.key, record.fingerprint, record.content_hash) == (here["key"], here["fingerprint"], here["content_hash"])
    assert not (project.root / made[0].key / "carried").exists()
    config = load_recipe(project.recipe, (there,)).config
    assert witnesses_of(config) is None, "no certificate: only the server can tell"
    (found,) = check_sources(config)
    assert (found["level"], found["subject"]) == ("ok", "corpus.sources.0")
    verified = verify_model(open_storage(str(project.root)), made[0].key)
    assert (verified.findings, verified.artifacts[-1].key, verified.artifacts[-1].files) == ((), "raw", int(made[0].summary["files"]))
    name = json.loads((project.root / made[0].key / "plan.json").read_text())["groups"][0]["inputs"][0]["relative_path"]
    place.put(f"raw/{name}", b"# another text\n")
    damaged = verify_model(open_storage(str(project.root)), made[0].key)
    assert damaged.findings == (f"{place.url}/raw/{name}: its content is not what was committed",)
    (validate, *_) = make_plan(config).stages
    assert [reason for reason in validate.reasons if f"code/{name} changed" in reason], validate.reasons


def test_text_and_artifacts_in_buckets_make_the_same_corpus(tmp_path: Path, place: InBucket, finished: Project) -> None:
    project = make_project(tmp_path / "project")
    there = upload_text(project, place)
    url = f"s3://{BUCKET}/remote-text-{secrets.token_hex(4)}"
    (record,) = make_stages(project, there, f"storage.root={url}", until=Stage.VALIDATE)
    here = json.loads((finished.artifact("validate") / "record.json").read_text())
    assert (record.fingerprint, record.content_hash) == (here["fingerprint"], here["content_hash"])
    assert open_storage(url).names(f"{record.key}/carried") == ()
    assert list((project.folder / ".headrace/state/scratch/staged/mirrors").iterdir()) == []


def test_a_source_that_nobody_gives_out_is_told_before_anything_is_made(
    tmp_path: Path, place: InBucket, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = make_project(tmp_path / "project")
    with pytest.raises(InputError, match="holds no file to read") as caught:
        make_plan(load_recipe(project.recipe, (f"corpus.sources=['{place.url}/nowhere/']",)).config)
    assert caught.value.exit_code is ExitCode.USAGE
    monkeypatch.setitem(os.environ, "AWS_SECRET_ACCESS_KEY", "wrong")
    config = load_recipe(project.recipe, (f"corpus.sources=['{place.url}/raw/']",)).config
    with pytest.raises(UnreachableError, match="access is denied") as denied:
        make_plan(config)
    assert denied.value.exit_code is ExitCode.UNREACHABLE
    (found,) = check_sources(config)
    assert (found["level"], "access is denied" in found["what"]) == ("error", True)
    assert "wrong" not in json.dumps(found)
