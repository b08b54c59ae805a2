"""Shared storage. Everything shared is an immutable object, written once by `create_exclusive`, or data that such an object names.

Nothing shared is appended to or renamed. `FileStorage` is a POSIX folder (temporary file, fsync, `link(2)`, fsync of the folder);
`S3Storage` (`cluster.s3_storage`) is a prefix in a bucket; `FsspecStorage` (`cluster.object_storage`) is anything else that fsspec reaches. One
contract suite (`tests/contract`) holds for all.
"""

import contextlib
import errno
import hashlib
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import xxhash

from cluster.durable import make_folder as make_folder
from cluster.durable import share as share
from cluster.durable import sync_folder as sync_folder
from cluster.durable import write_durably as write_durably
from cluster.layout import safe_key
from schemas.artifact import FileEntry
from schemas.errors import ConfigError, HeadraceError, Problem, UnsafeFileError
from schemas.reference import has_secret, resolve_secrets

_BLOCK_BYTES = 4 << 20
_WALKS = 5
"""How often a folder is walked to remove it while others still write into it."""
TEMPORARY_PREFIX = ".tmp-"
"""How names of unfinished writes begin; they are never listed and never part of anything."""
PICKLE_SUFFIXES = (".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".joblib", ".dill", ".npy", ".npz", ".bin.index")
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80")
"""How torch's archives and pickles of protocol 2 and above begin."""


class AlreadyExistsError(HeadraceError):
    """`create_exclusive` found the object: somebody else was first. Part of the protocol, caught by its callers."""


class Storage(Protocol):
    """What Headrace asks of shared storage. Keys are relative, with `/`, and checked by `safe_key`."""

    url: str
    """Absolute path or URL of the root, as `open_storage` takes it: secrets in it are still `${…}`, so it may be stored."""

    def create_exclusive(self, key: str, data: bytes) -> None:
        """Writes `data` durably unless `key` exists. Of several racing writers exactly one succeeds.

        Raises:
            AlreadyExistsError: `key` exists, complete, written by somebody else.
        """

    def read(self, key: str) -> bytes:
        """Returns the object. Raises FileNotFoundError."""

    def exists(self, key: str) -> bool:
        """Whether the object exists, complete."""

    def size(self, key: str) -> int:
        """Returns the object's size in bytes. Raises FileNotFoundError."""

    def names(self, prefix: str) -> tuple[str, ...]:
        """Returns the sorted names directly below the folder `prefix`; empty when there is none. Unfinished writes are not listed."""

    def delete(self, key: str) -> None:
        """Removes an object or a whole folder; nothing when there is none."""

    def local_path(self, key: str) -> Path | None:
        """Returns where compute may open `key` directly, or None when it must be staged."""


class FileStorage:
    """A folder on a POSIX file system, local or shared."""

    def __init__(self, root: Path, *, url: str | None = None) -> None:
        """Args: root: absolute path; created when missing. url: how others open it; default: the path."""
        self.root = root
        self.url = url or str(root)

    def _path(self, key: str) -> Path:
        """Returns the path of `key`; see `path_below`."""
        return path_below(self.root, key)

    def create_exclusive(self, key: str, data: bytes) -> None:
        """See `Storage.create_exclusive`. POSIX `link(2)` fails when the target exists, also over NFS."""
        path = self._path(key)
        make_folder(path.parent)
        temporary = path.with_name(f"{TEMPORARY_PREFIX}{path.name}-{os.getpid()}-{secrets.token_hex(4)}")
        try:
            write_durably(temporary, data)
            link_exclusive(temporary, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()

    def read(self, key: str) -> bytes:
        """See `Storage.read`."""
        return self._path(key).read_bytes()

    def exists(self, key: str) -> bool:
        """See `Storage.exists`."""
        return self._path(key).exists()

    def size(self, key: str) -> int:
        """See `Storage.size`."""
        return self._path(key).stat().st_size

    def names(self, prefix: str) -> tuple[str, ...]:
        """See `Storage.names`."""
        try:
            return tuple(sorted(name for name in os.listdir(self._path(prefix)) if not name.startswith(TEMPORARY_PREFIX)))
        except (FileNotFoundError, NotADirectoryError):
            return ()

    def delete(self, key: str) -> None:
        """See `Storage.delete`. Another may delete the same meanwhile, or still write into the folder: then it is walked again."""
        path = self._path(key)
        for left in reversed(range(_WALKS)):
            try:
                _remove(path)
                return
            except OSError as error:
                if error.errno != errno.ENOTEMPTY or not left:
                    raise

    def local_path(self, key: str) -> Path:
        """See `Storage.local_path`."""
        return self._path(key)


def open_storage(url: str) -> Storage:
    """Returns the storage at an absolute path or URL; `${env:…}` and `${file:…}` in it are resolved here, and nowhere written.

    Raises:
        ConfigError: for a relative path (a worker's working directory is not the user's), or a secret that is not there.
    """
    resolved = resolve_secrets(url)
    if urlsplit(resolved).scheme == "s3":
        from cluster.s3_storage import S3Storage

        return S3Storage(url)
    if urlsplit(resolved).scheme not in ("", "file"):
        from cluster.object_storage import FsspecStorage

        return FsspecStorage(url)
    path = Path(resolved.removeprefix("file://"))
    if not path.is_absolute():
        nearest = "" if has_secret(url) else str(path.absolute())
        raise ConfigError((Problem("storage.root", repr(url), "must be absolute here", nearest=nearest),))
    make_folder(path)
    return FileStorage(path.resolve(), url=url if has_secret(url) else None)


def _remove(path: Path) -> None:
    """Removes a file, or a folder file by file, never through a link; nothing when there is none."""
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return
    for folder, folders, files in os.walk(path, topdown=False, followlinks=False):
        for name in files:
            (Path(folder) / name).unlink(missing_ok=True)
        for child in (Path(folder) / name for name in folders):
            child.unlink(missing_ok=True) if child.is_symlink() else _remove_empty(child)
    _remove_empty(path)


def _remove_empty(folder: Path) -> None:
    with contextlib.suppress(FileNotFoundError):  # another was here first
        folder.rmdir()


# ---- local files: what storage, agents and compute do alike ---------------------------------------------------------------


def path_below(folder: Path, relative: str) -> Path:
    """Returns the path of something that lies below `folder`.

    Raises:
        UnsafeFileError: `relative` leaves the folder by its name, or a symbolic link is on the way: it could lead anywhere.
    """
    path = folder / safe_key(relative)
    for part in (path, *path.parents):
        if part == folder:
            break
        if part.is_symlink():
            raise UnsafeFileError(
                f"{part} is a symbolic link", why=f"a link could lead out of {folder}", mend="replace it by the file or folder itself"
            )
    return path


def entries_of(folder: Path) -> tuple[Path, ...]:
    """Returns what is in a folder; nothing when there is none. Not `glob`: it raises when another process removes the folder under its eyes."""
    try:
        return tuple(folder.iterdir())
    except FileNotFoundError:
        return ()


def link_exclusive(temporary: Path, path: Path) -> None:
    """Gives the durable file `temporary` its name `path`, durably, unless the name is taken. `temporary` stays.

    Raises:
        AlreadyExistsError: the name is taken by another file.
    """
    try:
        os.link(temporary, path)
    except FileExistsError as error:
        # NFS may report failure for a link that it made: the link count tells (Linux open(2), O_EXCL).
        if temporary.stat().st_nlink != 2 or not temporary.samefile(path):
            raise AlreadyExistsError(f"{path} exists") from error
    sync_folder(path.parent)


def publish_file(temporary: Path, path: Path, *, xxh3: str | None = None) -> FileEntry:
    """Makes the written file `temporary` durable under its final name, exclusively, and removes the temporary name.

    Deterministic compute makes equal bytes: a name that is taken by equal bytes is success, by other bytes an error.

    Args:
        temporary: the file, in the folder of `path`.
        path: its final name.
        xxh3: hash of a file that is durable already (`stream_durably`).

    Returns:
        The entry of `path`, relative to nothing: callers set `path`.

    Raises:
        AlreadyExistsError: the name is taken by other bytes.
    """
    if xxh3 is None:
        descriptor = os.open(temporary, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        share(temporary)  # libraries wrote it
        xxh3 = hash_file(temporary)
    entry = FileEntry(path=path.name, size=temporary.stat().st_size, xxh3=xxh3)
    try:
        link_exclusive(temporary, path)
    except AlreadyExistsError as error:
        if hash_file(path) != entry.xxh3:
            why = "an earlier start left it, which was cut short and had other versions of libraries; or it is damaged"
            raise AlreadyExistsError(
                f"{path}: is there with other bytes", why=why, mend="once nothing works on it, delete this file and run again; the others are kept"
            ) from error
    temporary.unlink()
    return entry


def replace_local(path: Path, data: bytes) -> None:
    """Replaces a node-local file atomically (readers see the old or the new one). Not durable; never for shared objects."""
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{path.name}-{os.getpid()}")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def open_regular(path: Path) -> FileIO:
    """Returns the file, open for reading without a buffer. Raises UnsafeFileError for a symbolic link or a special file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UnsafeFileError(
                f"{path} is a symbolic link", why="a link could lead out of its folder", mend="replace it by the file itself"
            ) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UnsafeFileError(f"{path} is not a regular file", why="only regular files can be hashed and stored")
    return FileIO(descriptor, "rb")


def hash_file(path: Path, *, on_block: Callable[[int], None] | None = None) -> str:
    """Returns the xxh3-128 of a file's content, hex. Raises UnsafeFileError for a symbolic link or a special file.

    Args:
        on_block: told the bytes of every block that was read; what it raises ends the reading.
    """
    with open_regular(path) as file:
        state = xxhash.xxh3_128()
        while block := file.read(_BLOCK_BYTES):
            state.update(block)
            if on_block is not None:
                on_block(len(block))
    return state.hexdigest()


def file_entry(path: Path, *, relative_to: Path) -> FileEntry:
    """Returns size and hash of a file, with its path relative to `relative_to`."""
    return FileEntry(path=path.relative_to(relative_to).as_posix(), size=path.stat().st_size, xxh3=hash_file(path))


def looks_like_pickle(path: Path) -> bool:
    """Whether a file's name, or the beginning of a `.bin` file, says that it is a pickle. For folders that come from outside."""
    if path.name.endswith(PICKLE_SUFFIXES):
        return True
    if path.suffix != ".bin" or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4).startswith(_PICKLE_STARTS)


def walk_files(folder: Path, *, skip: tuple[str, ...] = ()) -> Iterator[Path]:
    """Yields the regular files below `folder`, sorted; top-level names in `skip` and temporary files are left out.

    Raises:
        UnsafeFileError: for symbolic links, and for endings that stand for pickles (`PICKLE_SUFFIXES`).
    """
    for path in sorted(folder.iterdir()):
        if path.name in skip or path.name.startswith(TEMPORARY_PREFIX):
            continue
        if path.is_symlink():
            raise UnsafeFileError(f"{path} is a symbolic link", why="a link could lead out of its folder", mend="replace it by the file itself")
        if path.is_dir():
            yield from walk_files(path)
        elif path.name.endswith(PICKLE_SUFFIXES):
            raise UnsafeFileError(f"{path} looks like a pickle", why="loading it could run code", mend="convert it to safetensors or JSON")
        else:
            yield path


def short_hash(text: str) -> str:
    """Returns 12 hex characters that stand for `text`, for names."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]
