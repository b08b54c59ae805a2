"""One artifact's removal, and who builds it again."""

import os
from pathlib import Path

import pytest

from cluster.layout import ArtifactLayout, sweep_key
from cluster.lease import REMOVAL, Lease
from cluster.storage import FileStorage
from cluster.unfinished import unfinished_path
from schemas.artifact import ArtifactRecord, Provenance
from schemas.canonical import canonical_json
from schemas.errors import LeaseHeldError
from schemas.stage import Stage
from tasks.store import Identity, Store
from tasks.store_hygiene.inventory import ArtifactState, take_inventory
from tasks.store_hygiene.sweep import announce_sweep, finish_sweep, may_remove, withdraw_sweep
from tasks.work import Bench, Draft, Work, make
from tests.fakes.stored_chain import StoredChain

PROVENANCE = Provenance(run_id="r", created_at="", created_by="", argv=(), commit="", versions={})


def build_again(chain: StoredChain, record: ArtifactRecord) -> ArtifactRecord:
    """Makes the artifact as a run does that finds no record."""
    bench = Bench(
        run_id="r",
        run_name="r",
        config=chain.config,
        storage=chain.storage,
        store=Store(chain.storage),
        state_dir=chain.storage.root / "state",
        project_dir=chain.storage.root,
        provenance=PROVENANCE,
        note=lambda *_: None,
        on_view=lambda *_: None,
        stop_requested=lambda: False,
    )

    def build(work: Work) -> Draft:
        present = sorted(path.relative_to(work.output_dir).as_posix() for path in work.output_dir.rglob("*") if "leases" not in path.parts)
        return Draft(files=(work.publish_json("present.json", {"files": present}),), summary={"present": present})

    identity = Identity(stage=record.stage, name=record.name, recipe=record.recipe, inputs={})
    return make(identity, bench=bench, key=record.key, inputs={}, build=build)


def test_who_builds_a_half_removed_artifact_begins_with_an_empty_folder(chain: StoredChain) -> None:
    """An item's record whose data are gone would be taken for finished work."""
    record = chain.finish(Stage.VALIDATE)
    announce_sweep(chain.storage, record.key)
    (chain.storage.root / record.key / "manifest.json").unlink()  # it died there
    assert [artifact.state for artifact in take_inventory(chain.storage)] == [ArtifactState.HALF_REMOVED]
    assert build_again(chain, record).summary["present"] == ()
    assert not chain.storage.exists(sweep_key(record.key))
    assert [artifact.state for artifact in take_inventory(chain.storage)] == [ArtifactState.FINISHED]


def test_who_builds_an_unfinished_artifact_finds_what_is_there(chain: StoredChain) -> None:
    record = chain.finish(Stage.VALIDATE)
    chain.storage.delete(ArtifactLayout(record.key).record)
    assert build_again(chain, record).summary["present"] == ("data", "data/part-0.bin", "manifest.json")


def test_what_killed_items_had_begun_goes_once_the_artifact_is_whole(chain: StoredChain) -> None:
    record = chain.finish(Stage.VALIDATE)
    chain.storage.delete(ArtifactLayout(record.key).record)
    folder = chain.storage.root / record.key / "data"
    begun = unfinished_path(folder / "part-1.bin", epoch=0, pid=1)
    begun.write_bytes(b"half")
    build_again(chain, record)
    assert [path.name for path in folder.iterdir()] == ["part-0.bin"]


def test_who_lost_the_artifact_meanwhile_touches_nothing_of_the_other_s(chain: StoredChain, monkeypatch: pytest.MonkeyPatch) -> None:
    record = chain.finish(Stage.VALIDATE)
    chain.storage.delete(ArtifactLayout(record.key).record)
    begun = unfinished_path(chain.storage.root / record.key / "data" / "part-1.bin", epoch=1, pid=1)
    begun.write_bytes(b"half")
    monkeypatch.setattr(Lease, "still_held", lambda _: False)
    with pytest.raises(LeaseHeldError, match="taken over by another process"):
        build_again(chain, record)
    assert begun.exists()


def test_of_what_is_removed_only_who_held_it_stays_and_that_is_no_artifact(chain: StoredChain) -> None:
    record = chain.finish(Stage.VALIDATE)
    with Lease.take(chain.storage, ArtifactLayout(record.key).leases, purpose=REMOVAL) as lease:
        announce_sweep(chain.storage, record.key)
        announce_sweep(chain.storage, record.key)
        assert finish_sweep(chain.storage, record.key, held=lease.still_held)
        with pytest.raises(LeaseHeldError, match="is being removed by"):
            Lease.take(chain.storage, ArtifactLayout(record.key).leases)
    assert chain.storage.names(record.key) == ("leases",)
    assert take_inventory(chain.storage) == ()
    assert not finish_sweep(chain.storage, record.key, held=lambda: True)


def test_a_whole_artifact_is_not_finished_off(chain: StoredChain) -> None:
    record = chain.finish(Stage.VALIDATE)
    chain.storage.create_exclusive(sweep_key(record.key), canonical_json({}))
    assert not finish_sweep(chain.storage, record.key, held=lambda: True)
    withdraw_sweep(chain.storage, record.key)
    assert (chain.finished(), chain.storage.exists(sweep_key(record.key))) == ({record.key}, False)


@pytest.mark.parametrize("name", ["data", "shards"], ids=["at the first name", "at the last"])
def test_who_loses_the_artifact_during_its_removal_leaves_the_rest_to_the_other(chain: StoredChain, name: str) -> None:
    """Its machine slept for longer than the lease lasts, and another has begun to build there."""
    record = chain.finish(Stage.VALIDATE)
    (chain.storage.root / record.key / "shards").mkdir()
    leases = ArtifactLayout(record.key).leases

    class Sleeping(FileStorage):
        def delete(self, key: str) -> None:
            super().delete(key)
            if key == f"{record.key}/{name}":
                self.create_exclusive(f"{leases}/000002.json", self.read(f"{leases}/000001.json"))
                self.create_exclusive(f"{record.key}/shards/x", b"new")

    storage = Sleeping(chain.storage.root)
    with Lease.take(storage, leases, purpose=REMOVAL) as lease:
        announce_sweep(storage, record.key)
        swept = finish_sweep(storage, record.key, held=lease.still_held)
    assert storage.exists(f"{record.key}/shards/x")
    assert storage.exists(sweep_key(record.key))
    assert not swept


def test_a_folder_that_may_not_be_written_is_told_beforehand(chain: StoredChain, monkeypatch: pytest.MonkeyPatch) -> None:
    record = chain.finish(Stage.VALIDATE)
    assert may_remove(chain.storage, record.key) == ""
    forbidden = chain.storage.root / record.key / "data"
    monkeypatch.setattr(os, "access", lambda path, _mode, **_: Path(path) != forbidden)
    assert may_remove(chain.storage, record.key) == f"this user may not write in {forbidden}"


def test_of_a_sticky_folder_the_owner_alone_removes(chain: StoredChain, monkeypatch: pytest.MonkeyPatch) -> None:
    record = chain.finish(Stage.VALIDATE)
    folder = chain.storage.root / record.key
    folder.chmod(0o1777)
    assert may_remove(chain.storage, record.key) == ""
    monkeypatch.setattr(os, "geteuid", lambda: 61_001)
    assert "is sticky" in may_remove(chain.storage, record.key)
