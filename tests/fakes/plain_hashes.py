"""Hashes of files without a cache."""

from collections.abc import Callable, Sequence
from pathlib import Path

from cluster.remote_files import RemoteFile
from cluster.storage import hash_file


class PlainHashes:
    """Reads every file, every time."""

    def __init__(self, hash_file: Callable[[Path], str] = hash_file) -> None:
        """Args: hash_file: another way to hash."""
        self._hash_file = hash_file

    def hash(self, file: Path | RemoteFile) -> str:
        """See `tasks.file_hashes.Hashes`."""
        assert isinstance(file, Path)
        return self._hash_file(file)

    def hash_all(self, files: Sequence[Path | RemoteFile]) -> list[str]:
        """See `tasks.file_hashes.Hashes`."""
        return [self.hash(file) for file in files]
