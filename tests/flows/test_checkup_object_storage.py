"""`headrace doctor` on object storage: what it promises, what is refused, and nothing left behind."""

import secrets

import pytest

from cluster.object_storage import FsspecStorage
from cluster.storage import open_storage
from flows.checkup_storage import check_object_storage
from tests.fakes.s3_server import BUCKET, S3Server


@pytest.mark.slow
def test_a_bucket_that_keeps_its_promises_is_left_as_it_was(s3_bucket: S3Server) -> None:
    url = f"s3://{BUCKET}/doctor-{secrets.token_hex(4)}"
    (found,) = check_object_storage(url)
    assert (found["level"], found["subject"]) == ("ok", "storage.root")
    assert open_storage(f"s3://{BUCKET}").names(url.rpartition("/")[2]) == ()


@pytest.mark.slow
def test_a_reader_is_told_what_is_missing(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3_server.environment(reads_only=True).items():
        monkeypatch.setenv(name, value)
    (found,) = check_object_storage(f"s3://{BUCKET}/doctor")
    assert found["level"] == "error"
    assert "access is denied" in found["what"]
    assert "AbortMultipartUpload" in found["mend"]


def test_a_server_that_replaces_objects_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def replaces(storage: FsspecStorage, key: str, data: bytes) -> None:
        storage._fs.pipe_file(storage._path(key), data)

    monkeypatch.setattr(FsspecStorage, "create_exclusive", replaces)
    (found,) = check_object_storage(f"memory://doctor-{secrets.token_hex(4)}")
    assert found["level"] == "error"
    assert "replaced" in found["what"]


def test_a_root_that_names_no_bucket_is_an_error() -> None:
    (found,) = check_object_storage("s3://")
    assert (found["level"], "s3://BUCKET/PREFIX" in found["what"]) == ("error", True)
