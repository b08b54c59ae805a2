"""In object storage the control half finishes items from what earlier artifacts have; the server copies, and nothing is taken by halves."""

import secrets
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import xxhash

from cluster.s3_storage import S3Storage
from schemas.artifact import FileEntry
from schemas.errors import InterruptedRunError
from schemas.frozen import thaw
from schemas.job import ItemRecord
from schemas.stage import Stage
from tasks.taking_over import BEFORE_ALL_STARTS, Offer, finish_items
from tests.fakes.in_process_work import InProcessWork, config_with
from tests.fakes.s3_server import BUCKET, S3Server

STEP, EARLIER = "group", "tokenize/test-00000000000a"


class BucketWork(InProcessWork):
    """A stage in the making in a bucket."""

    def __init__(self, folder: Path, storage: S3Storage, *, key: str = "tokenize/test-00000000000b") -> None:
        super().__init__(folder, Stage.TOKENIZE, config_with(), {}, key=key)
        self.storage: Any = storage
        self.stops = False
        self.bench = SimpleNamespace(stop_requested=lambda: self.stops)

    def finish(self, *offers: Offer) -> list[str]:
        """Returns the records that there are then."""
        finish_items(self, offers, step_name=STEP)  # type: ignore[arg-type]  # as far as it asks, it is a Work
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
def test_a_rebuild_takes_nothing_over_and_a_wish_to_stop_is_heard(storage: S3Storage, tmp_path: Path) -> None:
    found = offer(storage, 0, b"one")
    assert BucketWork(tmp_path, storage, key="tokenize/test-00000000000b.r1").finish(found) == []
    work = BucketWork(tmp_path, storage)
    work.stops = True
    with pytest.raises(InterruptedRunError):
        work.finish(found)


def test_on_a_folder_items_do_it_themselves(tmp_path: Path) -> None:
    work = InProcessWork(tmp_path, Stage.TOKENIZE, config_with(), {})

    def untouched() -> Any:
        raise AssertionError("nobody looks for offers")
        yield

    finish_items(work, untouched(), step_name=STEP)  # type: ignore[arg-type]
    assert work.storage.names(work.layout.items) == ()
