"""Shared storage on S3, or whatever speaks its language: conditional puts, and whole files in blocks.

Every request is repeated while the server is busy (`cluster.s3_requests`). A put carries a mark, by which a writer knows its own object when the
answer was lost: equal bytes alone would not tell it from another writer's.
"""

import contextlib
import errno
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import xxhash

from cluster.layout import safe_key
from cluster.s3_requests import S3Requests
from cluster.storage import AlreadyExistsError, open_regular
from schemas.artifact import FileEntry
from schemas.errors import ConfigError, HeadraceError, Problem, UnreachableError
from schemas.reference import resolve_secrets

logger = logging.getLogger(__name__)

_BLOCK_BYTES = 8 << 20
"""What one request carries of a large file. S3 takes no smaller parts than 5 MiB."""
_MOST_PARTS = 10_000
_AT_A_TIME = 4
"""Requests for one file that are under way at once."""
_MARK = "headrace-put"
"""Metadata of an object: which put made it."""
_URL = re.compile(r"s3://(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(?P<prefix>.*))?")


class S3Storage:
    """A prefix in a bucket; see `cluster.storage.Storage`. Safe to use from several threads."""

    def __init__(self, url: str, *, sleep: Callable[[float], None] = time.sleep) -> None:
        """Args: url: `s3://bucket/prefix`, secrets as `${…}`. sleep: waits between two tries. Raises ConfigError. Asks the server nothing yet."""
        self.url = url.rstrip("/")
        match = _URL.fullmatch(resolve_secrets(self.url))
        if match is None:
            message = "must be s3://BUCKET/PREFIX; credentials and endpoint come from the environment (AWS_PROFILE, AWS_ENDPOINT_URL, …)"
            raise ConfigError((Problem("storage.root", repr(url), message),))
        self._prefix = (match["prefix"] or "").strip("/")
        self._s3 = S3Requests(match["bucket"], url=self.url, sleep=sleep)

    # ---- objects ------------------------------------------------------------------------------------------------------

    def create_exclusive(self, key: str, data: bytes) -> None:
        """See `Storage.create_exclusive`: a conditional put."""
        self._put(key, data)

    def read(self, key: str) -> bytes:
        """See `Storage.read`."""
        return self._s3.get(self._name(key))

    def exists(self, key: str) -> bool:
        """See `Storage.exists`. Asks for the object itself, no listing."""
        return self._head(key) is not None

    def size(self, key: str) -> int:
        """See `Storage.size`."""
        head = self._head(key)
        if head is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), f"{self.url}/{key}")
        return int(head["ContentLength"])

    def names(self, prefix: str) -> tuple[str, ...]:
        """See `Storage.names`. A folder in which there is nothing any more is left out: some servers list it for a while."""
        above = f"{self._name(prefix)}/"
        found: set[str] = set()
        for page in self._s3.pages(above, Delimiter="/"):
            found |= {str(item["Key"])[len(above) :] for item in page.get("Contents", ())}
            folders = [str(item["Prefix"]) for item in page.get("CommonPrefixes", ())]
            found |= {folder[len(above) : -1] for folder in folders if self._s3.call("list_objects_v2", Prefix=folder, MaxKeys=1).get("Contents")}
        return tuple(sorted(name for name in found if name))

    def delete(self, key: str) -> None:
        """See `Storage.delete`. A folder goes in requests of up to 1,000 objects."""
        name = self._name(key)
        if self._head(key) is not None:
            self._s3.call("delete_object", Key=name)
            return
        for page in self._s3.pages(f"{name}/"):
            objects = [{"Key": item["Key"]} for item in page.get("Contents", ())]
            if objects:
                answer = self._s3.call("delete_objects", Delete={"Objects": objects, "Quiet": True})
                for failure in answer.get("Errors") or ():
                    what = f"{self.url}: {failure.get('Key')} cannot be deleted"
                    raise UnreachableError(what, why=str(failure.get("Message") or failure.get("Code")))

    def local_path(self, key: str) -> None:
        """See `Storage.local_path`: files are brought to the node first (`cluster.staging`)."""
        safe_key(key)

    # ---- whole files --------------------------------------------------------------------------------------------------

    def upload(self, path: Path, key: str, *, entry: FileEntry) -> None:
        """Stores a local file under `key`, exclusively, whole or not at all. Equal bytes that are there already are success.

        Args:
            path: the file; it no longer changes.
            key: where to.
            entry: its size and hash.

        Raises:
            AlreadyExistsError: the key holds other bytes.
            UnreachableError: the storage fails, or somebody ended the upload; another try may succeed.
        """
        in_parts = entry.size > 2 * _BLOCK_BYTES
        try:
            if in_parts:
                self._put_parts(key, path, size=entry.size)
            else:
                self._put(key, path.read_bytes())
        except AlreadyExistsError:
            if self.size(key) != entry.size or self.hash(key) != entry.xxh3:
                raise
        if in_parts:
            self._end_other_uploads(self._name(key))

    def download(self, key: str, path: Path, *, size: int) -> None:
        """Writes the object's first `size` bytes into the new file `path`, several blocks at once. Checks nothing. Raises FileNotFoundError."""
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644)
        try:
            with ThreadPoolExecutor(_AT_A_TIME, thread_name_prefix="download") as pool:
                blocks = range(0, min(size, self.size(key)), _BLOCK_BYTES)
                list(pool.map(lambda start: os.pwrite(descriptor, self._block(key, start, size=size), start), blocks))
        finally:
            os.close(descriptor)

    def copy(self, source: str, key: str, *, size: int) -> bool:
        """Has the server copy an object of this storage to `key`. For names that get equal bytes whoever writes them: what is there is replaced.

        Returns:
            Whether the source was there, and `size` bytes long; otherwise nothing was done.
        """
        try:
            if self.size(source) != size:
                return False
            self._s3.copy(self._name(source), self._name(key))
        except FileNotFoundError:
            return False
        return True

    def hash(self, key: str) -> str:
        """Returns the xxh3-128 of the object's content, hex, which is read for it block by block. Raises FileNotFoundError."""
        state, size = xxhash.xxh3_128(), self.size(key)
        for start in range(0, size, _BLOCK_BYTES):
            state.update(self._block(key, start, size=size))
        return state.hexdigest()

    def abandon_uploads(self, prefix: str) -> int:
        """Ends the uploads in parts of objects whose keys begin with `prefix`, which somebody did not finish, and returns how many there were."""
        found = self._uploads(self._name(prefix))
        self._abort(found)
        return len(found)

    # ---- requests -----------------------------------------------------------------------------------------------------

    def _name(self, key: str) -> str:
        """Returns the object's name in the bucket."""
        return "/".join(filter(None, (self._prefix, safe_key(key))))

    def _head(self, key: str) -> dict[str, Any] | None:
        try:
            return self._s3.call("head_object", Key=self._name(key))
        except FileNotFoundError:
            return None

    def _uploads(self, prefix: str) -> Sequence[Mapping[str, Any]]:
        """Returns the uploads in parts that are under way, of objects whose names in the bucket begin with `prefix`."""
        return self._s3.call("list_multipart_uploads", Prefix=prefix).get("Uploads") or ()

    def _end_other_uploads(self, name: str) -> None:
        """Ends what others began of an object that is there now: starts that were killed, and a node that runs the same item. Not before: that node's
        upload is alive, and may be the one that comes to an end. From now on none can, and who is still at it finds these bytes.
        """
        try:
            self._abort(upload for upload in self._uploads(name) if upload["Key"] == name)
        except (OSError, HeadraceError) as error:  # what was asked for is done
            logger.warning("unfinished uploads of %s may be left: %s", name, error)

    def _abort(self, uploads: Iterable[Mapping[str, Any]]) -> None:
        for upload in uploads:
            with contextlib.suppress(FileNotFoundError):  # it has just ended
                self._s3.call("abort_multipart_upload", Key=upload["Key"], UploadId=upload["UploadId"])

    def _block(self, key: str, start: int, *, size: int) -> bytes:
        """Returns a block of an object of `size` bytes; fewer where the object is shorter."""
        return self._s3.get(self._name(key), start=start, stop=min(start + _BLOCK_BYTES, size))

    def _put(self, key: str, data: bytes) -> None:
        name, mark = self._name(key), secrets.token_hex(8)
        self._claim(key, mark, lambda: self._s3.once("put_object", Key=name, Body=data, IfNoneMatch="*", Metadata={_MARK: mark}))

    def _put_parts(self, key: str, path: Path, *, size: int) -> None:
        """Puts a large file in parts: the object appears when all are there, or never."""
        name, mark, block = self._name(key), secrets.token_hex(8), max(_BLOCK_BYTES, -(-size // _MOST_PARTS))
        upload = {"Key": name, "UploadId": self._s3.call("create_multipart_upload", Key=name, Metadata={_MARK: mark})["UploadId"]}
        try:
            with open_regular(path) as file, self._ended_by_others(key), ThreadPoolExecutor(_AT_A_TIME, thread_name_prefix="upload") as pool:

                def send(number: int) -> dict[str, Any]:
                    data = os.pread(file.fileno(), block, (number - 1) * block)
                    return {"PartNumber": number, "ETag": self._s3.call("upload_part", **upload, PartNumber=number, Body=data)["ETag"]}

                parts = {"Parts": list(pool.map(send, range(1, -(-size // block) + 1)))}
                self._claim(key, mark, lambda: self._s3.once("complete_multipart_upload", **upload, MultipartUpload=parts, IfNoneMatch="*"))
        except BaseException:
            with contextlib.suppress(OSError, HeadraceError):  # what failed is told; an upload that stays is ended by the next one that succeeds
                self._s3.call("abort_multipart_upload", **upload)
            raise

    @contextlib.contextmanager
    def _ended_by_others(self, key: str) -> Iterator[None]:
        """Says what it means that an upload in parts is not there any more: callers take FileNotFoundError for a local file that is gone.

        Raises:
            AlreadyExistsError: another writer's object is there.
            UnreachableError: it is not, and the file may be uploaded again.
        """
        try:
            yield
        except FileNotFoundError as error:
            if self.exists(key):
                raise AlreadyExistsError(f"{key} exists") from error
            mend = "headrace resume; if it happens again, see what ends unfinished uploads in this bucket"
            raise UnreachableError(f"{self.url}/{key}: its upload was ended before all was there", why=str(error), mend=mend) from error

    def _claim(self, key: str, mark: str, put: Callable[[], Any]) -> None:
        """Runs a conditional put until it is answered. Raises AlreadyExistsError when the object that is there is not the one with this mark."""

        def attempt() -> None:
            try:
                put()
            except Exception as error:
                # a repeated put is refused because of the first one, whose answer was lost: by its condition, or because its parts are used up
                if not self._s3.is_taken(error) and not isinstance(error, FileNotFoundError):
                    raise
                head = self._head(key)
                if head is None:
                    raise
                if head.get("Metadata", {}).get(_MARK) != mark:
                    raise AlreadyExistsError(f"{key} exists") from error

        self._s3.repeated(attempt, about=self._name(key))
