"""The whole pipeline on a real S3 server, as a user runs it: the same artifacts as on a folder, whatever the server and the machine do meanwhile."""

import contextlib
import json
import os
import secrets
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.attempt import committed, read_heartbeats
from cluster.layout import ArtifactLayout
from cluster.s3_requests import S3Requests
from cluster.storage import Storage, open_storage
from schemas.stage import Stage
from tests.fakes.finished_pipeline import TRAINING
from tests.fakes.live_job import wait_until
from tests.fakes.s3_faults import Trouble, troubled
from tests.fakes.s3_server import BUCKET, S3Server
from tests.fakes.tiny_pipeline import Project, make_project

pytestmark = pytest.mark.exhaustive

SAME_ANYWHERE = (Stage.VALIDATE, Stage.TOKENIZER, Stage.TOKENIZE, Stage.TRAIN, Stage.EXPORT)
"""Stages whose content does not depend on time or place; an evaluation measures speed, a registration names its server."""


@pytest.fixture
def url() -> str:
    return f"s3://{BUCKET}/pipeline-{secrets.token_hex(4)}"


@pytest.fixture
def trouble(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Trouble]]:
    """Every twentieth request fails: the endpoint, and what struck."""
    with troubled(s3_server.endpoint, share=0.05, seed=5) as (endpoint, trouble):
        for name, value in s3_server.environment().items():  # the test itself looks at the server past the proxy
            monkeypatch.setenv(name, value)
        yield endpoint, trouble


@pytest.fixture
def project(tmp_path: Path, url: str, s3_server: S3Server, trouble: tuple[str, Trouble]) -> Iterator[Project]:
    environment = s3_server.environment(endpoint=trouble[0])
    project = make_project(tmp_path / "project", changes={**TRAINING, "storage.root": url}, secrets=environment)
    yield project
    project.end()
    kill_all_of(project)


def processes_of(project: Project) -> list[psutil.Process]:
    """Everything that works for the project, but this test: all of it works in its folder, or names it."""
    return [process for process in psutil.process_iter() if process.pid != os.getpid() and works_in(process, project.folder)]


def kill_all_of(project: Project) -> None:
    """Kills them; those that end with another one are gone already."""
    for process in processes_of(project):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def works_in(process: psutil.Process, folder: Path) -> bool:
    try:
        return str(folder) in " ".join((process.cwd(), *process.cmdline()))
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


def record(storage: Storage, stage: Stage) -> Any:
    """The only finished artifact of a stage."""
    (key,) = [f"{stage.value}/{name}" for name in storage.names(stage.value) if storage.exists(f"{stage.value}/{name}/record.json")]
    return json.loads(storage.read(f"{key}/record.json"))


def test_the_pipeline_makes_the_same_though_requests_fail_and_everything_is_killed(
    project: Project, url: str, finished: Project, trouble: tuple[str, Trouble]
) -> None:
    storage = open_storage(url)
    run = project.start("run", "tiny.yaml")

    def has_commits() -> bool:
        assert run.poll() is None, (project.folder / "output.log").read_text()
        return any(committed(storage, ArtifactLayout(f"train/{name}")) for name in storage.names("train"))

    wait_until(has_commits, patience_s=240.0)
    kill_all_of(project)
    run.wait()
    (run_id,) = storage.names("runs")
    done = project.headrace("resume", run_id, timeout_s=400.0)
    assert done.returncode == 0, done.stdout + done.stderr
    assert trouble[1].struck
    here, there = open_storage(str(finished.root)), storage
    assert {stage: record(there, stage)["content_hash"] for stage in SAME_ANYWHERE} == {
        stage: record(here, stage)["content_hash"] for stage in SAME_ANYWHERE
    }
    manifests = [storage.read(f"{record(storage, Stage.TOKENIZE)['key']}/manifest.json") for storage in (here, there)]
    assert manifests[0] == manifests[1]
    assert_nothing_is_left(project, url)
    whole = project.headrace("verify", "tiny")
    assert whole.returncode == 0, whole.stdout + whole.stderr
    again = project.headrace("run", "tiny.yaml")
    assert "nothing to do" in again.stdout, again.stdout + again.stderr
    victim = f"{record(storage, Stage.EXPORT)['key']}/model/model.safetensors"
    data = bytearray(storage.read(victim))
    data[len(data) // 2] ^= 1
    storage.delete(victim)
    storage.create_exclusive(victim, bytes(data))
    found = project.headrace("verify", "tiny")
    assert (found.returncode, "model.safetensors" in found.stderr) == (7, True), found.stdout + found.stderr


def test_two_nodes_that_share_nothing_but_a_bucket_train_the_same_through_kills(
    tmp_path: Path, url: str, s3_server: S3Server, s3_bucket: S3Server, finished: Project
) -> None:
    nodes = {"cluster.nodes": 2, "cluster.ranks_per_node": 1}
    project = make_project(tmp_path / "project", changes={**TRAINING, **nodes, "storage.root": url}, secrets=s3_server.environment())
    storage = open_storage(url)
    run = project.start("run", "tiny.yaml")

    def committed_steps() -> int:
        assert run.poll() is None, (project.folder / "output.log").read_text()
        return max((len(committed(storage, ArtifactLayout(f"train/{name}"))) for name in storage.names("train")), default=0)

    try:
        wait_until(lambda: committed_steps() > 0, patience_s=240.0)
        (name,) = storage.names("train")
        os.kill(pid_of_a_rank(storage, f"train/{name}", node_rank=1), signal.SIGKILL)
        assert run.wait(timeout=400.0) == 0, (project.folder / "output.log").read_text()
    finally:
        project.end()
        kill_all_of(project)
    trained = record(storage, Stage.TRAIN)
    assert trained["content_hash"] == record(open_storage(str(finished.root)), Stage.TRAIN)["content_hash"]
    (incident,) = [
        json.loads(storage.read(f"{attempt}/{name}"))
        for attempt in [f"{trained['key']}/attempts/job-0000/incidents"]
        for name in storage.names(attempt)
    ]
    assert (incident["cause"], incident["decision"]) == ("killed", "restart")
    assert_nothing_is_left(project, url)
    whole = project.headrace("verify", "tiny")
    assert whole.returncode == 0, whole.stdout + whole.stderr


def pid_of_a_rank(storage: Storage, key: str, *, node_rank: int) -> int:
    """The pid that a rank of a node has told: the newest heartbeat may be older than the ranks, or be replaced while it is read."""
    found: list[int] = []

    def is_told() -> bool:
        beats = read_heartbeats(storage, ArtifactLayout(key).attempt("", 0))
        found.extend(rank.pid for beat in beats if beat.node_rank == node_rank for rank in beat.ranks)
        return bool(found)

    wait_until(is_told)
    return found[0]


def assert_nothing_is_left(project: Project, url: str) -> None:
    """No upload in parts, no unfinished name, no data without a commit, no mirror, no process."""
    storage, prefix = open_storage(url), url.rpartition("/")[2]
    requests = S3Requests(BUCKET, url=url)
    assert not requests.call("list_multipart_uploads", Prefix=prefix).get("Uploads")
    names = [str(item["Key"]) for page in requests.pages(prefix) for item in page.get("Contents", ())]
    assert [name for name in names if "/.tmp-" in name] == []
    (train,) = storage.names("train")
    layout = ArtifactLayout(f"train/{train}")
    named = {json.loads(storage.read(layout.commit(step)))["folder"].rpartition("/")[2] for step in committed(storage, layout)}
    assert set(storage.names(layout.checkpoints)) == named, [name for name in names if "/checkpoints/" in name]
    assert project.left_behind() == []
    assert list((project.folder / ".headrace/state/scratch/staged/mirrors").iterdir()) == []
