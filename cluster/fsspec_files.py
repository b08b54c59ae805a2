"""Files behind URLs that a file system of fsspec reaches: https, and whatever a package is installed for. See `cluster.remote_files`."""

import re
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

from cluster.remote_files import RemoteFile
from schemas.errors import HeadraceError, InputError, UnreachableError

_Answer = TypeVar("_Answer")
_BLOCK_BYTES = 8 << 20
_TRIES = 3
"""Of what fsspec's file systems do not repeat by themselves."""
_VERSIONS = (
    "ETag",
    "etag",
    "e_tag",
    "VersionId",
    "version_id",
    "generation",
    "Digest",
    "Content-MD5",
    "content_md5",
    "md5Hash",
    "checksum",
    "blob_id",
)
_TIMES = ("LastModified", "Last-Modified", "last_modified", "modificationTime", "mtime", "modified", "updated", "created")
"""What servers call them. Times count only where there is no version: they may stand still while the content changes."""
_QUERY = re.compile(r"(\w+://[^\s'\"?]*)\?[^\s'\"]*")


class FsspecFiles:
    """See the module, and `cluster.remote_files.Server`."""

    tries = _TRIES

    def __init__(self, scheme: str, *, sleep: Callable[[float], None]) -> None:
        """Args: scheme: of the URLs. sleep: waits between two tries. Raises InputError when nothing here speaks it."""
        import fsspec

        self._sleep = sleep
        self._is_web = scheme in ("http", "https")
        try:
            fsspec.get_filesystem_class(scheme)
        except ValueError as error:
            known = "s3, https, http, file, and whatever fsspec has a package for"
            raise InputError(f"{scheme}:// is no protocol that is known", why=f"there are {known}", mend="correct corpus.sources[].path") from error
        except ImportError as error:
            mend = "install it where `headrace` runs; nodes do not need it"
            raise InputError(f"{scheme}:// needs a package that is not installed", why=str(error), mend=mend) from error

    def find(self, url: str) -> RemoteFile | None:
        """See `Server.find`."""
        try:
            facts = self._asked(url, lambda files, path: files.info(path))
        except FileNotFoundError:
            return None
        return None if facts.get("type") == "directory" else _described(url, facts)

    def below(self, url: str) -> Iterator[RemoteFile]:
        """See `Server.below`."""
        try:
            root, found = self._asked(url, lambda files, path: (path.rstrip("/"), files.find(path, detail=True)))
        except FileNotFoundError:
            return
        for path, facts in found.items():
            if str(path).startswith(f"{root}/"):
                yield _described(url + str(path)[len(root) + 1 :], facts)

    def blocks(self, file: RemoteFile) -> Iterator[bytes]:
        """See `Server.blocks`."""
        try:
            files, path = self._open(file.url)
            with files.open(path, "rb", block_size=0 if self._is_web else _BLOCK_BYTES) as stream:  # 0: one request, as many servers know no ranges
                while block := stream.read(_BLOCK_BYTES):
                    yield block
        except Exception as error:
            raise _explained(file.url, error) from error

    def _asked(self, url: str, ask: Callable[[Any, str], _Answer]) -> _Answer:
        """Returns what a file system answers. Raises FileNotFoundError, and UnreachableError after several tries."""
        for left in reversed(range(_TRIES)):
            try:
                return ask(*self._open(url))
            except Exception as error:
                known = _explained(url, error)
                if not left or not isinstance(known, UnreachableError) or _is_denied(error):
                    raise known from error
            self._sleep(_TRIES - left)
        raise AssertionError("the last try returns or raises")

    def _open(self, url: str) -> tuple[Any, str]:
        """Returns this thread's file system, which has forgotten what it listed, and the path of `url` there."""
        from fsspec.core import url_to_fs

        options: dict[str, Any] = {}
        if self._is_web:
            from aiohttp import ClientTimeout

            patience = ClientTimeout(total=None, sock_connect=10, sock_read=60)  # by default nothing may take longer than 5 minutes
            options = {"headers": {"Accept-Encoding": "identity"}, "client_kwargs": {"trust_env": True, "timeout": patience}}  # proxies, ~/.netrc
        files, path = url_to_fs(url, **options)
        files.invalidate_cache()
        return files, str(path)


def _described(url: str, facts: Mapping[str, Any]) -> RemoteFile:
    """Returns a file as a file system of fsspec describes it: each has words of its own. Raises InputError without a size."""
    if facts.get("size") is None:
        why = "without it nothing tells whether all of it arrived, and text is grouped by size"
        raise InputError(f"{url}: its server does not tell its size", why=why, mend="copy it to a folder or a bucket, and name that")
    versions = {name: str(facts[name]) for name in _VERSIONS if facts.get(name)}
    size, named = int(facts["size"]), "; ".join(f"{name}={value}" for name, value in versions.items())
    if any(not value.startswith("W/") for value in versions.values()):
        return RemoteFile(url, size=size, identity=named)
    times = {name: time_s for name in _TIMES if (time_s := _seconds(facts.get(name))) is not None}
    if not times:
        return RemoteFile(url, size=size, identity="")
    identity = "; ".join(filter(None, (named, *(f"{name}={value!r}" for name, value in times.items()))))
    return RemoteFile(url, size=size, identity=identity, modified_at=max(times.values()))


def _seconds(value: Any) -> float | None:
    """Returns a time as Unix time; None when it is none."""
    if isinstance(value, str):
        try:
            value = parsedate_to_datetime(value) if "," in value else datetime.fromisoformat(value)
        except ValueError:
            return None
    if isinstance(value, datetime):
        return value.timestamp()
    return float(value) if isinstance(value, int | float) else None


def _explained(url: str, error: Exception) -> Exception:
    """Returns what an error of fsspec's means: FileNotFoundError, or one for people, without queries, which may be signatures."""
    if isinstance(error, HeadraceError):
        return error
    if _is_missing(url, error):
        return FileNotFoundError(url)
    cause = error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ is not None else error
    why = _QUERY.sub(r"\1?…", f"{type(cause).__name__}: {cause}")
    if _is_denied(error):
        return UnreachableError(f"{url}: access is denied", why=why, mend="give this user the right to read it, by the standard chain")
    return UnreachableError(f"{url}: cannot be read", why=why, mend="see to the server and the way to it, then run again, or headrace resume")


def _is_missing(url: str, error: Exception) -> bool:
    """Whether nothing is there. Of web servers fsspec says so whatever they answered, and the answer is its cause."""
    if not isinstance(error, FileNotFoundError):
        return False
    cause = error.__cause__
    is_told = cause is None or isinstance(cause, FileNotFoundError) or _status(error) in (404, 410)
    return is_told or not url.startswith(("http://", "https://"))


def _is_denied(error: Exception) -> bool:
    return isinstance(error, PermissionError) or _status(error) in (401, 403)


def _status(error: Exception) -> int:
    """Returns what a web server answered; 0 where it did not."""
    statuses = (getattr(each, "status", None) for each in (error, error.__cause__))
    return next((status for status in statuses if isinstance(status, int)), 0)
