"""What the store holds, read from artifacts as jobs and kills leave them."""

import json
import time
from pathlib import Path

import pytest

from cluster.layout import ArtifactLayout
from cluster.lease import Lease
from cluster.process import owner_here
from cluster.storage import FileStorage
from schemas.attempt import Cause, ExitRecord
from schemas.canonical import canonical_json
from schemas.exit_code import ExitCode
from schemas.job import JobKind, JobSpec, RestartLimits
from schemas.stage import Stage
from tasks.store_hygiene.inventory import ArtifactState, StoredArtifact, take_inventory
from tests.fakes.stored_chain import StoredChain

KEY = "train/test-0123456789ab"


def spec() -> JobSpec:
    limits = RestartLimits(max_failures=0, max_interruptions=0, max_attempts_without_progress=1, backoff_s=0.0)
    paths = {"storage_root": "/d", "scratch_dir": "/s", "project_dir": "/p"}
    inputs = {Stage.TOKENIZE: "tokenize/test-000000000000"}
    told = {"run_id": "r", "stage": Stage.TRAIN, "artifact_key": KEY, "attempt": 0, "key": "k", "kind": JobKind.GANG, "argv": ()}
    return JobSpec.model_validate({**told, **paths, "limits": limits, "inputs": inputs, "config": {}, "intended_at": 77.0})


def begin(storage: FileStorage) -> None:
    """An artifact whose job was submitted, and whose maker is gone."""
    Lease.take(storage, ArtifactLayout(KEY).leases).release()
    storage.create_exclusive(ArtifactLayout(KEY).attempt("", 0).spec, canonical_json(spec()))


def end(storage: FileStorage) -> None:
    record = ExitRecord(key="k", exit_code=ExitCode.INTERRUPTED, cause=Cause.KILLED, message="", epoch=0, incidents=(), ended_at=0.0)
    storage.create_exclusive(ArtifactLayout(KEY).attempt("", 0).exit, canonical_json(record))


def only(storage: FileStorage, **options: tuple[str, ...]) -> StoredArtifact:
    (found,) = take_inventory(storage, **options)
    return found


def test_a_finished_artifact_is_what_its_record_says(chain: StoredChain) -> None:
    source = chain.finish(Stage.VALIDATE, owner="bob@there")
    made = chain.finish(Stage.TOKENIZER, source, age_s=500.0)
    first, second = take_inventory(chain.storage)
    assert (first.state, first.owner, first.inputs, first.busy) == (ArtifactState.FINISHED, "bob@there", (), "")
    assert (second.key, second.inputs, second.record) == (made.key, (source.key,), made)
    assert 400 < time.time() - second.newest_at < 600


def test_of_an_unfinished_one_its_jobs_tell_what_it_reads(tmp_path: Path) -> None:
    storage = FileStorage(tmp_path)
    begin(storage)
    found = only(storage)
    assert (found.state, found.owner, found.inputs) == (ArtifactState.UNFINISHED, owner_here(), ("tokenize/test-000000000000",))
    assert "job-0000 has not said that it ended" in found.busy
    end(storage)
    assert only(storage).busy == ""


def test_it_is_as_old_as_it_was_taken_up_last_but_for_the_one_who_looks(tmp_path: Path) -> None:
    storage = FileStorage(tmp_path)
    begin(storage)
    end(storage)
    assert time.time() - only(storage).newest_at < 60
    with Lease.take(storage, ArtifactLayout(KEY).leases):
        assert "works on it" in only(storage).busy
        mine = only(storage, held=(KEY,))
        assert (mine.busy, mine.newest_at) == ("", 77.0)


@pytest.mark.parametrize("name", ["record.json", "attempts/job-0000/spec.json", "leases/000001.json"])
def test_what_cannot_be_read_is_damaged_and_says_why(tmp_path: Path, name: str) -> None:
    storage = FileStorage(tmp_path)
    begin(storage)
    (tmp_path / KEY / name).write_bytes(json.dumps({"key": KEY}).encode())
    for released in (tmp_path / KEY / "leases").glob("*released*"):
        released.unlink()
    found = only(storage)
    assert found.state is ArtifactState.DAMAGED
    assert found.damage


def test_what_another_removes_at_this_moment_is_passed_over(tmp_path: Path) -> None:
    begin(FileStorage(tmp_path))

    class Vanishing(FileStorage):
        def read(self, key: str) -> bytes:
            raise FileNotFoundError(key)

    assert take_inventory(Vanishing(tmp_path)) == ()
