from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from schemas.errors import UnreachableError
from tasks.train.checkpoint.room import Room, measure_room, refuse_without_room

GB = 10**9


@pytest.mark.parametrize(
    ("present", "free", "lacking", "lacking_for_any"),
    [
        (0, 40 * GB, 0, 0),
        (0, 39 * GB, 1 * GB, 0),
        (0, 19 * GB, 21 * GB, 1 * GB),
        (30 * GB, 10 * GB, 0, 0),
        (30 * GB, 9 * GB, 1 * GB, 1 * GB),  # the next one has no room, whatever is there
    ],
)
def test_table(present: int, free: int, lacking: int, lacking_for_any: int) -> None:
    room = Room(checkpoint_bytes=10 * GB, num_checkpoints=4, present_bytes=present, free_bytes=free)
    assert (room.lacking, room.lacking_for_any) == (lacking, lacking_for_any)


def test_it_warns_or_refuses_with_the_figures() -> None:
    folder = Path("/data/train/demo")
    assert refuse_without_room(Room(checkpoint_bytes=10 * GB, num_checkpoints=4, present_bytes=0, free_bytes=40 * GB), folder=folder) == ""
    warning = refuse_without_room(Room(checkpoint_bytes=10 * GB, num_checkpoints=4, present_bytes=0, free_bytes=25 * GB), folder=folder)
    assert "40.00 GB for 4 checkpoints of 10.00 GB" in warning
    assert "free 15.00 GB" in warning
    with pytest.raises(UnreachableError, match=r"12\.00 GB are free"):
        refuse_without_room(Room(checkpoint_bytes=10 * GB, num_checkpoints=4, present_bytes=0, free_bytes=12 * GB), folder=folder)


def test_what_is_there_is_counted(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "step-00000002.e000000").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step-00000002.e000000" / "rank-0000.bin").write_bytes(bytes(1000))
    size: Any = SimpleNamespace(checkpoint_bytes=1000, kept_checkpoints=4)
    room = measure_room(tmp_path, size=size)
    assert room is not None
    assert (room.present_bytes, room.num_checkpoints) == (1000, 4)
    assert room.free_bytes > 0
    assert measure_room(tmp_path, size=SimpleNamespace(checkpoint_bytes=None, kept_checkpoints=None)) is None  # type: ignore[arg-type]
