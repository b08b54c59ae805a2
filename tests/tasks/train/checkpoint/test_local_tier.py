"""What a node keeps on its own disk: records written last, thinned, forgotten; whatever changed, it is not used."""

import dataclasses
import errno
import itertools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from schemas.checkpoint import SLOTS, LocalRecord
from tasks.train.checkpoint.channel import Local, Write
from tasks.train.checkpoint.local_tier import LocalStep, LocalTier
from tasks.train.checkpoint.stream import Writer
from tests.fakes.meeting import Meeting, together

MakeWriters = Callable[..., Any]


@pytest.fixture
def tier(tmp_path: Path) -> LocalTier:
    return LocalTier(tmp_path / "local" / "artifact")


def save(writers: Any, tier: LocalTier, step: int, *, rank: int, keep_from: int = -1) -> None:
    """Writes a rank's share to the node's disk, as its writer process does."""
    writer: Writer = writers.writers[rank]
    writer._description = dataclasses.replace(writer._description, local_dir=str(tier.folder))
    writers._fill(rank, step=step)
    state = writers.state(step).model_dump(mode="json")
    request = Write(step, folder=writers.folder(step), rng={}, local=Local(state, keep_from=keep_from))
    writer.serve(request)
    writer.tidy(request)


def test_a_record_names_what_is_there(make_writers: MakeWriters, tier: LocalTier) -> None:
    writers = make_writers(epoch=3)
    save(writers, tier, 4, rank=1)
    at = LocalStep(4, epoch=3)
    assert tier.steps(1) == (at,)
    assert tier.steps(0) == ()
    record = tier.read(1, at)
    assert record is not None
    assert {entry.path for entry in record.files} == {"rank-0001.bin", "rank-0001.json", "rank-0001.state.json"}
    assert all((tier.folder / record.folder / entry.path).stat().st_size == entry.size for entry in record.files)
    assert (tier.folder / record.folder / "rank-0001.bin").read_bytes() == writers.expected(4, rank=1).tobytes()


@pytest.mark.parametrize("damage", ["flip", "cut", "other rank's", "other step's"])
def test_a_damaged_record_is_none(make_writers: MakeWriters, tier: LocalTier, damage: str) -> None:
    writers = make_writers()
    for rank in (0, 1):
        for step in (2, 4):
            save(writers, tier, step, rank=rank)
    records = tier.folder / "records"
    path = records / "rank-0001" / "step-00000004.e000000.json"
    content = bytearray(path.read_bytes())
    match damage:
        case "flip":
            content[20] ^= 1
        case "cut":
            content = content[:-1]
        case "other rank's":
            content = bytearray((records / "rank-0000" / path.name).read_bytes())
        case "other step's":
            content = bytearray((records / "rank-0001" / "step-00000002.e000000.json").read_bytes())
    path.write_bytes(content)
    assert tier.read(1, LocalStep(4, epoch=0)) is None
    assert [record.rank for record in tier.all_records(LocalStep(4, epoch=0))] == [0]


def test_earlier_ones_go_once_all_ranks_hold_a_later_one(make_writers: MakeWriters, tier: LocalTier) -> None:
    writers = make_writers()
    for step in (2, 4, 6):
        for rank in (0, 1):
            save(writers, tier, step, rank=rank, keep_from=step - 2)
    assert [at.step for at in tier.steps(0)] == [4, 6]
    assert sorted(path.name for path in (tier.folder / "checkpoints").iterdir()) == ["step-00000004.e000000", "step-00000006.e000000"]


def test_nothing_is_left_when_training_is_over(make_writers: MakeWriters, tier: LocalTier) -> None:
    writers = make_writers()
    for rank in (0, 1):
        save(writers, tier, 2, rank=rank)
    tier.forget(0)
    assert tier.steps(1) == (LocalStep(2, epoch=0),), "each rank removes its own"
    tier.forget(1)
    assert not tier.folder.exists()
    tier.forget(1)


def test_nothing_is_left_when_all_ranks_end_at_once(tmp_path: Path) -> None:
    """Each finds folders gone that were there a moment ago. A few hundred tries, since it is a matter of microseconds."""
    for attempt in range(300):
        tier = LocalTier(tmp_path / str(attempt))
        for step, rank in itertools.product(range(4), (0, 1)):
            place = {"step": step, "epoch": 0, "rank": rank, "world_size": 2, "folder": f"checkpoints/{LocalStep(step, epoch=0).name}", "files": ()}
            record = LocalRecord.model_validate(place)
            (tier.folder / record.folder).mkdir(parents=True, exist_ok=True)
            if rank == 0 or step % 2:  # the other share was never written: this folder goes with its only file
                (tier.folder / record.folder / f"rank-{rank:04d}.bin").write_bytes(b"state")
            tier.publish(record)
        together(2, tier.forget)
        assert not tier.folder.exists()


def test_a_record_is_sealed_when_it_is_published(tier: LocalTier) -> None:
    tier.publish(LocalRecord(step=2, epoch=0, rank=0, world_size=1, folder="checkpoints/step-00000002.e000000", files=()))
    assert tier.read(0, LocalStep(2, epoch=0)) is not None


def test_one_recipe_in_two_storages_has_two_folders_on_a_node(tmp_path: Path) -> None:
    """A proof trains the same artifact in a scratch storage: it must neither go on from the real one's state nor remove it."""
    tiers = {LocalTier.of("/local", artifact_dir=tmp_path / root / "train" / "demo-0123456789ab").folder for root in ("data", "scratch")}
    assert len(tiers) == 2
    assert all(folder.name.startswith("demo-0123456789ab-") for folder in tiers)


def look(writers: Any, tier: LocalTier, *, above: int = -1, void: tuple[int, ...] = (), whole: bool = False) -> int | None:
    """Returns the newest step that two ranks find. `whole`: each needs everything, as without ZeRO; else its own share."""
    import torch

    from tasks.train.checkpoint.fragments import LocalFragment
    from tasks.train.checkpoint.local_reading import newest_local
    from tasks.train.checkpoint.reader import Content

    meeting = Meeting(2)

    def as_rank(rank: int) -> int | None:
        pieces = {(piece["name"], piece["start"]): piece["count"] for piece in writers.writers[rank]._description.index["fragments"]}
        if whole:
            pieces = {(shape.name, 0): torch.Size(shape.shape).numel() for shape in writers.shapes}
        held = [
            LocalFragment(name, start=start, slots={slot: torch.zeros(count) for slot in SLOTS}, low_precision=torch.zeros(count))
            for (name, start), count in pieces.items()
        ]
        tensors: Any = SimpleNamespace(held=tuple(held), parameters=writers.shapes)
        found = newest_local(tier, gang=meeting.rank(rank), tensors=tensors, above=above, is_void=lambda at: at.step in void, content=Content())
        return None if found is None else found.at.step

    one, other = together(2, as_rank)
    assert one == other
    return one


@pytest.fixture
def kept(make_writers: MakeWriters, tier: LocalTier) -> Any:
    """Two ranks that hold steps 2, 4 and 6."""
    writers = make_writers()
    for step in (2, 4, 6):
        for rank in (0, 1):
            save(writers, tier, step, rank=rank)
    return writers


@pytest.mark.slow
def test_the_newest_that_all_hold_is_found(kept: Any, tier: LocalTier) -> None:
    assert look(kept, tier) == 6
    assert look(kept, tier, whole=True) == 6
    assert look(kept, tier, void=(6,)) == 4
    assert look(kept, tier, above=6) is None, "shared storage has it"
    save(kept, tier, 8, rank=0)
    assert look(kept, tier) == 6, "rank 1 has none"


@pytest.mark.slow
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("name", ["rank-0001.bin", "rank-0001.json", "rank-0001.state.json"])
def test_what_is_damaged_on_one_node_is_passed_over_by_all(kept: Any, tier: LocalTier, name: str, whole: bool) -> None:
    path = tier.folder / "checkpoints" / "step-00000006.e000000" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert look(kept, tier, whole=whole) == 4
    (tier.folder / "checkpoints" / "step-00000004.e000000" / name).unlink()
    assert look(kept, tier, whole=whole) == 2


@pytest.mark.slow
def test_without_what_other_ranks_wrote_it_is_not_whole(kept: Any, tier: LocalTier) -> None:
    """Without ZeRO on two nodes, a rank lacks what the other node holds."""
    (tier.folder / "records" / "rank-0001").rename(tier.folder / "elsewhere")
    assert look(kept, tier, whole=True) is None


@pytest.mark.slow
@pytest.mark.parametrize("call", ["steps", "read", "all_records"])
def test_a_disk_that_does_not_answer_on_one_node_is_done_without_by_all(
    kept: Any, tier: LocalTier, call: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    genuine: Callable[..., Any] = getattr(LocalTier, call)
    asked: list[object] = []

    def fail_once(self: LocalTier, *arguments: Any) -> Any:
        asked.append(arguments)
        if len(asked) == 1:
            raise OSError(errno.EIO, "Input/output error", str(self.folder))
        return genuine(self, *arguments)

    monkeypatch.setattr(LocalTier, call, fail_once)
    assert look(kept, tier) in (None, 4)
    assert "Input/output error" in caplog.text
