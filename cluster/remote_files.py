"""Raw text that lies behind a URL: listed, told apart by what its server says of it, and read as a stream. Nothing is ever written there.

`s3://` goes by `cluster.s3_requests`, like storage: the same chain of credentials, the same patience. Everything else goes by fsspec's file systems.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import xxhash

from cluster.durable import share
from cluster.s3_requests import S3Requests
from schemas.errors import InputError, UnreachableError

_BLOCK_BYTES = 8 << 20
_RIGHTS = "this identity needs GetObject and ListBucket there"


@dataclass(frozen=True)
class RemoteFile:
    """A file as its server describes it."""

    url: str
    """Where it lies."""
    size: int
    """Bytes."""
    identity: str
    """Another one when the content is another; empty: the server says nothing that would tell."""
    modified_at: float = 0.0
    """Where nothing but times tells: when it was changed last, Unix time. 0: more than times tells."""


@dataclass(frozen=True)
class Fetched:
    """A file that was read from its beginning to its end."""

    file: RemoteFile
    """As the server described it before and after."""
    xxh3: str
    """xxh3-128 of its bytes, hex."""


class Server(Protocol):
    """What is asked of a server. Everything raises UnreachableError when it does not answer or refuses."""

    tries: int
    """How often a file is read when that fails."""

    def find(self, url: str) -> RemoteFile | None:
        """Returns the file at `url`; None when there is none."""

    def below(self, url: str) -> Iterator[RemoteFile]:
        """Yields all files whose URLs begin with `url`, which ends in a slash, in any order."""

    def blocks(self, file: RemoteFile) -> Iterator[bytes]:
        """Yields a file's content. Raises FileNotFoundError."""


class RemoteFiles:
    """Files behind URLs of any kind. Safe to use from several threads. Asks no server before it must."""

    def __init__(self, *, sleep: Callable[[float], None] = time.sleep) -> None:
        """Args: sleep: waits between two tries."""
        self._sleep = sleep
        self._servers: dict[str, Server] = {}
        self._lock = threading.Lock()

    def find(self, url: str) -> RemoteFile | None:
        """Returns the file at `url`; None when there is none.

        Raises:
            InputError: nothing here speaks this protocol, or the server does not tell the file's size.
            UnreachableError: the server refuses, or does not answer.
        """
        return self._server(url).find(url)

    def below(self, folder: str) -> Iterator[RemoteFile]:
        """Yields all files below a folder, at any depth and in any order. Raises as `find`."""
        return self._server(folder).below(f"{folder.rstrip('/')}/")

    def fetch(self, url: str, *, target: Path | None = None, on_block: Callable[[int], None] | None = None) -> Fetched:
        """Reads a file once, in memory for one block; writes it to the new file `target`, where one is given. That is not durable yet.

        Args:
            on_block: told the bytes of every block that was read, twice when that is tried again; what it raises ends the reading.

        Raises:
            InputError: it is gone, or changed while it was read.
            UnreachableError: as `find`.
            OSError: `target` cannot be written.
        """
        server = self._server(url)
        for left in reversed(range(server.tries)):
            before = server.find(url)
            if before is None:
                raise _gone(url)
            try:
                size, digest = _copied(server.blocks(before), target, on_block=on_block)
            except FileNotFoundError as error:
                raise _gone(url) from error
            except UnreachableError:
                if not left:
                    raise
                self._sleep(server.tries - left)
                continue
            if server.find(url) == before and size == before.size:
                return Fetched(before, digest)
        raise InputError(f"{url}: changed while it was read", mend="run again once nobody writes there")

    def _server(self, url: str) -> Server:
        scheme, _, rest = url.partition("://")
        key = f"{scheme}://{rest.partition('/')[0]}"
        with self._lock:
            if key not in self._servers:
                self._servers[key] = _S3(rest.partition("/")[0], sleep=self._sleep) if scheme == "s3" else _other(scheme, sleep=self._sleep)
            return self._servers[key]


class _S3:
    """A bucket; see `Server`."""

    tries = 2
    """Requests are repeated by themselves; once more is for an object that was replaced by a shorter one meanwhile."""

    def __init__(self, bucket: str, *, sleep: Callable[[float], None]) -> None:
        self._root = f"s3://{bucket}"
        self._s3 = S3Requests(bucket, url=self._root, key="corpus.sources", rights=_RIGHTS, sleep=sleep)

    def find(self, url: str) -> RemoteFile | None:
        name = self._name(url)
        if not name or name.endswith("/"):
            return None
        try:
            head = self._s3.call("head_object", Key=name)
        except FileNotFoundError:
            return None
        return RemoteFile(url, size=int(head["ContentLength"]), identity=str(head.get("ETag", "")))

    def below(self, url: str) -> Iterator[RemoteFile]:
        for page in self._s3.pages(self._name(url)):
            for item in page.get("Contents", ()):
                if not str(item["Key"]).endswith("/"):  # what some programs put there for a folder
                    yield RemoteFile(f"{self._root}/{item['Key']}", size=int(item["Size"]), identity=str(item.get("ETag", "")))

    def blocks(self, file: RemoteFile) -> Iterator[bytes]:
        for start in range(0, file.size, _BLOCK_BYTES):
            yield self._s3.get(self._name(file.url), start=start, stop=min(start + _BLOCK_BYTES, file.size))

    def _name(self, url: str) -> str:
        return url[len(self._root) + 1 :]


def _other(scheme: str, *, sleep: Callable[[float], None]) -> Server:
    from cluster.fsspec_files import FsspecFiles

    return FsspecFiles(scheme, sleep=sleep)


def _copied(blocks: Iterator[bytes], target: Path | None, *, on_block: Callable[[int], None] | None) -> tuple[int, str]:
    """Returns how many bytes there are and their hash; writes them to `target`, in place of what an earlier try left."""
    state, size = xxhash.xxh3_128(), 0
    if target is not None:
        target.unlink(missing_ok=True)
    with nullcontext() if target is None else target.open("xb", buffering=0) as file:
        if target is not None:
            share(target)
        for block in blocks:
            state.update(block)
            size += len(block)
            view = memoryview(block)
            while file is not None and view:
                view = view[file.write(view) :]
            if on_block is not None:
                on_block(len(block))
    return size, state.hexdigest()


def _gone(url: str) -> InputError:
    return InputError(f"{url}: is not there any more", mend="run again: the corpus is planned anew from the files as they are now")
