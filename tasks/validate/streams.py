"""A raw file as decompressed blocks, hashed while it is read: the bytes that are parsed are the bytes that are hashed.

Memory: one raw block, one decompressed block and the decompressor's window, whatever the file's size.
"""

import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import pyarrow as pa
import xxhash

from schemas.errors import InputError
from tasks.validate.sources import Compression

_RAW_BLOCK_BYTES = 1 << 20
_OUT_BLOCK_BYTES = 1 << 18
_OUT_READ_BYTES = 1 << 12
"""Read size from a decompressor. What is decompressed in a failing read is lost, so small reads rescue all but 4 KiB; measured as fast as 1 MiB."""


class DamagedStreamError(Exception):
    """A compressed file cannot be decompressed further: part of reading, caught by the readers.

    Args:
        detail: what the decompressor said.
        truncated: whether the file just ends too early.
    """

    def __init__(self, detail: str, *, truncated: bool) -> None:
        super().__init__(detail)
        self.detail, self.truncated = detail, truncated
        self.tail = b""
        """Start of the last, incomplete record."""


class HashingFile:
    """A raw file that hashes what is read from it, in order. Raises InputError when the disk fails, so that it is told from damaged content."""

    def __init__(self, path: Path) -> None:
        """Args: path: a regular file. Raises InputError when it cannot be opened or is something else."""
        self.path = path
        self.bytes_read = 0
        self._state = xxhash.xxh3_128()
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise _unreadable(path, error) from error
        self._stamp = self._status()
        if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
            os.close(self._descriptor)
            raise InputError(f"{path}: is no longer a regular file", mend="run again: the corpus is planned anew")

    def read(self, size: int) -> bytes:
        """Returns the next bytes, at most `size`; none at the end."""
        try:
            data = os.pread(self._descriptor, size, self.bytes_read)  # own position: `reopened` shares the descriptor's
        except OSError as error:
            raise _unreadable(self.path, error) from error
        self._state.update(data)
        self.bytes_read += len(data)
        return data

    def digest(self) -> str:
        """Reads what is left and returns the hash of the whole file, hex."""
        while self.read(_RAW_BLOCK_BYTES):
            pass
        return self._state.hexdigest()

    def changed(self) -> bool:
        """Whether the file was written to since it was opened, as far as its time stamps tell."""
        return self._status() != self._stamp

    def reopened(self) -> io.BufferedReader:
        """Returns the same file (the same inode, whatever happens to its name) from its start, for readers that jump. It is not hashed."""
        descriptor = os.dup(self._descriptor)
        os.lseek(descriptor, 0, os.SEEK_SET)
        return open(descriptor, "rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.close(self._descriptor)

    def _status(self) -> tuple[int, int]:
        status = os.fstat(self._descriptor)
        return status.st_size, status.st_mtime_ns


class _Lent:
    """A file for pyarrow to read from, which closes what it is given when it is done; here that is somebody else's."""

    closed = False

    def __init__(self, file: HashingFile) -> None:
        self.read = file.read

    def close(self) -> None:
        """Does nothing."""


def blocks(file: HashingFile, *, compression: Compression) -> Iterator[bytes]:
    """Yields the decompressed content in blocks of at most 1 MiB.

    Raises:
        DamagedStreamError: the content cannot be decompressed further; everything before that was yielded.
        InputError: the disk failed.
    """
    if compression == "none":
        while block := file.read(_RAW_BLOCK_BYTES):
            yield block
        return
    stream = pa.CompressedInputStream(pa.PythonFile(_Lent(file), mode="r"), compression)
    pieces: list[bytes] = []
    size = 0
    while True:
        try:
            piece = stream.read(_OUT_READ_BYTES)
        except OSError as error:
            if pieces:
                yield b"".join(pieces)
            detail = str(error)
            raise DamagedStreamError(detail, truncated="Truncated" in detail) from error
        if not piece:
            break
        pieces.append(piece)
        size += len(piece)
        if size >= _OUT_BLOCK_BYTES:
            yield b"".join(pieces)
            pieces, size = [], 0
    if pieces:
        yield b"".join(pieces)


def _unreadable(path: Path, error: OSError) -> InputError:
    mend = "make it readable, or leave it out with `exclude`; then run again"
    return InputError(f"{path}: cannot be read", why=error.strerror or str(error), mend=mend)
