"""Epochs are taken once each."""

import threading
from pathlib import Path

from cluster.epoch import newest_epoch, read_epoch, take_epoch
from cluster.layout import ArtifactLayout
from cluster.storage import FileStorage
from schemas.attempt import EpochRecord

LAYOUT = ArtifactLayout("train/x-0123456789ab")


def take(storage: FileStorage, *, attempt: int = 0) -> EpochRecord:
    return take_epoch(storage, LAYOUT, attempt=attempt, key=f"k{attempt}", world_size=2, rendezvous="127.0.0.1:1", reason="first start")


def test_numbers_count_up_across_attempts(tmp_path: Path) -> None:
    storage = FileStorage(tmp_path)
    assert newest_epoch(storage, LAYOUT) == -1
    assert [take(storage, attempt=attempt).epoch for attempt in (0, 0, 1)] == [0, 1, 2]
    assert newest_epoch(storage, LAYOUT) == 2
    assert read_epoch(storage, LAYOUT, 2).key == "k1"


def test_racing_starts_get_numbers_of_their_own(tmp_path: Path) -> None:
    storage, taken = FileStorage(tmp_path), []
    threads = [threading.Thread(target=lambda: taken.append(take(storage).epoch)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == list(range(8))
