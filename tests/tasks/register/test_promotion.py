"""Alias moves and their log: append-only, complete after a crash, and reversible."""

from pathlib import Path

import pytest

from cluster.storage import FileStorage
from schemas.errors import InputError
from tasks.register.promotion import CHAMPION, Promotion, history, promote, rollback
from tests.fakes.model_registry import CrashError, FakeRegistry

NAME = "demo model"


@pytest.fixture
def registry() -> FakeRegistry:
    registry = FakeRegistry()
    for _ in range(3):
        registry.create_version(NAME, model_id="m", tags={"headrace.root_hash": "a"}, description="")
    return registry


def move(registry: FakeRegistry, storage: FileStorage, version: int, *, run_id: str = "") -> Promotion:
    return promote(
        registry, storage, model_name=NAME, alias=CHAMPION, version=version, root_hash="a", run_id=run_id or f"run-{version}", reason="gate"
    )


def moves(storage: FileStorage) -> list[tuple[int, int | None, int]]:
    return [(entry.number, entry.previous, entry.version) for entry in history(storage, NAME)]


def test_every_move_is_logged_once(tmp_path: Path, registry: FakeRegistry) -> None:
    storage = FileStorage(tmp_path)
    for version in (1, 1, 2):
        move(registry, storage, version)
    assert moves(storage) == [(0, None, 1), (1, 1, 2)]
    assert registry.aliases[NAME, CHAMPION] == 2


@pytest.mark.parametrize("operation", ["set_alias", "aliased"])
def test_a_crash_around_the_move_is_made_up_for(tmp_path: Path, registry: FakeRegistry, operation: str) -> None:
    storage = FileStorage(tmp_path)
    move(registry, storage, 1)

    def crash(name: str) -> None:
        if name == operation:
            raise CrashError(name)

    registry.before = crash
    with pytest.raises(CrashError):
        move(registry, storage, 2)
    registry.before = lambda name: None
    move(registry, storage, 2)
    assert moves(storage) == [(0, None, 1), (1, 1, 2)]
    assert registry.aliases[NAME, CHAMPION] == 2


def test_a_move_made_elsewhere_is_not_mistaken_for_ours(tmp_path: Path, registry: FakeRegistry) -> None:
    storage = FileStorage(tmp_path)
    move(registry, storage, 1)
    registry.set_alias(NAME, CHAMPION, version=3)  # by hand, in MLflow's own pages
    move(registry, storage, 1, run_id="run-later")
    assert moves(storage) == [(0, None, 1), (1, 3, 1)]


def test_rollback_goes_to_the_version_before(tmp_path: Path, registry: FakeRegistry) -> None:
    storage = FileStorage(tmp_path)
    for version in (1, 2, 3):
        move(registry, storage, version)
    entry = rollback(registry, storage, model_name=NAME, who="ann@desk")
    assert (entry.version, entry.previous, entry.run_id) == (2, 3, "ann@desk")
    assert registry.aliases[NAME, CHAMPION] == 2
    assert moves(storage) == [(0, None, 1), (1, 1, 2), (2, 2, 3), (3, 3, 2)]


def test_rollback_without_an_earlier_version_says_so(tmp_path: Path, registry: FakeRegistry) -> None:
    storage = FileStorage(tmp_path)
    move(registry, storage, 1)
    with pytest.raises(InputError, match="no earlier version"):
        rollback(registry, storage, model_name=NAME, who="ann@desk")


def test_another_run_completes_a_move_that_was_only_logged(tmp_path: Path, registry: FakeRegistry) -> None:
    storage = FileStorage(tmp_path)
    registry.before = crash_before_the_move
    with pytest.raises(CrashError):
        move(registry, storage, 1)
    registry.before = lambda name: None
    move(registry, storage, 1, run_id="run-later")
    assert moves(storage) == [(0, None, 1)]
    assert registry.aliases[NAME, CHAMPION] == 1


def crash_before_the_move(name: str) -> None:
    if name == "set_alias":
        raise CrashError(name)
