"""Leases: one holder at a time, taken over when and only when the holder is gone."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cluster import lease
from cluster.lease import REMOVAL, Lease, LeaseBeat, LeaseTerm, live_holder, newest_term
from cluster.process import process_table, started_at
from cluster.storage import FileStorage
from schemas.canonical import canonical_json
from schemas.errors import LeaseHeldError
from schemas.exit_code import ExitCode
from tests.fakes.live_job import wait_until

FOLDER = "train/x-0123456789ab/leases"


@pytest.fixture
def storage(tmp_path: Path) -> FileStorage:
    return FileStorage(tmp_path)


def foreign_term(*, at: float | None = None, ttl_s: float = 0.3) -> bytes:
    """A term held on another machine, of which nothing but its objects is known."""
    term = LeaseTerm(
        owner="ada@far", host="far", pid=4711, pid_started=1.0, process_table="another boot/1", at=time.time() if at is None else at, ttl_s=ttl_s
    )
    return canonical_json(term)


def test_taken_released_and_taken_again(storage: FileStorage) -> None:
    with Lease.take(storage, FOLDER) as first:
        assert first.still_held()
    with Lease.take(storage, FOLDER) as second:
        assert second.still_held()
        assert not first.still_held()


def test_a_held_lease_names_its_holder(storage: FileStorage) -> None:
    with Lease.take(storage, FOLDER), pytest.raises(LeaseHeldError) as caught:
        Lease.take(storage, FOLDER)
    assert caught.value.exit_code is ExitCode.LEASE_HELD
    assert f"pid {os.getpid()}" in str(caught.value)
    assert "train/x-0123456789ab" in str(caught.value)
    assert "@" in str(caught.value)


def test_released_also_when_the_work_fails(storage: FileStorage) -> None:
    with pytest.raises(ZeroDivisionError), Lease.take(storage, FOLDER):
        raise ZeroDivisionError
    Lease.take(storage, FOLDER).release()


def test_a_dead_holder_of_this_machine_is_replaced_at_once(storage: FileStorage) -> None:
    imports = "import os; from cluster.lease import Lease; from cluster.storage import open_storage"
    code = f"{imports}; Lease.take(open_storage({storage.url!r}), {FOLDER!r}); os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 9
    with Lease.take(storage, FOLDER) as lease:
        assert lease.still_held()


def test_a_recycled_pid_is_not_the_holder(storage: FileStorage) -> None:
    started = started_at(os.getpid())
    assert started is not None
    term = LeaseTerm(
        owner="me@here", host="here", pid=os.getpid(), pid_started=started - 100.0, process_table=process_table(), at=time.time(), ttl_s=1e6
    )
    storage.create_exclusive(f"{FOLDER}/000001.json", canonical_json(term))
    Lease.take(storage, FOLDER).release()


class Resting(FileStorage):
    """Takes its time for some answers to who asks what is there."""

    def __init__(self, root: Path, *rests_s: float) -> None:
        super().__init__(root)
        self._rests_s = list(rests_s)
        self.looks = 0

    def names(self, prefix: str) -> tuple[str, ...]:
        self.looks += 1
        time.sleep(self._rests_s.pop(0) if self._rests_s else 0.0)
        return super().names(prefix)


def test_a_storage_that_rests_makes_no_holder_silent(storage: FileStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "_WATCH_EVERY_S", 0.05)
    monkeypatch.setattr(lease, "_MOST_BETWEEN_LOOKS_S", 0.05)
    storage.create_exclusive(f"{FOLDER}/000001.json", foreign_term(ttl_s=0.4))
    with pytest.raises(LeaseHeldError):
        Lease.take(Resting(tmp_path, 0.5), FOLDER)
    watching = Resting(tmp_path, 0.0, 0.5)
    Lease.take(watching, FOLDER, watch_s=1.0).release()
    assert watching.looks >= 9, "it was silent in all of them"


def test_a_holder_that_renews_while_it_is_looked_at_lives(storage: FileStorage, tmp_path: Path) -> None:
    """Its renewal is listed, and deleted for the next one before it is read; the term itself is from long ago."""
    storage.create_exclusive(f"{FOLDER}/000001.json", foreign_term(at=time.time() - 7200.0, ttl_s=30.0))
    storage.create_exclusive(f"{FOLDER}/000001.b000360.json", canonical_json(LeaseBeat(at=time.time())))

    class Renewed(FileStorage):
        def read(self, key: str) -> bytes:
            if ".b" in key:
                raise FileNotFoundError(key)
            return super().read(key)

    with pytest.raises(LeaseHeldError):
        Lease.take(Renewed(tmp_path), FOLDER)
    assert live_holder(Renewed(tmp_path), FOLDER) is not None


def test_a_holder_whose_storage_did_not_answer_for_longer_than_its_ttl_still_has_it(tmp_path: Path) -> None:
    class Refusing(FileStorage):
        refuses = False
        refused = 0

        def names(self, prefix: str) -> tuple[str, ...]:
            if self.refuses:
                self.refused += 1
                raise OSError("it is away")
            return super().names(prefix)

    storage = Refusing(tmp_path)
    with Lease.take(storage, FOLDER, ttl_s=0.15) as held:
        storage.refuses = True
        wait_until(lambda: storage.refused > 6)  # two ttls
        storage.refuses = False
        assert held.still_held()
        before = storage.names(FOLDER)
        wait_until(lambda: storage.names(FOLDER) != before)
        assert held.still_held()


def test_a_silent_holder_elsewhere_is_replaced_after_its_ttl_as_watched_from_here(storage: FileStorage) -> None:
    storage.create_exclusive(f"{FOLDER}/000001.json", foreign_term(ttl_s=0.3))
    with pytest.raises(LeaseHeldError):
        Lease.take(storage, FOLDER)
    with Lease.take(storage, FOLDER, wait_s=30.0) as lease:
        assert lease.still_held()


@pytest.mark.parametrize("skew_s", [-3000.0, 3000.0])
def test_another_machines_clock_does_not_end_its_lease(storage: FileStorage, skew_s: float) -> None:
    storage.create_exclusive(f"{FOLDER}/000001.json", foreign_term(at=time.time() + skew_s, ttl_s=30.0))
    with pytest.raises(LeaseHeldError):
        Lease.take(storage, FOLDER)


def test_what_was_left_behind_days_ago_holds_nobody_up(storage: FileStorage) -> None:
    storage.create_exclusive(f"{FOLDER}/000001.json", foreign_term(at=time.time() - 2 * 86_400, ttl_s=30.0))
    Lease.take(storage, FOLDER).release()


def test_a_renewing_holder_keeps_it_beyond_its_ttl(storage: FileStorage) -> None:
    """The holder looks foreign to the taker, so that only its renewals speak for it."""
    lease = Lease.take(storage, FOLDER, ttl_s=2.0)
    term = LeaseTerm.model_validate_json(storage.read(f"{FOLDER}/000001.json"))
    storage.delete(f"{FOLDER}/000001.json")
    storage.create_exclusive(f"{FOLDER}/000001.json", canonical_json(term.model_copy(update={"process_table": "another boot/1"})))
    try:
        with pytest.raises(LeaseHeldError):
            Lease.take(storage, FOLDER, wait_s=4.0)
        assert lease.still_held()
        assert len([name for name in storage.names(FOLDER) if ".b" in name]) <= 2
    finally:
        lease.release()


def test_a_holder_that_was_replaced_knows_it(storage: FileStorage) -> None:
    lease = Lease.take(storage, FOLDER, ttl_s=60.0)
    storage.create_exclusive(f"{FOLDER}/000002.json", foreign_term())
    assert not lease.still_held()
    assert lease.lost
    lease.release()
    assert "000001.released.json" not in storage.names(FOLDER)


def test_of_many_takers_one_gets_it(storage: FileStorage) -> None:
    taken: list[Lease] = []
    start = threading.Barrier(8)

    def take() -> None:
        start.wait()
        with contextlib.suppress(LeaseHeldError):
            taken.append(Lease.take(storage, FOLDER))

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 1
    taken[0].release()


def test_who_holds_it_and_who_held_it_last(storage: FileStorage) -> None:
    assert (live_holder(storage, FOLDER), newest_term(storage, FOLDER)) == (None, None)
    with Lease.take(storage, FOLDER, purpose=REMOVAL):
        holder = live_holder(storage, FOLDER)
        assert holder is not None
        assert (holder.pid, holder.purpose) == (os.getpid(), REMOVAL)
        with pytest.raises(LeaseHeldError, match="is being removed by"):
            Lease.take(storage, FOLDER)
    assert live_holder(storage, FOLDER) is None
    assert newest_term(storage, FOLDER) == holder


def test_of_another_user_s_lease_the_message_says_whom_to_ask(storage: FileStorage) -> None:
    storage.create_exclusive(f"{FOLDER}/000001.json", foreign_term(ttl_s=30.0))
    with pytest.raises(LeaseHeldError, match="ask ada@far, or headrace cancel --force"):
        Lease.take(storage, FOLDER)


def test_a_term_of_an_earlier_version_has_no_purpose(storage: FileStorage) -> None:
    body = json.loads(foreign_term())
    del body["purpose"]
    storage.create_exclusive(f"{FOLDER}/000001.json", json.dumps(body).encode())
    holder = live_holder(storage, FOLDER)
    assert holder is not None
    assert holder.purpose == ""
