"""What is seen of an array while it works: how much of it is done, how fast it goes on, and how long it needs yet."""

import time
from pathlib import Path
from typing import Any

import pytest

from cluster.layout import ArtifactLayout
from cluster.storage import FileStorage
from flows.figure import items_line
from schemas.attempt import Cause, ExitRecord
from schemas.canonical import canonical_json
from schemas.exit_code import ExitCode
from schemas.job import JobKind, JobSpec, WorkItem, WorkPlan
from schemas.progress import ArrayProgress, Heartbeat, ItemInWork
from schemas.stage import Stage
from schemas.view import JobProgress
from tasks.views import job_progress
from tests.fakes.job_request import gang_request

ARTIFACT = "validate/test-0123456789ab"
MB = 1_000_000


class Scan:
    """A scan of groups of 100 MB and 10 files each, on two nodes."""

    def __init__(self, folder: Path, *, items: int = 8, num_files: int = 10) -> None:
        folder.mkdir(exist_ok=True)
        self.storage, self.layout = FileStorage(folder), ArtifactLayout(ARTIFACT)
        self.attempt = self.layout.attempt("scan", 0)
        groups = tuple(WorkItem(index=index, weight_bytes=100 * MB, label=f"g{index:04d}", num_files=num_files) for index in range(items))
        plan = WorkPlan(stage=Stage.VALIDATE, step_name="scan", items=groups)
        self.storage.create_exclusive(self.layout.plan("scan"), canonical_json(plan))
        gang = gang_request(folder, artifact_key=ARTIFACT, key="k", step_name="scan")
        spec = JobSpec.model_validate(gang.model_dump() | {"kind": JobKind.ARRAY, "num_items": items})
        self.storage.create_exclusive(self.attempt.spec, canonical_json(spec))

    def beat(self, node: int, *, items_done: int, at: float | None = None, **told: Any) -> None:
        fields: dict[str, Any] = {"bytes_done": 0.0, "files_done": 0.0, "bytes_per_s": 0.0, "files_per_s": 0.0, "in_work": ()}
        beat = Heartbeat(
            key="k",
            node_rank=node,
            host=f"node{node}",
            agent_pid=1,
            epoch=0,
            sequence=1,
            at=time.time() if at is None else at,
            ranks=(),
            items_done=items_done,
            array=ArrayProgress(**(fields | told)) if told else None,
        )
        self.storage.create_exclusive(self.attempt.heartbeat(node, 1), canonical_json(beat))

    def look(self) -> JobProgress:
        job = job_progress(self.storage, ARTIFACT, now=time.time())
        assert job is not None
        return job


@pytest.fixture
def scan(tmp_path: Path) -> Scan:
    return Scan(tmp_path)


def test_what_all_nodes_have_done_and_how_long_the_rest_takes(scan: Scan) -> None:
    in_work = (ItemInWork(index=3, running_s=2.0, done_bytes=50 * MB),)
    scan.beat(0, items_done=2, bytes_done=250.0 * MB, files_done=25.0, bytes_per_s=30.0 * MB, files_per_s=3.0, in_work=in_work)
    scan.beat(1, items_done=1, bytes_done=150.0 * MB, files_done=15.0, bytes_per_s=10.0 * MB, files_per_s=1.0)
    job = scan.look()
    assert job.array is not None
    assert (job.items_done, job.items_total) == (3, 8)
    assert (job.array.bytes_done, job.array.bytes_total, job.array.files_done, job.array.files_total) == (400 * MB, 800 * MB, 40, 80)
    assert (job.array.bytes_per_s, job.array.files_per_s) == (40 * MB, 4)
    assert job.eta_s == pytest.approx(10.0)
    assert items_line(job) == "scan: 3 of 8 items, 400 MB of 800 MB, 4 files/s, 40.0 MB/s, 10.0 s to go"


def test_nothing_is_promised_before_anything_is_known(scan: Scan) -> None:
    scan.beat(0, items_done=0)
    scan.beat(1, items_done=0, bytes_done=0.0)
    assert scan.look().eta_s == -1.0
    assert items_line(scan.look()) == "scan: 0 of 8 items, 0 B of 800 MB"


def test_a_small_item_promises_nothing_about_a_large_one(scan: Scan) -> None:
    scan.beat(0, items_done=1, bytes_done=11.0, bytes_per_s=3.0)
    assert scan.look().eta_s == -1.0
    assert items_line(scan.look()) == "scan: 1 of 8 items, 11 B of 800 MB, 0 files/s, 3 B/s"


def test_a_job_that_is_over_has_no_pace(scan: Scan) -> None:
    scan.beat(0, items_done=2, bytes_done=200.0 * MB, bytes_per_s=30.0 * MB)
    end = ExitRecord(key="k", exit_code=ExitCode.DATA_VERDICT, cause=Cause.DATA, message="", epoch=0, incidents=(), ended_at=time.time())
    scan.storage.create_exclusive(scan.attempt.exit, canonical_json(end))
    job = scan.look()
    assert (job.eta_s, items_line(job)) == (-1.0, "scan: 2 of 8 items, 200 MB of 800 MB")


def test_what_is_read_but_not_made_yet_takes_nobody_knows_how_long(scan: Scan) -> None:
    scan.beat(0, items_done=7, bytes_done=800.0 * MB, files_done=80.0, bytes_per_s=30.0 * MB, files_per_s=3.0)
    assert scan.look().eta_s == -1.0


def test_one_item_alone_promises_nothing_unless_it_reads_files(tmp_path: Path) -> None:
    training, scan = Scan(tmp_path / "tokenizer", items=1, num_files=0), Scan(tmp_path / "scan", items=1)
    for job in (training, scan):
        job.beat(0, items_done=0, bytes_done=50.0 * MB, bytes_per_s=5.0 * MB)
    assert (training.look().eta_s, scan.look().eta_s) == (-1.0, pytest.approx(10.0))
    assert items_line(training.look()) == "scan: 0 of 1 items, 50.0 MB of 100 MB, 5.0 MB/s"
