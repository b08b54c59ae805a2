"""Jobs on object storage: what items read is brought to them, what they leave is there for all, and only the agent knows how."""

import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.attempt import read_exit
from cluster.layout import ArtifactLayout
from cluster.mirror import Mirror
from cluster.s3_storage import S3Storage
from cluster.storage import file_entry, open_storage
from schemas.artifact import ArtifactRecord, FileEntry, Provenance
from schemas.exit_code import ExitCode
from schemas.job import FileRead, ItemRecord
from schemas.stage import Stage
from tests.fakes.job_request import ARTIFACT, array_request
from tests.fakes.live_job import LiveJob, wait_until
from tests.fakes.s3_faults import Trouble, troubled
from tests.fakes.s3_server import BUCKET, S3Server

pytestmark = pytest.mark.slow

INPUT = "validate/corpus-0123456789ab"


@pytest.fixture
def url() -> str:
    return f"s3://{BUCKET}/jobs-{secrets.token_hex(4)}"


@pytest.fixture
def array(tmp_path: Path, url: str, s3_bucket: S3Server) -> Iterator[Callable[..., LiveJob]]:
    jobs: list[LiveJob] = []

    def make(*, items: int = 4, options: dict[str, Any] | None = None, **changes: Any) -> LiveJob:
        fields = {"storage_root": url, "cache_bytes": 1_000_000, "lost_after_s": 30.0, **changes}
        jobs.append(LiveJob(array_request(tmp_path, items=items, options=options or {}, **fields)))
        return jobs[-1]

    yield make
    for job in jobs:
        job.sweep()


def write_input(url: str, tmp_path: Path, **files: bytes) -> dict[str, FileEntry]:
    """Writes a finished artifact into storage."""
    storage, entries = open_storage(url), {}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        entries[name] = file_entry(tmp_path / name, relative_to=tmp_path)
        storage.create_exclusive(f"{INPUT}/{name}", content)
    record = ArtifactRecord(
        stage=Stage.VALIDATE,
        stage_version=1,
        name="corpus",
        key=INPUT,
        fingerprint="0" * 64,
        content_hash="0" * 32,
        inputs=(),
        recipe={},
        files=tuple(entries.values()),
        summary={},
        provenance=Provenance(run_id="", created_at="2026-01-01T00:00:00+00:00", created_by="", argv=(), commit="", versions={}),
    )
    storage.create_exclusive(ArtifactLayout(INPUT).record, record.sealed().to_bytes())
    return entries


def items_of(job: LiveJob) -> list[ItemRecord]:
    return [ItemRecord.model_validate_json(job.storage.read(job.layout.item("scan", index))) for index in range(job.request.num_items)]


def mirrors(tmp_path: Path) -> list[str]:
    return os.listdir(tmp_path / "scratch" / "staged" / "mirrors")


@pytest.mark.exhaustive
def test_an_array_runs_and_what_its_items_left_is_in_storage(array: Callable[..., LiveJob], tmp_path: Path) -> None:
    job = array()
    record = job.run()
    assert (record.exit_code, record.incidents) == (ExitCode.DONE, ())
    for item in items_of(job):
        (file,) = item.files
        assert job.storage.read(f"{ARTIFACT}/{file.path}") == f"item {item.index}\n".encode()
    wait_until(lambda: mirrors(tmp_path) == [])


@pytest.mark.exhaustive
def test_the_share_of_a_lost_node_is_done_by_the_other_with_a_mirror_of_its_own(array: Callable[..., LiveJob]) -> None:
    job = array(items=12, num_nodes=2, at_a_time=1, lost_after_s=120.0, options={"item_s": 0.5})

    def lose_node() -> None:
        next(agent for agent in job.agents() if agent.cmdline()[agent.cmdline().index("--node-rank") + 1] == "1").kill()

    job.when(lambda view: view.items_done >= 2, lose_node)
    record = job.run()
    assert (record.exit_code, job.attempts) == (ExitCode.DONE, (0,))
    assert [item.index for item in items_of(job)] == list(range(12))
    assert job.storage.names(job.attempt().takes)


@pytest.fixture
def trouble(s3_server: S3Server) -> Iterator[tuple[str, Trouble]]:
    """Every twentieth request fails: the endpoint, which outlives what `array` sweeps up through it, and what struck."""
    with troubled(s3_server.endpoint, share=0.05, seed=3) as proxied:
        yield proxied


def test_faults_of_a_twentieth_of_all_requests_change_nothing(
    trouble: tuple[str, Trouble], array: Callable[..., LiveJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", trouble[0])
    job = array(items=8)
    record = job.run()
    assert (record.exit_code, record.incidents) == (ExitCode.DONE, ())
    assert [item.index for item in items_of(job)] == list(range(8))
    assert trouble[1].struck


@pytest.mark.exhaustive
def test_what_items_read_is_there_and_nothing_else(array: Callable[..., LiveJob], url: str, tmp_path: Path) -> None:
    entries = write_input(url, tmp_path, all=b"for all", second=b"for item 1", unread=b"for nobody")
    reads = (FileRead(key=INPUT, file=entries["all"]), FileRead(key=INPUT, file=entries["second"], item=1))
    job = array(items=2, at_a_time=1, inputs={Stage.VALIDATE: INPUT}, reads=reads, options={"tell_inputs": True})
    assert job.run().exit_code is ExitCode.DONE
    seen = {item.index: item.output["inputs"] for item in items_of(job)}
    both = {"all": "for all", "second": "for item 1"}
    assert seen == {1: {"validate": both}, 0: {"validate": both}}, "item 1 is the larger one, and comes first"


@pytest.mark.exhaustive
def test_an_input_is_brought_whole_where_no_file_of_it_is_named_and_refused_when_damaged(
    array: Callable[..., LiveJob], url: str, tmp_path: Path
) -> None:
    write_input(url, tmp_path, a=b"first", b=b"second")
    job = array(items=1, inputs={Stage.VALIDATE: INPUT}, options={"tell_inputs": True})
    assert job.run().exit_code is ExitCode.DONE
    assert items_of(job)[0].output["inputs"] == {"validate": {"a": "first", "b": "second"}}
    for path in (tmp_path / "scratch" / "staged" / "files").iterdir():
        path.unlink()
    job.storage.delete(f"{INPUT}/b")
    job.storage.create_exclusive(f"{INPUT}/b", b"changed")
    job.storage.delete(job.layout.item("scan", 0))
    record = job.run()
    assert record.exit_code is ExitCode.VERIFICATION
    assert f"{INPUT}/b" in record.message


@pytest.mark.exhaustive
def test_compute_sees_no_credentials(array: Callable[..., LiveJob]) -> None:
    job = array(items=1, options={"tell_environment": True})
    assert job.run().exit_code is ExitCode.DONE
    (item,) = items_of(job)
    assert "HEADRACE_ATTEMPT" in item.output["environment"]
    assert [name for name in item.output["environment"] if name.startswith("AWS_")] == []


def test_an_agent_that_is_killed_while_it_uploads_leaves_nothing_that_is_named_and_half_there(
    array: Callable[..., LiveJob], s3_server: S3Server, monkeypatch: Any, tmp_path: Path
) -> None:
    """The file is there, the answer is lost, and the agent dies before it names it; what the next start makes differs."""
    with troubled(s3_server.endpoint) as (endpoint, trouble):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        job = array(items=1, lost_after_s=2.0, options={"content_by_epoch": True})

        def kill() -> None:
            (agent,) = job.agents()
            agent.kill()

        trouble.stalled = ("part-000000.txt", kill)
        record = job.run()
        assert record.exit_code is ExitCode.DONE
        assert len(job.attempts) == 2
    (item,) = items_of(job)
    content = job.storage.read(f"{ARTIFACT}/{item.files[0].path}")
    (tmp_path / "content").write_bytes(content)
    assert file_entry(tmp_path / "content", relative_to=tmp_path).xxh3 == item.files[0].xxh3
    wait_until(lambda: mirrors(tmp_path) == [])


@pytest.mark.exhaustive
def test_a_reader_may_not_write_and_is_told_so(array: Callable[..., LiveJob], s3_server: S3Server, monkeypatch: Any) -> None:
    job = array(items=1, lost_after_s=2.0)
    for name, value in s3_server.environment(reads_only=True).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Exception, match=rf"{ARTIFACT}/attempts/scan-0000/spec.json: access is denied"):
        job.run()
    assert read_exit(job.storage, job.attempt()) is None


def test_a_mirror_whose_owner_died_is_removed_by_the_next_and_a_live_one_is_not(url: str, tmp_path: Path, s3_bucket: S3Server) -> None:
    storage = S3Storage(url)
    (tmp_path / "mirrors" / "dead").mkdir(parents=True)
    (tmp_path / "mirrors" / "dead" / "file").touch()
    (tmp_path / "mirrors" / "dead.lock").touch()
    with Mirror.open(storage, folder=tmp_path, most_bytes=100) as first, Mirror.open(storage, folder=tmp_path, most_bytes=100) as second:
        assert {path.name for path in (tmp_path / "mirrors").iterdir() if path.is_dir()} == {first.root.name, second.root.name}
    assert list((tmp_path / "mirrors").iterdir()) == []
