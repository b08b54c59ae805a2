"""What artifacts take of the disk: bytes and files as they lie there, each file counted once however many names it has."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from cluster.storage import Storage
from schemas.frozen import Frozen


class DiskUse(Frozen):
    """What something takes."""

    bytes: int = 0
    """Sum of the sizes."""
    files: int = 0
    """Files and folders: what a quota of inodes counts."""

    def __add__(self, other: Self) -> Self:
        return self.model_copy(update={"bytes": self.bytes + other.bytes, "files": self.files + other.files})


class DiskMeter:
    """Measures folder by folder. What a file takes is booked where it is first seen: artifacts share shards and checkpoints by further names."""

    def __init__(self, storage: Storage) -> None:
        """Args: storage: what is measured."""
        self._storage = storage
        self._seen: set[tuple[int, int]] = set()

    def measure(self, key: str) -> DiskUse:
        """Returns what the folder `key` takes beyond what was measured before."""
        folder = self._storage.local_path(key)
        sizes = list(self._local(folder)) if folder is not None else [self._storage.size(name) for name in _objects(self._storage, key)]
        return DiskUse(bytes=sum(sizes), files=len(sizes))

    def _local(self, folder: Path) -> Iterator[int]:
        for place, folders, files in os.walk(folder, followlinks=False):
            yield from (0 for _ in folders)
            for name in files:
                try:
                    found = (Path(place) / name).lstat()
                except FileNotFoundError:  # a heartbeat, say, that was superseded
                    continue
                if (found.st_dev, found.st_ino) not in self._seen:
                    self._seen.add((found.st_dev, found.st_ino))
                    yield found.st_size


def _objects(storage: Storage, key: str) -> Iterator[str]:
    """Yields the objects below a folder of a storage that knows no folders."""
    for name in storage.names(key):
        below = f"{key}/{name}"
        children = storage.names(below)
        if not children or children == (name,):  # an object lists itself
            yield below
        else:
            yield from _objects(storage, below)
