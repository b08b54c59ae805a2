"""Storage that is neither a folder nor S3, as far as fsspec reaches it: objects alone, which compute cannot open."""

import contextlib
import errno
import threading
from typing import Any
from urllib.parse import urlsplit

from cluster.layout import safe_key
from cluster.storage import AlreadyExistsError
from schemas.errors import UnreachableError
from schemas.reference import has_secret, hide_secrets, resolve_secrets

_MEMORY_LOCK = threading.Lock()
"""fsspec's memory file system looks, then writes: two threads may both find nothing. Servers that store objects do it in one step."""


class FsspecStorage:
    """Any other file system that fsspec reaches and that has an exclusive create (`memory://`)."""

    def __init__(self, url: str) -> None:
        """Args: url: `scheme://…`, secrets as `${…}`. Raises UnreachableError when fsspec or the endpoint cannot serve it."""
        import fsspec

        self.url = url.rstrip("/")
        self._exclusive: contextlib.AbstractContextManager[object] = _MEMORY_LOCK if urlsplit(url).scheme == "memory" else contextlib.nullcontext()
        try:
            self._fs, self._root = fsspec.core.url_to_fs(resolve_secrets(self.url))
        except (ImportError, ValueError, OSError) as error:
            why, cause = hide_secrets(str(error), text=url), None if has_secret(url) else error
            raise UnreachableError(f"storage {url!r} cannot be opened", why=why, mend="check storage.root and its credentials") from cause

    def _path(self, key: str) -> str:
        return f"{self._root}/{safe_key(key)}"

    def create_exclusive(self, key: str, data: bytes) -> None:
        """See `Storage.create_exclusive`: fsspec's `mode="create"`."""
        path = self._path(key)
        try:
            with self._exclusive:
                self._fs.pipe_file(path, data, mode="create")
        except FileExistsError as error:
            raise AlreadyExistsError(f"{key} exists") from error
        except OSError as error:  # some servers answer EINVAL for a failed condition
            if error.errno == errno.EINVAL and self.exists(key):
                raise AlreadyExistsError(f"{key} exists") from error
            raise

    def read(self, key: str) -> bytes:
        """See `Storage.read`."""
        data: bytes = self._fs.cat_file(self._path(key))
        return data

    def exists(self, key: str) -> bool:
        """See `Storage.exists`."""
        return bool(self._fs.exists(self._path(key)))

    def size(self, key: str) -> int:
        """See `Storage.size`."""
        return int(self._fs.size(self._path(key)))

    def names(self, prefix: str) -> tuple[str, ...]:
        """See `Storage.names`."""
        self._fs.invalidate_cache()
        try:
            found: list[Any] = self._fs.ls(self._path(prefix), detail=False)
        except FileNotFoundError:
            return ()
        return tuple(sorted({str(path).rstrip("/").rsplit("/", 1)[-1] for path in found}))

    def delete(self, key: str) -> None:
        """See `Storage.delete`."""
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm(self._path(key), recursive=True)

    def local_path(self, key: str) -> None:  # noqa: ARG002  # the protocol's signature
        """See `Storage.local_path`: compute cannot open it."""
        return
