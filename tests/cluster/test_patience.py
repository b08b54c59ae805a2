"""A storage that fails for a while."""

import errno
from pathlib import Path

import pytest

from cluster.patience import PatientStorage
from cluster.storage import AlreadyExistsError, FileStorage
from schemas.errors import UnreachableError, UnsafeFileError


class Failing(FileStorage):
    """Fails the next `times` operations; with `lost`, writes do happen but are reported as failed."""

    times = 0
    lost = False

    def _fails(self) -> bool:
        self.times -= 1
        return self.times >= 0

    def create_exclusive(self, key: str, data: bytes) -> None:
        if self._fails():
            if self.lost:
                super().create_exclusive(key, data)
            raise OSError(errno.EIO, "Input/output error")
        super().create_exclusive(key, data)

    def read(self, key: str) -> bytes:
        if self._fails():
            raise OSError(errno.ESTALE, "Stale file handle")
        return super().read(key)


@pytest.fixture
def storage(tmp_path: Path) -> Failing:
    return Failing(tmp_path)


def patient(storage: FileStorage) -> PatientStorage:
    return PatientStorage(storage, patience_s=60.0, sleep=lambda _seconds: None)


def test_a_few_failures_are_waited_out(storage: Failing) -> None:
    storage.create_exclusive("k", b"1")
    storage.times = 5
    assert patient(storage).read("k") == b"1"


def test_patience_ends(storage: Failing) -> None:
    storage.times = 10**6
    with pytest.raises(UnreachableError, match="Stale file handle"):
        patient(storage).read("k")
    assert storage.times > 10**6 - 100


def test_answers_are_passed_on_at_once(storage: Failing) -> None:
    storage.create_exclusive("k", b"1")
    with pytest.raises(FileNotFoundError):
        patient(storage).read("none")
    with pytest.raises(AlreadyExistsError):
        patient(storage).create_exclusive("k", b"1")
    with pytest.raises(UnsafeFileError):
        patient(storage).read("../k")


def test_a_write_whose_answer_was_lost_is_known_as_our_own(storage: Failing) -> None:
    storage.times, storage.lost = 1, True
    patient(storage).create_exclusive("k", b"ours")
    assert storage.read("k") == b"ours"


def test_a_write_that_failed_while_another_came_first_is_not_ours(storage: Failing) -> None:
    storage.times = 1
    FileStorage(storage.root).create_exclusive("k", b"theirs")
    with pytest.raises(AlreadyExistsError):
        patient(storage).create_exclusive("k", b"ours")
