"""Pods that share nothing with each other or with the machine that decides but a bucket: what they make is what one machine makes, bit for bit."""

import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.attempt import committed
from cluster.environment import checkout
from cluster.layout import ArtifactLayout
from cluster.s3_requests import S3Requests
from cluster.storage import Storage, open_storage
from schemas.exit_code import ExitCode
from schemas.stage import Stage
from tests.chaos.kubernetes_trouble import Place, place
from tests.fakes.finished_pipeline import TRAINING
from tests.fakes.live_job import wait_until
from tests.fakes.s3_server import BUCKET, S3Server
from tests.fakes.tiny_pipeline import Project, make_project

pytestmark = [pytest.mark.slow, pytest.mark.exhaustive, pytest.mark.kubernetes]

SECRET = "storage"
SAME_ANYWHERE = (Stage.VALIDATE, Stage.TOKENIZER, Stage.TOKENIZE, Stage.TRAIN, Stage.EXPORT)
"""Stages whose content does not depend on time or place."""
_SMALL_BYTES = 200_000


@pytest.fixture
def url() -> str:
    return f"s3://{BUCKET}/pods-{secrets.token_hex(4)}"


@pytest.fixture
def here(kubernetes_nodes: Any, tmp_path: Path) -> Iterator[Place]:
    with place(kubernetes_nodes, tmp_path) as found:
        yield found


def alone(**section: Any) -> dict[str, Any]:
    """What the recipe says of pods whose only volume is what an image has: Headrace itself, which on this cluster is this checkout."""
    image = [{"mount": str(checkout()), "host_path": str(checkout()), "read_only": True}]
    return {"volumes": image, "scratch_size": "2G", **section}


def changes(here: Place, url: str) -> dict[str, Any]:
    """Changes of a recipe that make its jobs such pods: training on two nodes with a rank each."""
    section = here.cluster(kubeconfig=str(here.lab.kubeconfig), **alone(secrets=[SECRET])).model_dump(mode="json", exclude_defaults=True)
    return {
        **{f"cluster.{key}": value for key, value in section.items()},
        "storage.root": url,
        "cluster.cache_bytes": 500_000_000,
        "cluster.ranks_per_node": 1,
        "cluster.max_parallel_items": 2,
        "cluster.stages": {"validate": {"nodes": 2}, "tokenize": {"nodes": 2}, "train": {"nodes": 2}},
    }


def record(storage: Storage, stage: Stage) -> Any:
    """The only finished artifact of a stage."""
    (key,) = [f"{stage.value}/{name}" for name in storage.names(stage.value) if storage.exists(f"{stage.value}/{name}/record.json")]
    return json.loads(storage.read(f"{key}/record.json"))


def objects(url: str) -> Iterator[tuple[str, int]]:
    """Names and sizes of all that is in the bucket below the storage root."""
    for page in S3Requests(BUCKET, url=url).pages(url.rpartition("/")[2]):
        yield from ((str(item["Key"]), int(item["Size"])) for item in page.get("Contents", ()))


def test_pods_make_what_one_machine_makes_though_a_node_loses_power(
    here: Place, tmp_path: Path, url: str, s3_server: S3Server, s3_bucket: S3Server, finished: Project
) -> None:
    known = s3_server.environment()
    here.api.call("POST", here.api.objects("secrets"), body={"metadata": {"name": SECRET}, "stringData": known})
    project, storage = make_project(tmp_path / "project", changes={**TRAINING, **changes(here, url)}, secrets=known), open_storage(url)
    run = project.start("run", "tiny.yaml")

    def has_commits() -> bool:
        assert run.poll() is None, (project.folder / "output.log").read_text()
        return any(committed(storage, ArtifactLayout(f"train/{name}")) for name in storage.names("train"))

    try:
        wait_until(has_commits, patience_s=400.0)
        here.lab.kill(here.pod(1)["spec"]["nodeName"])
        assert run.wait(timeout=600.0) == 0, (project.folder / "output.log").read_text()
    finally:
        project.end()
    at_home = open_storage(str(finished.root))
    assert {stage: record(storage, stage)["content_hash"] for stage in SAME_ANYWHERE} == {
        stage: record(at_home, stage)["content_hash"] for stage in SAME_ANYWHERE
    }
    train = ArtifactLayout(record(storage, Stage.TRAIN)["key"])
    assert storage.names(f"{train.key}/attempts") == ("job-0000", "job-0001")
    manifests = list(yaml.safe_load_all(storage.read(train.attempt("", 0).submission)))
    shared = [volume for pod in manifests if pod["kind"] == "Pod" for volume in pod["spec"]["volumes"] if "emptyDir" not in volume]
    assert {volume["hostPath"]["path"] for volume in shared} == {str(checkout())}
    assert_nothing_is_left_and_nothing_told(url, storage, secret=known["AWS_SECRET_ACCESS_KEY"])
    wait_until(here.is_empty)  # the API server removes in its own time what it was asked to remove


def assert_nothing_is_left_and_nothing_told(url: str, storage: Storage, *, secret: str) -> None:
    """No raw text, no upload in parts, no unfinished name; and in no record, manifest, log or report how the bucket is opened."""
    names = dict(objects(url))
    assert [name for name in names if "/carried/" in name or "/.tmp-" in name] == []
    assert not S3Requests(BUCKET, url=url).call("list_multipart_uploads", Prefix=url.rpartition("/")[2]).get("Uploads")
    small = [name.partition("/")[2] for name, size in names.items() if size < _SMALL_BYTES]
    assert any("/logs/" in name for name in small), "what pods print is in the bucket"
    assert [name for name in small if secret.encode() in storage.read(name)] == []


def test_pods_without_credentials_say_so(here: Place, url: str, s3_bucket: S3Server) -> None:
    environment = {"PYTHONPATH": str(checkout()), "AWS_EC2_METADATA_DISABLED": "true", "AWS_ENDPOINT_URL": s3_bucket.endpoint}
    job = here.job(cluster=here.cluster(**alone(env=environment)), storage_root=url, cache_bytes=1_000_000, num_nodes=1)
    ended = job.run()
    assert ended.exit_code is not ExitCode.DONE
    assert "no credentials" in ended.message, ended
