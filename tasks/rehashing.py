"""Hashes the files of artifacts again: where they lie, or as they come from object storage. Trusts no cache."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from cluster.layout import BOOKKEEPING
from cluster.remote_files import RemoteFiles
from cluster.s3_storage import S3Storage
from cluster.storage import TEMPORARY_PREFIX, Storage, hash_file, path_below
from schemas.artifact import FileEntry
from schemas.errors import HeadraceError, InputError, UnsafeFileError
from schemas.frozen import Frozen
from schemas.manifest import InputFile
from schemas.source_url import is_remote
from tasks.store import Store

_AT_A_TIME = 4
"""Objects that are read at once."""
MADE_BY = (*BOOKKEEPING, "quarantine")
"""Folders of an artifact that say how it was made."""


class VerifiedArtifact(Frozen):
    """One artifact that was looked at."""

    key: str
    """Its folder."""
    files: int
    """Files hashed."""
    bytes: int
    """Bytes hashed."""


@dataclass
class Walk:
    """A verification under way."""

    store: Store
    findings: list[str] = field(default_factory=list)
    artifacts: list[VerifiedArtifact] = field(default_factory=list)

    def hashed_raw(self, key: str, files: Iterable[InputFile]) -> None:
        """Hashes raw files, where they lie or as they come from their servers, and books them under `key`."""
        remote, found = RemoteFiles(), tuple(files)
        with ThreadPoolExecutor(_AT_A_TIME, thread_name_prefix="verify") as pool:
            for findings in pool.map(lambda file: _raw_damage(remote, file), found):
                self.findings.extend(findings)
        self.artifacts.append(VerifiedArtifact(key=key, files=len(found), bytes=sum(file.size for file in found)))

    def hashed(self, key: str, entries: Iterable[tuple[Path, FileEntry]]) -> None:
        """Hashes files against their entries and books them under `key`."""
        files, total = 0, 0
        for path, entry in entries:
            files, total = files + 1, total + entry.size
            self.findings.extend(_damage(path, entry))
        self.artifacts.append(VerifiedArtifact(key=key, files=files, bytes=total))

    def located(self, folder: Path, entries: Iterable[FileEntry]) -> Iterator[tuple[Path, FileEntry]]:
        """Yields where each entry lies; what a link leads out of `folder` is a finding, and is not opened."""
        for entry in entries:
            try:
                yield path_below(folder, entry.path), entry
            except UnsafeFileError as error:
                self.findings.append(error.what)

    def hashed_below(self, key: str, entries: Iterable[FileEntry]) -> None:
        """Hashes files in a folder of storage, where it lies or as it comes from there, and books them under `key`. Raises InputError."""
        storage = self.store.storage
        try:
            folder = storage.local_path(key)
        except UnsafeFileError as error:
            self.findings.append(error.what)
            return
        if folder is not None:
            self.hashed(key, self.located(folder, entries))
            return
        if not isinstance(storage, S3Storage):
            raise InputError(f"{storage.url} cannot be hashed", mend="verify where the storage is mounted")
        found = tuple(entries)
        with ThreadPoolExecutor(_AT_A_TIME, thread_name_prefix="verify") as pool:
            for findings in pool.map(lambda entry: _stored_damage(storage, key, entry), found):
                self.findings.extend(findings)
        self.artifacts.append(VerifiedArtifact(key=key, files=len(found), bytes=sum(entry.size for entry in found)))

    def names_below(self, key: str) -> Iterator[str]:
        """Yields the names of all files of an artifact that may be its content, relative to its folder `key`."""
        folder = self.store.storage.local_path(key)
        yield from files_below(folder) if folder is not None else _stored_below(self.store.storage, key)

    def has_folder(self, key: str) -> bool:
        """Whether there is anything in a folder of storage, if only a link."""
        try:
            folder = self.store.storage.local_path(key)
        except UnsafeFileError:
            return True
        return folder.exists() if folder is not None else bool(self.store.storage.names(key))


def files_below(folder: Path) -> Iterator[str]:
    """Yields the names of all files below a local folder, but for unfinished ones."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.startswith(TEMPORARY_PREFIX):
            yield path.relative_to(folder).as_posix()


def _stored_below(storage: Storage, key: str, *, within: str = "") -> Iterator[str]:
    """Yields the names of all objects below a folder of storage, but for those of how an artifact was made."""
    for name in storage.names(f"{key}/{within}".rstrip("/")):
        path = f"{within}{name}"
        if path in MADE_BY:
            continue
        if storage.exists(f"{key}/{path}"):
            yield path
        else:
            yield from _stored_below(storage, key, within=f"{path}/")


def _stored_damage(storage: S3Storage, key: str, entry: FileEntry) -> tuple[str, ...]:
    """Returns what is wrong with one file in object storage, naming it."""
    name, place = f"{key}/{entry.path}", f"{storage.url}/{key}/{entry.path}"
    try:
        size = storage.size(name)
        if size != entry.size:
            return (f"{place}: {size} bytes, {entry.size} were committed",)
        return () if storage.hash(name) == entry.xxh3 else (f"{place}: its content is not what was committed",)
    except FileNotFoundError:
        return (f"{place}: missing",)


def _raw_damage(remote: RemoteFiles, file: InputFile) -> tuple[str, ...]:
    """Returns what is wrong with one raw file, naming it."""
    if not is_remote(file.path):
        return tuple(_damage(Path(file.path), file))
    try:
        fetched = remote.fetch(file.path)
    except HeadraceError as error:
        return (error.what,)
    return () if fetched.xxh3 == file.xxh3 else (f"{file.path}: its content is not what was committed",)


def _damage(path: Path, entry: FileEntry | InputFile) -> Iterator[str]:
    """Yields what is wrong with one file, naming it."""
    try:
        size = path.lstat().st_size
        if size != entry.size:
            yield f"{path}: {size} bytes, {entry.size} were committed"
        elif hash_file(path) != entry.xxh3:
            yield f"{path}: its content is not what was committed"
    except FileNotFoundError:
        yield f"{path}: missing"
    except UnsafeFileError as error:
        yield error.what
    except OSError as error:
        yield f"{path}: cannot be read ({error.strerror})"
