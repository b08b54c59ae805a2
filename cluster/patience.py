"""Storage that is asked again: a shared file system that is slow, stale or away for a minute must not end a job."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from cluster.storage import AlreadyExistsError, Storage
from schemas.errors import UnreachableError

logger = logging.getLogger(__name__)

_Answer = TypeVar("_Answer")
_FIRST_PAUSE_S = 0.2
_MOST_PAUSE_S = 10.0


class PatientStorage:
    """Another storage, with every operation repeated while it fails. What it answers (missing, exists) is passed on at once."""

    def __init__(self, storage: Storage, *, patience_s: float, sleep: Callable[[float], None] = time.sleep) -> None:
        """Args: storage: the storage. patience_s: how long one operation may fail. sleep: waits."""
        self._storage, self._patience_s, self._sleep = storage, patience_s, sleep
        self.url = storage.url

    def create_exclusive(self, key: str, data: bytes) -> None:
        """See `Storage.create_exclusive`. An object that is there after a failed try, with our bytes, is our own: the answer was lost."""
        tried = False

        def create() -> None:
            nonlocal tried
            again, tried = tried, True
            try:
                self._storage.create_exclusive(key, data)
            except AlreadyExistsError:
                if not again or self._storage.read(key) != data:
                    raise

        self.patiently(create)

    def read(self, key: str) -> bytes:
        """See `Storage.read`."""
        return self.patiently(lambda: self._storage.read(key))

    def exists(self, key: str) -> bool:
        """See `Storage.exists`."""
        return self.patiently(lambda: self._storage.exists(key))

    def size(self, key: str) -> int:
        """See `Storage.size`."""
        return self.patiently(lambda: self._storage.size(key))

    def names(self, prefix: str) -> tuple[str, ...]:
        """See `Storage.names`."""
        return self.patiently(lambda: self._storage.names(prefix))

    def delete(self, key: str) -> None:
        """See `Storage.delete`."""
        self.patiently(lambda: self._storage.delete(key))

    def local_path(self, key: str) -> Path | None:
        """See `Storage.local_path`."""
        return self._storage.local_path(key)

    def patiently(self, operation: Callable[[], _Answer]) -> _Answer:
        """Returns what `operation` returns, repeated while it fails. Raises FileNotFoundError at once, UnreachableError in the end."""
        waited_s, pause_s = 0.0, _FIRST_PAUSE_S
        while True:
            try:
                return operation()
            except FileNotFoundError:
                raise
            except (OSError, UnreachableError) as error:
                if waited_s >= self._patience_s:
                    raise UnreachableError(
                        f"{self.url} has failed for {waited_s:.0f} s", why=str(error), mend="see to the storage, then resume"
                    ) from error
                logger.warning("storage fails, asked again in %.1f s: %s", pause_s, error)
            self._sleep(pause_s)
            waited_s, pause_s = waited_s + pause_s, min(2 * pause_s, _MOST_PAUSE_S)
