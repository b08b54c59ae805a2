"""Acts in storage."""

from pathlib import Path

import pytest

from cluster.acts import add_act, num_acts, read_acts
from cluster.layout import ArtifactLayout
from cluster.storage import FileStorage
from schemas.act import Act, ActKind
from schemas.errors import VerificationError

LAYOUT = ArtifactLayout("train/tiny-000000000000")


def skip(step: int) -> Act:
    return Act(kind=ActKind.SKIPPED_UPDATE, epoch=0, step=step, detail="the loss is not finite", at=0.0)


@pytest.fixture
def storage(tmp_path: Path) -> FileStorage:
    return FileStorage(tmp_path)


def test_acts_keep_their_order(storage: FileStorage) -> None:
    assert [add_act(storage, LAYOUT, skip(step)) for step in (7, 3)] == [0, 1]
    assert [act.step for act in read_acts(storage, LAYOUT)] == [7, 3]
    assert [act.step for act in read_acts(storage, LAYOUT, count=1)] == [7]
    assert num_acts(storage, LAYOUT) == 2


class LateListing(FileStorage):
    """Shows nothing of what is there, as network file systems do for a while."""

    def names(self, prefix: str) -> tuple[str, ...]:
        return ()


def test_a_number_that_is_taken_is_not_written_over(storage: FileStorage) -> None:
    add_act(storage, LAYOUT, skip(1))
    assert add_act(LateListing(storage.root), LAYOUT, skip(2)) == 1
    assert [act.step for act in read_acts(storage, LAYOUT)] == [1, 2]


@pytest.mark.parametrize("damage", [b"", b"{}", b"flip"])
def test_a_damaged_act_is_no_act_that_is_not_there(storage: FileStorage, damage: bytes) -> None:
    add_act(storage, LAYOUT, skip(1))
    path = storage.root / LAYOUT.act(0)
    path.write_bytes(path.read_bytes().replace(b"finite", b"FINITE") if damage == b"flip" else damage)
    with pytest.raises(VerificationError, match=r"acts/0000\.json"):
        read_acts(storage, LAYOUT)


def test_one_that_somebody_has_seen_must_be_there(storage: FileStorage) -> None:
    with pytest.raises(VerificationError, match=r"acts/0000\.json"):
        read_acts(storage, LAYOUT, count=1)
