"""What `ls` and `du` tell."""

import os
import secrets

from cluster.storage import open_storage
from schemas.stage import Stage
from tasks.store_hygiene.listing import list_store
from tasks.store_hygiene.pin_log import add_pin
from tasks.store_hygiene.sweep import announce_sweep, finish_sweep
from tasks.store_hygiene.usage import DiskMeter, DiskUse
from tests.fakes.stored_chain import StoredChain


def test_every_artifact_with_its_owner_and_reason(chain: StoredChain) -> None:
    model = chain.model(owner="bob@there")
    add_pin(chain.storage, subject="x", keys=[model[Stage.TRAIN].key], reason="")
    listing = list_store(chain.storage, keep_runs=0, measured=False)
    assert [artifact.key for artifact in listing.artifacts] == [record.key for record in model.values()]
    assert {artifact.owner for artifact in listing.artifacts} == {"bob@there"}
    kept = {artifact.key.partition("/")[0] for artifact in listing.artifacts if artifact.why}
    assert kept == {"validate", "tokenizer", "tokenize", "train"}
    assert [pin.subject for pin in listing.pins] == ["x"]


def test_a_file_with_two_names_counts_once(chain: StoredChain) -> None:
    first, second = chain.finish(Stage.VALIDATE, variant="1"), chain.finish(Stage.VALIDATE, variant="2", owner="bob@there")
    shard = chain.storage.root / first.key / "data" / "part-0.bin"
    shard.write_bytes(b"x" * 5000)
    other = chain.storage.root / second.key / "data" / "part-0.bin"
    other.unlink()
    os.link(shard, other)
    listing = list_store(chain.storage, keep_runs=0, measured=True)
    sizes = {artifact.key: artifact.use.bytes for artifact in listing.artifacts if artifact.use is not None}
    assert (max(sizes.values()) > 5000, min(sizes.values()) < 5000) == (True, True)
    assert sum(use.bytes for use in listing.by_owner.values()) == sum(sizes.values())


def test_files_and_folders_are_what_a_quota_counts(chain: StoredChain) -> None:
    record = chain.finish(Stage.VALIDATE)
    assert DiskMeter(chain.storage).measure(record.key).files == 4  # manifest, record, data, part
    assert DiskMeter(chain.storage).measure("nowhere") == DiskUse()


def test_the_whole_is_told_with_what_lies_beside(chain: StoredChain) -> None:
    chain.run([chain.finish(Stage.VALIDATE)])
    listing = list_store(chain.storage, keep_runs=0, measured=True)
    assert set(listing.beside) == {"runs"}
    files = [path for path in chain.storage.root.rglob("*") if path.is_file()]
    assert listing.use.bytes == sum(path.stat().st_size for path in files)


def test_a_storage_that_knows_no_folders_is_measured_and_swept_as_well() -> None:
    storage = open_storage(f"memory://{secrets.token_hex(4)}")
    for name in ("record.json", "data/part-0.bin", "data/deeper/part-0.bin"):
        storage.create_exclusive(f"train/x-0123456789ab/{name}", b"12345")
    assert DiskMeter(storage).measure("train/x-0123456789ab") == DiskUse(bytes=15, files=3)
    announce_sweep(storage, "train/x-0123456789ab")
    assert finish_sweep(storage, "train/x-0123456789ab", held=lambda: True)
    assert (storage.names("train/x-0123456789ab"), storage.names("sweeps/train")) == ((), ())
