"""Writing that survives a power cut: folders, small files, and streams of blocks past the page cache. Imports nothing heavy.

A process that only writes (the checkpoint writer of each rank) starts in milliseconds, so this module knows no pydantic.
"""

import contextlib
import errno
import fcntl
import os
import stat
import threading
from pathlib import Path

import xxhash

ALIGNMENT = 4096
"""What addresses, offsets and lengths of direct writes are multiples of: a page, and the largest logical block of disks in use."""
_BLOCK_BYTES = 16 << 20
"""One direct write. Larger ones gain nothing, smaller ones wait for the disk more often."""
_CACHED_BYTES = 1 << 20
"""One write through the page cache. Linux (6.18, ext4) answers a larger one with larger pages, which may have lain unused for so long that the host
of a virtual machine has taken them back: 134 MB took 0.05 s of CPU time in such writes, and 0.2 to 0.3 s in writes of 16 MiB."""


def make_folder(path: Path) -> None:
    """Creates `path` and its parents, durably: an fsync of each parent that got a new entry. In a shared folder it is shared (`share`)."""
    if path.is_dir():
        return
    make_folder(path.parent)
    with contextlib.suppress(FileExistsError):
        path.mkdir()
        share(path)
        sync_folder(path.parent)


def share(path: Path) -> None:
    """Gives a file or folder that the calling process has just created the rights of its folder's group, whatever this user's umask.

    Only where the folder is shared: setgid, and writable for its group. Elsewhere the umask stands.
    """
    if _is_shared(path.parent):
        mode = stat.S_IMODE(path.stat().st_mode)
        wanted = mode | (0o070 if path.is_dir() else 0o060)
        if mode != wanted:
            path.chmod(wanted)


def _is_shared(folder: Path) -> bool:
    mode = folder.stat().st_mode
    return bool(mode & stat.S_ISGID and mode & stat.S_IWGRP)


def sync_folder(path: Path) -> None:
    """Makes the entries of a folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, *pieces: bytes | memoryview) -> None:
    """Creates `path` with all pieces, one after the other, and fsyncs it.

    Raises:
        OSError: FileExistsError, and any other also for a failed fsync: never trust such a file.
    """
    descriptor = _create(path)
    try:
        share(path)
        for piece in pieces:
            view = memoryview(piece)
            while view:
                view = view[os.write(descriptor, view[:_CACHED_BYTES]) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def stream_durably(path: Path, buffer: memoryview, *, size: int) -> str:
    """Creates `path` with the first `size` bytes of `buffer`, fsyncs it, and returns their xxh3-128, hex.

    Blocks go to the disk directly, past the page cache, where the file system allows it: at the disk's own speed, and without copying
    them through memory. The hash is of the bytes in memory and taken meanwhile, so what the disk did to them is found when they are read.

    Args:
        path: a new file.
        buffer: page-aligned memory, a multiple of `ALIGNMENT` long; what follows the first `size` bytes is not kept.
        size: bytes of the file.

    Raises:
        OSError: also for a failed fsync. What there is of the file then is worth nothing.
    """
    hashing = _Hashing(buffer[:size])
    hashing.start()
    try:
        descriptor = _create(path, flags=getattr(os, "O_DIRECT", 0))
        try:
            share(path)
            _write_blocks(descriptor, buffer, size=size)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    finally:
        hashing.join()
    return hashing.state.hexdigest()


def _create(path: Path, *, flags: int = 0) -> int:
    """Returns a descriptor of the new file `path`, open for writing; without `flags` where the file system knows no direct writes."""
    create = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(path, create | flags, 0o666)
    except OSError as error:
        if error.errno != errno.EINVAL or not flags:
            raise
    path.unlink(missing_ok=True)  # Linux creates the file before it looks at the flag
    return os.open(path, create, 0o666)


def _write_blocks(descriptor: int, buffer: memoryview, *, size: int) -> None:
    """Writes the first `size` bytes. Direct writes are of whole pages; what the last one has too much is cut off."""
    end, position = -(-size // ALIGNMENT) * ALIGNMENT, 0
    while position < end:
        try:
            position += os.pwrite(descriptor, buffer[position : min(position + _BLOCK_BYTES, end)], position)
        except OSError as error:
            if error.errno != errno.EINVAL or not _leave_direct_mode(descriptor):
                raise
    if end != size:
        os.ftruncate(descriptor, size)


def _leave_direct_mode(descriptor: int) -> bool:
    """Lets further writes go through the page cache; returns whether they did not before. Some file systems refuse only the write itself."""
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    direct = getattr(os, "O_DIRECT", 0)
    fcntl.fcntl(descriptor, fcntl.F_SETFL, flags & ~direct)
    return bool(flags & direct)


class _Hashing(threading.Thread):
    """Hashes beside the writing: xxhash lets go of the interpreter's lock."""

    def __init__(self, data: memoryview) -> None:
        super().__init__(name="hashing", daemon=True)
        self.state = xxhash.xxh3_128()
        self._data = data

    def run(self) -> None:
        for start in range(0, len(self._data), _BLOCK_BYTES):
            self.state.update(self._data[start : start + _BLOCK_BYTES])
