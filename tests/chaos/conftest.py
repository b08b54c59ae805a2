"""Trainings to which things happen, and the undisturbed one that they are compared with."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.live_training import LiveTraining, tiny_config

MakeTraining = Callable[..., LiveTraining]


@pytest.fixture(scope="session")
def calm(tmp_path_factory: pytest.TempPathFactory) -> tuple[LiveTraining, str]:
    """A finished training that nothing happened to, and the content hash of its final state."""
    training = LiveTraining(tmp_path_factory.mktemp("calm-training"))
    content_hash = training.run().content_hash
    assert training.incidents() == []
    assert content_hash is not None
    return training, content_hash


@pytest.fixture(scope="session")
def calm_hash(calm: tuple[LiveTraining, str]) -> str:
    """The content hash of the final state of a training that nothing happened to."""
    return calm[1]


@pytest.fixture
def make_training(tmp_path: Path) -> Iterator[MakeTraining]:
    """Returns a function that makes a training; keyword arguments are dotted keys of its recipe with `__` for the dot."""
    made: list[LiveTraining] = []

    def make(name: str = "training", **changes: Any) -> LiveTraining:
        made.append(LiveTraining(tmp_path / name, tiny_config(**changes)))
        return made[-1]

    yield make
    left = [process for training in made for process in training.processes()]
    for training in made:
        training.sweep()
    assert left == [], "nothing may be left behind"
