"""In object storage the control half finishes items from what earlier artifacts have; the server copies, and nothing is taken by halves."""

import secrets
from collections.abc import Iterator, Set
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import xxhash

from cluster.s3_storage import S3Storage
from cluster.storage import file_entry
from schemas.artifact import FileEntry
from schemas.attempt import Cause, ExitRecord
from schemas.canonical import canonical_json
from schemas.errors import InterruptedRunError
from schemas.exit_code import ExitCode
from schemas.frozen import thaw
from schemas.job import ItemRecord
from schemas.stage import Stage
from tasks.entry import ItemTask
from tasks.taking_over import BEFORE_ALL_STARTS, Offer, finish_items, set_aside, take_over
from tests.fakes.in_process_work import InProcessWork, config_with
from tests.fakes.s3_server import BUCKET, S3Server

STEP, EARLIER = "group", "tokenize/test-00000000000a"


class BucketWork(InProcessWork):
    """A stage in the making in a bucket."""

    def __init__(self, folder: Path, storage: S3Storage, *, key: str = "tokenize/test-00000000000b") -> None:
        super().__init__(folder, Stage.TOKENIZE, config_with(), {}, key=key)
        self.storage: Any = storage
        self.stops, self.asked = False, [-1]
        self.bench = SimpleNamespace(stop_requested=lambda: self.stops)

    def finish(self, *offers: Offer) -> list[str]:
        """Returns the records that there are then."""

        def offered(wanted: Set[int]) -> Iterator[Offer]:
            self.asked = sorted(wanted)
            yield from (offer for offer in offers if offer.index in wanted)

        finish_items(self, offered, step_name=STEP, num_items=4)  # type: ignore[arg-type]  # as far as it asks, it is a Work
        return list(self.storage.names(self.layout.items))


@pytest.fixture
def storage(s3_bucket: S3Server) -> S3Storage:
    return S3Storage(f"s3://{BUCKET}/taking-{secrets.token_hex(4)}")


def offer(storage: S3Storage, index: int, *contents: bytes, key: str = EARLIER) -> Offer:
    """An item's files as an earlier artifact has them."""
    files = []
    for number, content in enumerate(contents):
        name = f"shards/{index}-{number}"
        storage.create_exclusive(f"{key}/{name}", content)
        files.append(FileEntry(path=name, size=len(content), xxh3=xxhash.xxh3_128(content).hexdigest()))
    return Offer(index=index, key=key, files=tuple(files), output={"made": index})


@pytest.mark.slow
def test_items_are_finished_as_if_they_had_been_run(storage: S3Storage, tmp_path: Path) -> None:
    work, offers = BucketWork(tmp_path, storage), [offer(storage, 0, b"one", b"two"), offer(storage, 3, b"four")]
    assert work.finish(*offers) == ["group-000000.json", "group-000003.json"]
    for each in offers:
        record = ItemRecord.model_validate_json(storage.read(work.layout.item(STEP, each.index)))
        assert (record.index, record.epoch, record.files, thaw(record.output)) == (each.index, BEFORE_ALL_STARTS, each.files, {"made": each.index})
        assert [storage.hash(f"{work.key}/{entry.path}") for entry in each.files] == [entry.xxh3 for entry in each.files]
    assert work.finish(*offers) == ["group-000000.json", "group-000003.json"], "what is finished stays as it is"
    assert work.asked == [1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["missing", "shorter"])
def test_what_is_not_all_there_is_left_to_the_item_or_taken_from_another(storage: S3Storage, tmp_path: Path, damage: str) -> None:
    work, broken = BucketWork(tmp_path, storage), offer(storage, 0, b"one", b"two")
    victim = f"{EARLIER}/{broken.files[1].path}"
    storage.delete(victim)
    if damage == "shorter":
        storage.create_exclusive(victim, b"t")
    assert work.finish(broken) == []
    assert not storage.exists(f"{work.key}/{broken.files[1].path}")
    assert work.finish(broken, offer(storage, 0, b"one", b"two", key="tokenize/test-00000000000c")) == ["group-000000.json"]


@pytest.mark.slow
def test_a_rebuild_takes_nothing_over_and_gives_up_what_was(storage: S3Storage, tmp_path: Path) -> None:
    work, taken, made = BucketWork(tmp_path, storage), offer(storage, 0, b"one"), offer(storage, 1, b"made here")
    assert work.finish(taken) == ["group-000000.json"]
    assert storage.copy(f"{EARLIER}/shards/1-0", f"{work.key}/shards/1-0", size=9)
    own = ItemRecord(index=1, epoch=0, files=made.files, output={})
    storage.create_exclusive(work.layout.item(STEP, 1), canonical_json(own))
    work.is_rebuild = True
    assert work.finish(taken, made) == ["group-000001.json"]
    assert not storage.exists(f"{work.key}/shards/0-0")
    assert storage.exists(f"{work.key}/shards/1-0")


@pytest.mark.slow
def test_nothing_is_copied_beside_a_job_of_an_earlier_start(storage: S3Storage, tmp_path: Path) -> None:
    work, found = BucketWork(tmp_path, storage), offer(storage, 0, b"one")
    attempt = work.layout.attempt(STEP, 0)
    storage.create_exclusive(attempt.spec, b"{}")
    assert work.finish(found) == []
    ended = ExitRecord(key="k", exit_code=ExitCode.DONE, cause=Cause.FINISHED, message="", epoch=0, incidents=(), ended_at=0.0)
    storage.create_exclusive(attempt.exit, canonical_json(ended))
    assert work.finish(found) == ["group-000000.json"]


@pytest.mark.slow
def test_two_that_have_an_item_and_a_wish_to_stop(storage: S3Storage, tmp_path: Path) -> None:
    work, twice = BucketWork(tmp_path, storage), [offer(storage, 0, b"one", key=f"tokenize/test-00000000000{digit}") for digit in "ac"]
    assert work.finish(*twice) == ["group-000000.json"]
    work.stops = True
    with pytest.raises(InterruptedRunError):
        work.finish(offer(storage, 1, b"two"))


@pytest.mark.slow
def test_what_was_set_aside_in_a_bucket_is_taken_over_from_there(storage: S3Storage, tmp_path: Path) -> None:
    found, earlier = offer(storage, 0, b"one"), BucketWork(tmp_path, storage, key=EARLIER)
    for _ in range(2):  # the second time as after a kill in between
        set_aside(earlier, found.files[0])  # type: ignore[arg-type]
    assert storage.names(f"{EARLIER}/shards") == ()
    work = BucketWork(tmp_path, storage)
    assert work.finish(found) == ["group-000000.json"]
    assert storage.read(f"{work.key}/{found.files[0].path}") == b"one"


def test_on_a_folder_items_do_it_themselves(tmp_path: Path) -> None:
    work = InProcessWork(tmp_path, Stage.TOKENIZE, config_with(), {})

    def untouched(_: Set[int]) -> Iterator[Offer]:
        raise AssertionError("nobody looks for offers")

    finish_items(work, untouched, step_name=STEP, num_items=4)  # type: ignore[arg-type]
    assert work.storage.names(work.layout.items) == ()


@pytest.mark.parametrize("at", ["link_exclusive", "shutil.copyfile"])
def test_what_goes_while_it_is_taken_over_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    work = InProcessWork(tmp_path, Stage.TOKENIZE, config_with(), {})
    task = ItemTask(work.task_spec(STEP, options={}), work.config, 0, work.output_dir, {})
    earlier = tmp_path / "earlier"
    earlier.mkdir()
    (earlier / "one").write_bytes(b"one")
    entry = file_entry(earlier / "one", relative_to=earlier)

    def gone(*_: object) -> None:
        raise FileNotFoundError(2, "No such file or directory")

    def without_links(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(f"tasks.taking_over.{at}", gone)
    if at != "link_exclusive":
        monkeypatch.setattr("tasks.taking_over.link_exclusive", without_links)
    assert not take_over(task, [entry], folder=earlier, subject="token shard")
    monkeypatch.undo()
    assert take_over(task, [entry], folder=earlier, subject="token shard")
    assert (work.output_dir / "one").read_bytes() == b"one"
