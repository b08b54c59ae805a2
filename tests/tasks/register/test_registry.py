"""One version per root hash: after a crash anywhere, and with several registrars at once."""

import threading
from pathlib import Path

import pytest

from cluster.storage import FileStorage
from tasks.register.registry import Registered, RegistryClaim, register_once, settle
from tests.fakes.model_registry import CrashError, FakeRegistry

ROOT_HASH, NAME = "a" * 64, "demo"
OPERATIONS = ("versions", "find_model", "log_model", "logged", "create_version", "created", "model_of")


def register(
    registry: FakeRegistry, root: Path, *, run_id: str = "run-1", root_hash: str = ROOT_HASH, sleeps: list[float] | None = None
) -> Registered:
    return register_once(
        registry,
        FileStorage(root),
        claim=RegistryClaim(root_hash=root_hash, model_name=NAME, run_id=run_id),
        tags={"headrace.run_id": run_id},
        description="card",
        log_model=lambda: registry.log_model(root_hash),
        sleep=(sleeps if sleeps is not None else []).append,
    )


def test_registering_twice_gives_one_version(tmp_path: Path) -> None:
    registry = FakeRegistry()
    first, second = register(registry, tmp_path), register(registry, tmp_path, run_id="run-2")
    assert (first.version, first.created) == (1, True)
    assert (second.version, second.created, second.model_id) == (1, False, first.model_id)
    assert len(registry.existing[NAME]) == len(registry.logged) == 1


def test_other_content_is_another_version(tmp_path: Path) -> None:
    registry = FakeRegistry()
    assert [register(registry, tmp_path, root_hash=letter * 64).version for letter in "abc"] == [1, 2, 3]


@pytest.mark.parametrize("run_id", ["run-1", "run-2"], ids=["the same run goes on", "another run takes over"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_crash_at_any_point_leads_to_one_version(tmp_path: Path, operation: str, run_id: str) -> None:
    registry = FakeRegistry()
    crashed: list[str] = []

    def crash_once(name: str) -> None:
        if name == operation and not crashed:
            crashed.append(name)
            raise CrashError(name)

    registry.before = crash_once
    with pytest.raises(CrashError):
        register(registry, tmp_path)
    registered = register(registry, tmp_path, run_id=run_id)
    assert list(registry.existing[NAME]) == [registered.version] == [1]
    assert len(registry.logged) == 1, "the model that was logged before the crash is used"


def test_a_crash_while_removing_duplicates_is_made_up_for(tmp_path: Path) -> None:
    registry = FakeRegistry()
    tags = {"headrace.root_hash": ROOT_HASH}
    for _ in range(3):
        registry.create_version(NAME, model_id="m-0", tags=tags, description="")
    crashes = iter(["delete_version", "deleted"])
    pending = [next(crashes)]

    def crash(name: str) -> None:
        if pending and name == pending[0]:
            pending[:] = [following for following in [next(crashes, "")] if following]
            raise CrashError(name)

    registry.before = crash
    for _ in range(2):
        with pytest.raises(CrashError):
            settle(registry, NAME, root_hash=ROOT_HASH)
    assert settle(registry, NAME, root_hash=ROOT_HASH) == 1
    assert list(registry.existing[NAME]) == [1]


@pytest.mark.parametrize("meet_at", [("create_version",), ("create_version", "created")], ids=["before creating", "before and after"])
def test_registrars_that_create_at_once_agree_on_the_lowest(tmp_path: Path, meet_at: tuple[str, ...]) -> None:
    """All of them have searched before any creates, and in the second case all have created before any searches again."""
    count = 4
    registry = FakeRegistry()
    barrier = threading.Barrier(count, timeout=60)
    met = threading.local()

    def meet(name: str) -> None:
        if name in meet_at and not getattr(met, name, False):
            setattr(met, name, True)
            barrier.wait()

    registry.before = meet
    results: list[Registered] = []
    threads = [
        threading.Thread(target=lambda run=f"run-{number}": results.append(register(registry, tmp_path, run_id=run))) for number in range(count)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert len(results) == count
    assert {result.version for result in results} == {min(registry.existing[NAME])} == {1}
    assert list(registry.existing[NAME]) == [1]
    assert sum(result.created for result in results) == 1


def test_who_comes_second_waits_for_the_first(tmp_path: Path) -> None:
    registry = FakeRegistry()
    registry.before = lambda name: crash_at(name, "log_model")
    with pytest.raises(CrashError):
        register(registry, tmp_path)
    registry.before = lambda name: None

    class Arrives(list[float]):
        def append(self, seconds: float) -> None:
            super().append(seconds)
            if len(self) == 2:  # the first one was only slow
                registry.create_version(NAME, model_id=registry.log_model(ROOT_HASH), tags={"headrace.root_hash": ROOT_HASH}, description="")

    sleeps = Arrives()
    assert not register(registry, tmp_path, run_id="run-2", sleeps=sleeps).created
    assert len(sleeps) == 2


def crash_at(name: str, operation: str) -> None:
    if name == operation:
        raise CrashError(name)
