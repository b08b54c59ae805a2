import pytest

from schemas.execution_config import CheckpointConfig
from tasks.train.checkpoint.retention import steps_to_remove, unfinished_folders


@pytest.mark.parametrize(
    ("steps", "keep_last", "keep_every", "last_verified", "expected"),
    [
        ((), 3, None, None, ()),
        ((10, 20, 30), 3, None, None, ()),
        ((10, 20, 30, 40), 3, None, None, (10,)),
        ((40, 10, 30, 20), 1, None, None, (10, 20, 30)),
        ((10, 20, 30, 40), 1, 20, None, (10, 30)),
        ((10, 20, 30, 40), 1, None, 10, (20, 30)),
        ((10, 20, 30, 40), 1, None, 40, (10, 20, 30)),
        ((10, 20, 30, 40), 2, 30, 20, (10,)),
    ],
)
def test_table(steps: tuple[int, ...], keep_last: int, keep_every: int | None, last_verified: int | None, expected: tuple[int, ...]) -> None:
    config = CheckpointConfig(keep_last=keep_last, keep_every_steps=keep_every)
    assert steps_to_remove(steps, config=config, last_verified=last_verified, shared_steps=0) == expected


@pytest.mark.parametrize(
    ("shared_steps", "expected"),
    [
        (25, (10,)),  # wsd, the decay has begun at step 25: 20 is what a longer training goes on from
        (20, (10,)),
        (19, (20,)),
        (5, (10, 20)),  # nothing was saved before the decay
        (40, (10, 20)),  # constant: the newest of all, kept anyway
    ],
)
def test_what_a_longer_training_goes_on_from_is_kept(shared_steps: int, expected: tuple[int, ...]) -> None:
    config = CheckpointConfig(keep_last=2)
    assert steps_to_remove((10, 20, 30, 40), config=config, last_verified=40, shared_steps=shared_steps) == expected


def test_only_left_overs_of_earlier_epochs_go() -> None:
    names = (
        "step-00000010.e000000",  # committed
        "step-00000020.e000000",  # left over
        "step-00000020.e000001",  # being written by this epoch
        "step-00000030.e000000",  # quarantined
        "step-00000005.imported",
        "notes.txt",
    )
    left = unfinished_folders(names, committed=frozenset({"step-00000010.e000000"}), quarantined=frozenset({30}), epoch=1)
    assert left == ("step-00000020.e000000",)
