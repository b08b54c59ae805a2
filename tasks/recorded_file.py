"""Files that a record names, read where they lie: nothing of them is used before size and hash are those of their entry.

The control half hands the entries over with the job, so a node that sees other bytes than the record was made from (a stale cache, another
mount, a damaged disk) finds that out by itself. Imports nothing heavy: ranks and items use it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import xxhash

from cluster.storage import Storage, hash_file, path_below
from schemas.artifact import ArtifactRecord, FileEntry
from schemas.errors import VerificationError

_T = TypeVar("_T")
_MEND = "headrace verify lists every damaged file; run again with --from and the stage that made it"


def entry_of(record: ArtifactRecord, path: str) -> FileEntry:
    """Returns the entry of one of an artifact's files. Raises VerificationError when its record names no such file."""
    for entry in record.files:
        if entry.path == path:
            return entry
    raise VerificationError((f"{path}: not in the record",), subject=record.key)


def stored_entry(storage: Storage, key: str, *, path: str) -> FileEntry:
    """Returns the entry, under the name `path`, of a small object that no record names. Raises FileNotFoundError."""
    data = storage.read(key)
    return FileEntry(path=path, size=len(data), xxh3=xxhash.xxh3_128(data).hexdigest())


def verified_object(storage: Storage, key: str, entry: FileEntry) -> bytes:
    """Returns the content of a recorded file of the artifact `key`, from whatever storage. For small files.

    Raises:
        VerificationError: it is missing, or its bytes are not those that were recorded.
    """
    try:
        data = storage.read(f"{key}/{entry.path}")
    except FileNotFoundError as error:
        raise VerificationError((f"{key}/{entry.path}: missing",), subject=key, mend=_MEND) from error
    _compare(Path(key, entry.path), xxhash.xxh3_128(data).hexdigest(), entry=entry, subject=key)
    return data


def verified_bytes(folder: Path, entry: FileEntry, *, subject: str) -> bytes:
    """Returns the content of a recorded file: the very bytes that were hashed. For files that fit into memory.

    Raises:
        VerificationError: the file is missing, or its bytes are not those that were recorded.
        UnsafeFileError: a link is on the way to it.
    """
    path = _of_size(folder, entry, subject=subject)
    data = _present(path.read_bytes, path, subject=subject)
    _compare(path, xxhash.xxh3_128(data).hexdigest(), entry=entry, subject=subject)
    return data


def verified_path(folder: Path, entry: FileEntry, *, subject: str) -> Path:
    """Returns the path of a recorded file after checking size and hash. For files that a library opens by itself, at once.

    Raises:
        VerificationError: the file is missing, or its bytes are not those that were recorded.
        UnsafeFileError: a link is on the way to it.
    """
    path = _of_size(folder, entry, subject=subject)
    _compare(path, _present(lambda: hash_file(path), path, subject=subject), entry=entry, subject=subject)
    return path


def _of_size(folder: Path, entry: FileEntry, *, subject: str) -> Path:
    """Returns the file's path; one of another size is never opened (a pipe, say, which would never end)."""
    path = path_below(folder, entry.path)
    size = _present(path.stat, path, subject=subject).st_size
    if size != entry.size:
        raise VerificationError((f"{path}: {size:,} bytes, the record says {entry.size:,}",), subject=subject, mend=_MEND)
    return path


def _present(ask: Callable[[], _T], path: Path, *, subject: str) -> _T:
    """Returns what `ask` returns. Absence is a finding; any other refusal of the file system is not: nothing is known then."""
    try:
        return ask()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise VerificationError((f"{path}: {error.strerror}",), subject=subject, mend=_MEND) from error


def _compare(path: Path, found: str, *, entry: FileEntry, subject: str) -> None:
    if found != entry.xxh3:
        raise VerificationError((f"{path}: xxh3 {found}, the record says {entry.xxh3}; the file is damaged",), subject=subject, mend=_MEND)
