"""Requests to S3, or to whatever speaks its language: repeated while the server is busy, explained when it refuses.

One request is one try of the library's; how often and how long is decided here. Endpoint, region, profile and credentials come by the
standard chain (`AWS_ENDPOINT_URL`, `AWS_PROFILE`, `~/.aws/config`, the machine's role). This module is the only user of s3fs.
"""

import logging
import random
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from schemas.errors import HeadraceError, UnreachableError
from schemas.reference import hide_secrets

logger = logging.getLogger(__name__)

_Answer = TypeVar("_Answer")
_TRIES = 8
_FIRST_PAUSE_S = 0.1
_MOST_PAUSE_S = 5.0
_CONFIG = {"retries": {"total_max_attempts": 1, "mode": "standard"}, "connect_timeout": 10, "read_timeout": 60, "max_pool_connections": 32}
_BUSY_CODES = frozenset(
    {"SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout", "ConditionalRequestConflict", "XAmzContentSHA256Mismatch", "IncompleteBody"}
)
_RIGHTS = "this identity needs Get-, Put-, DeleteObject, AbortMultipartUpload, ListBucket and ListBucketMultipartUploads below storage.root"
_TAKEN_CODES = frozenset({"PreconditionFailed", "412"})


class S3Requests:
    """Requests about one bucket. Safe to use from several threads."""

    def __init__(
        self, bucket: str, *, url: str, key: str = "storage.root", rights: str = _RIGHTS, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        """Asks the server nothing yet.

        Args:
            bucket: its name.
            url: the storage root, for people.
            key: the recipe's, that names the bucket.
            rights: what to give an identity that is refused.
            sleep: waits between two tries.
        """
        import s3fs
        from aiohttp import ClientError as NetworkError
        from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, IncompleteReadError
        from botocore.exceptions import ConnectionError as NoConnectionError
        from botocore.parsers import ResponseParserError

        self._bucket, self._url, self._sleep = bucket, url, sleep
        self._key, self._rights = key, rights
        self._refusal = ClientError
        self._lost = (NoConnectionError, HTTPClientError, IncompleteReadError, ResponseParserError, NetworkError, ConnectionError, TimeoutError)
        self._failures = (OSError, BotoCoreError, ClientError, ResponseParserError, NetworkError)
        self._fs = s3fs.S3FileSystem(skip_instance_cache=True, max_concurrency=1, config_kwargs=_CONFIG)
        self._fs.retries = 1

    def call(self, operation: str, **arguments: Any) -> dict[str, Any]:
        """Returns the answer to one of S3's operations on the bucket.

        Raises:
            FileNotFoundError: the object, or the upload in parts, is not there.
            UnreachableError: the server refuses, or does not answer after several tries.
        """
        return self.repeated(lambda: self.once(operation, **arguments), about=str(arguments.get("Key") or arguments.get("Prefix") or ""))

    def once(self, operation: str, **arguments: Any) -> dict[str, Any]:
        """Returns the answer to an operation that is tried once. For use within `repeated`."""
        answer: dict[str, Any] = self._fs.call_s3(operation, Bucket=self._bucket, **arguments)
        return answer

    def get(self, name: str, *, start: int | None = None, stop: int | None = None) -> bytes:
        """Returns an object's content, or the bytes from `start` to before `stop`. Raises as `call`."""
        path = f"{self._bucket}/{name}"
        return bytes(self.repeated(lambda: self._fs.cat_file(path, start=start, end=stop, max_concurrency=1), about=name))

    def copy(self, source: str, target: str) -> None:
        """Copies an object of any size within the bucket, on the server. Raises as `call`."""
        self.repeated(lambda: self._fs.cp_file(f"{self._bucket}/{source}", f"{self._bucket}/{target}"), about=source)

    def pages(self, prefix: str, **more: Any) -> Iterator[dict[str, Any]]:
        """Yields the pages of a listing of what begins with `prefix`."""
        token: dict[str, str] = {}
        while True:
            page = self.call("list_objects_v2", Prefix=prefix, **more, **token)
            yield page
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def repeated(self, request: Callable[[], _Answer], *, about: str) -> _Answer:
        """Returns what `request` returns: run again, after a pause that grows and varies, while the server is busy or its answers are lost.

        Args:
            request: one or several tries of one operation.
            about: name of the object, for people.

        Raises:
            FileNotFoundError: as `call`.
            UnreachableError: as `call`.
        """
        pause_s = _FIRST_PAUSE_S
        for tries in range(1, _TRIES + 1):
            try:
                return request()
            except self._failures as error:
                if isinstance(error, FileNotFoundError) and self._code(error) != "NoSuchBucket":
                    raise
                if tries == _TRIES or not self._is_passing(error):
                    raise self._explained(about, error, tries=tries) from error
                logger.info("%s: %s: %s; asked again in %.1f s", self._url, about, error, pause_s)
            self._sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311  # spreads clients that failed together
            pause_s = min(2 * pause_s, _MOST_PAUSE_S)
        raise AssertionError("the last try returns or raises")

    def is_taken(self, error: Exception) -> bool:
        """Whether the server refused a conditional put because the object exists: servers say so in several ways."""
        return isinstance(error, FileExistsError) or self._code(error) in _TAKEN_CODES

    def _is_passing(self, error: Exception) -> bool:
        """Whether the same request may succeed a little later."""
        refusal = self._refusal_of(error)
        if refusal is None:
            return isinstance(error, self._lost)
        status = int(refusal.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        return status >= 500 or status in (408, 429) or self._code(error) in _BUSY_CODES

    def _refusal_of(self, error: BaseException) -> dict[str, Any] | None:
        """Returns what the server answered, when it answered: s3fs keeps that as the cause of its own errors."""
        links: Iterable[BaseException | None] = (error, error.__cause__)
        return next((dict(link.response) for link in links if isinstance(link, self._refusal)), None)

    def _code(self, error: BaseException) -> str:
        refusal = self._refusal_of(error)
        return str(refusal.get("Error", {}).get("Code", "")) if refusal is not None else ""

    def _explained(self, about: str, error: Exception, *, tries: int) -> HeadraceError:
        """Returns the error for people: which object, what the server said, what to do."""
        what, code = f"s3://{self._bucket}/{about}", self._code(error)
        said = f"{type(error).__name__}: {error}" + (f" ({code})" if code else "")
        what, why = hide_secrets(what, text=self._url), hide_secrets(said, text=self._url)
        if code == "NoSuchBucket":
            mend = f"create it, or correct {self._key} or the endpoint"
            return UnreachableError(f"{what}: the bucket {self._bucket!r} does not exist", why=why, mend=mend)
        if isinstance(error, PermissionError):
            return UnreachableError(f"{what}: access is denied", why=why, mend=self._rights)
        if "credentials" in said.lower():
            return UnreachableError(f"{what}: no credentials", why=why, mend="set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
        times = f", {tries} times" if tries > 1 else ""
        return UnreachableError(f"{what}: the storage failed{times}", why=why, mend="see to the storage and its endpoint, then headrace resume")
