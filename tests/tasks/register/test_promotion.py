"""Alias moves and their log: append-only, complete after a crash, and reversible."""

from pathlib import Path

import pytest

from cluster.storage import FileStorage
from schemas.errors import InputError
from tasks.register.promotion import CHAMPION, Promotion, earlier_versions, history, promote, rollback
from tests.fakes.model_registry import CrashError, FakeRegistry, Version

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


def test_rolling_back_again_goes_further_back_and_never_forward(tmp_path: Path, registry: FakeRegistry) -> None:
    storage = FileStorage(tmp_path)
    for version in (1, 2, 3):
        move(registry, storage, version)
    assert [rollback(registry, storage, model_name=NAME, who="ann@desk").version for _ in range(2)] == [2, 1]
    with pytest.raises(InputError, match="no earlier version"):
        rollback(registry, storage, model_name=NAME, who="ann@desk")
    assert registry.aliases[NAME, CHAMPION] == 1


def test_a_version_that_is_gone_is_passed_over(tmp_path: Path, registry: FakeRegistry) -> None:
    storage = FileStorage(tmp_path)
    for version in (1, 2, 3):
        move(registry, storage, version)
    registry.delete_version(NAME, 2)
    assert rollback(registry, storage, model_name=NAME, who="ann@desk").version == 1
    registry.set_alias(NAME, CHAMPION, version=3)
    registry.delete_version(NAME, 1)
    with pytest.raises(InputError, match="not in the registry any more"):
        rollback(registry, storage, model_name=NAME, who="ann@desk")


def test_a_number_under_which_a_registry_begun_anew_has_another_model_is_passed_over(tmp_path: Path, registry: FakeRegistry) -> None:
    storage = FileStorage(tmp_path)
    for version in (1, 2, 3):
        move(registry, storage, version)
    registry.existing[NAME][2] = Version("m", {"headrace.root_hash": "of another model"})
    assert rollback(registry, storage, model_name=NAME, who="ann@desk").version == 1
    registry.set_alias(NAME, CHAMPION, version=3)
    registry.existing[NAME][1] = Version("m", {})
    with pytest.raises(InputError, match="other models there"):
        rollback(registry, storage, model_name=NAME, who="ann@desk")


def test_a_rollback_that_was_only_logged_is_completed(tmp_path: Path, registry: FakeRegistry) -> None:
    storage = FileStorage(tmp_path)
    for version in (1, 2):
        move(registry, storage, version)
    registry.before = crash_before_the_move
    with pytest.raises(CrashError):
        rollback(registry, storage, model_name=NAME, who="ann@desk")
    registry.before = lambda name: None
    assert rollback(registry, storage, model_name=NAME, who="ann@desk").version == registry.aliases[NAME, CHAMPION] == 1
    assert moves(storage) == [(0, None, 1), (1, 1, 2), (2, 2, 1)]


@pytest.mark.parametrize(
    ("log", "current", "earlier"),
    [
        ([], None, ()),
        ([(None, 1)], 1, ()),
        ([(None, 1), (1, 2), (2, 3)], 3, (2, 1)),
        ([(None, 1), (1, 2), (2, -1), (1, 3)], 3, (1,)),
        ([(None, 1), (1, 2), (2, 3), (3, 1)], 1, (3, 2)),
        ([(None, 1), (1, 2)], 1, ()),
        ([(None, 1), (1, 2), (1, 3)], 3, (1,)),
        ([(None, 1)], 7, (1,)),
        ([(None, 1), (7, 2)], 2, (7, 1)),
    ],
    ids=[
        "no log",
        "the first",
        "in order",
        "after a rollback",
        "an old one anew",
        "never moved",
        "never moved, then another",
        "by hand",
        "by hand before",
    ],
)
def test_where_a_rollback_may_go(log: list[tuple[int | None, int]], current: int | None, earlier: tuple[int, ...]) -> None:
    """Moves as (previous, version); a negative version is a rollback."""
    entries = [
        Promotion(
            number=number,
            model_name=NAME,
            alias=CHAMPION,
            version=abs(version),
            previous=previous,
            root_hash="" if version < 0 else "a",
            run_id="run",
            reason="",
            at=0.0,
        )
        for number, (previous, version) in enumerate(log)
    ]
    assert earlier_versions(entries, alias=CHAMPION, current=current) == earlier
    assert earlier_versions(entries, alias="candidate", current=None) == ()


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


def test_of_two_moves_at_once_the_one_that_is_last_in_the_log_stands(tmp_path: Path, registry: FakeRegistry) -> None:
    storage = FileStorage(tmp_path)
    move(registry, storage, 1)

    def be_overtaken(name: str) -> None:
        if name == "set_alias":
            registry.before = lambda name: None
            move(registry, storage, 3)

    registry.before = be_overtaken
    assert move(registry, storage, 2).version == 2
    assert moves(storage) == [(0, None, 1), (1, 1, 2), (2, 1, 3)]
    assert registry.aliases[NAME, CHAMPION] == 3


def test_a_move_to_where_the_alias_was_stands_although_an_earlier_one_is_made_only_then(tmp_path: Path, registry: FakeRegistry) -> None:
    move(registry, FileStorage(tmp_path), 1)
    registry.before = crash_before_the_move
    with pytest.raises(CrashError):
        move(registry, FileStorage(tmp_path), 2)
    registry.before = lambda name: None

    class Overtaken(FileStorage):
        """The other's move is made after this one's look at the alias."""

        def create_exclusive(self, key: str, data: bytes) -> None:
            registry.set_alias(NAME, CHAMPION, version=2)
            super().create_exclusive(key, data)

    move(registry, Overtaken(tmp_path), 1, run_id="run-later")
    assert moves(FileStorage(tmp_path)) == [(0, None, 1), (1, 1, 2), (2, 1, 1)]
    assert registry.aliases[NAME, CHAMPION] == 1


def crash_before_the_move(name: str) -> None:
    if name == "set_alias":
        raise CrashError(name)
