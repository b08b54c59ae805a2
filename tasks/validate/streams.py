"""A raw file as decompressed blocks, hashed while it is read: the bytes that are parsed are the bytes that are hashed, unless the file is damaged
and changes between two readings.

Memory: one raw block, one decompressed block and the decompressor's window, whatever the file's size.

What pyarrow had decompressed in a call that fails cannot be had from it. So a file that fails is decompressed once more from its start, for what had
not come yet: gzip by zlib, so that the zeros that tapes and block devices put behind a member can be passed over; zstd, up to twice, with its raw
bytes one by one where the damage is, so that a call decompresses one block of a frame at most.
"""

import contextlib
import io
import os
import stat
import zlib
from collections.abc import Callable, Iterator
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
"""Read size from pyarrow's decompressor, and so the most that is read a byte at a time where it failed; measured as fast as 1 MiB."""
_ZLIB_READ_BYTES = 1 << 16
"""Read size for zlib, which copies what is left of a read for every member and every piece."""
_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS
"""Both headers count, as they do for pyarrow."""
_Read = Callable[[int], bytes]
"""Returns the next bytes of a raw file, at most so many; none at the end."""


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
        data = self.read_at(self.bytes_read, size=size)
        self._state.update(data)
        self.bytes_read += len(data)
        return data

    def read_at(self, position: int, *, size: int) -> bytes:
        """Returns bytes from `position` on, at most `size`. They are not hashed."""
        try:
            return os.pread(self._descriptor, size, position)  # own position: `reopened` shares the descriptor's
        except OSError as error:
            raise _unreadable(self.path, error) from error

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

    def __init__(self, read: _Read) -> None:
        self.read = read

    def close(self) -> None:
        """Does nothing."""


def blocks(file: HashingFile, *, compression: Compression) -> Iterator[bytes]:
    """Yields the decompressed content in blocks of at most 1 MiB.

    Raises:
        DamagedStreamError: the content cannot be decompressed further; everything before that was yielded.
        InputError: the disk failed.
    """
    if compression != "none":
        yield from _gathered(_decompressed(file, compression=compression))
        return
    while block := file.read(_RAW_BLOCK_BYTES):
        yield block


def _gathered(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Yields pieces together, many at a time; before damage those that came before it."""
    held: list[bytes] = []
    size = 0
    try:
        for piece in pieces:
            held.append(piece)
            size += len(piece)
            if size >= _OUT_BLOCK_BYTES:
                yield b"".join(held)
                held, size = [], 0
    except DamagedStreamError:
        if size:
            yield b"".join(held)
        raise
    if size:
        yield b"".join(held)


def _decompressed(file: HashingFile, *, compression: Compression) -> Iterator[bytes]:
    """Yields the decompressed content. Raises: see `blocks`."""
    num_bytes = last = 0

    def read(size: int) -> bytes:
        nonlocal last
        last = file.bytes_read
        return file.read(size)

    stream = _stream(read, compression=compression)
    with contextlib.suppress(OSError):  # a failing disk is an InputError
        while piece := stream.read(_OUT_READ_BYTES):
            yield piece
            num_bytes += len(piece)
        return
    if compression == "gzip":
        yield from _behind(_gunzipped(_from_start(file)), start=num_bytes)
    else:
        yield from _slowly_decompressed(file, start=num_bytes, damaged_from=last)


def _stream(read: _Read, *, compression: Compression) -> pa.CompressedInputStream:
    return pa.CompressedInputStream(pa.PythonFile(_Lent(read), mode="r"), compression)


def _from_start(file: HashingFile, *, slow_from: int | None = None) -> _Read:
    """Returns what reads a file anew, beside its own position and hash; from byte `slow_from` on a byte at a time."""
    position = 0

    def read(size: int) -> bytes:
        nonlocal position
        if slow_from is not None:
            size = min(size, max(slow_from - position, 1))
        data = file.read_at(position, size=size)
        position += len(data)
        return data

    return read


def _behind(pieces: Iterator[bytes], *, start: int) -> Iterator[bytes]:
    """Yields content from byte `start`."""
    for piece in pieces:
        if len(piece) > start:
            yield piece[start:]
        start = max(0, start - len(piece))


def _gunzipped(read: _Read) -> Iterator[bytes]:
    """Yields the content of a gzip file. Zeros behind a member are passed over, whatever follows them. Raises: see `blocks`."""
    member = zlib.decompressobj(_GZIP_OR_ZLIB)
    while data := read(_ZLIB_READ_BYTES):
        while data:
            if member.eof:
                data = data.lstrip(b"\0")
                if not data:
                    break
                member = zlib.decompressobj(_GZIP_OR_ZLIB)
            yield from _inflated(member, data)
            data = member.unused_data if member.eof else member.unconsumed_tail
    if not member.eof:
        yield from _inflated(member, b"")  # what did not fit into the last piece
        raise DamagedStreamError("the file ends within a gzip member", truncated=True)


def _inflated(member: "zlib._Decompress", data: bytes) -> Iterator[bytes]:
    """Yields what some bytes of a member give, a block at most. Raises: see `blocks`."""
    before = member.copy()
    try:
        piece = member.decompress(data, _OUT_BLOCK_BYTES)
    except zlib.error as error:
        with contextlib.suppress(zlib.error):  # again, a byte at a time, until it fails: the damage may be in the checksum alone
            for index in range(len(data)):
                yield before.decompress(data[index : index + 1])
        raise DamagedStreamError(str(error), truncated=False) from error
    yield piece


def _slowly_decompressed(file: HashingFile, *, start: int, damaged_from: int) -> Iterator[bytes]:
    """Yields the content of a damaged zstd file from byte `start`, all of it that can be had. Raises: see `blocks`.

    Args:
        file: the raw file.
        start: bytes of the content that came before.
        damaged_from: no raw byte before this one is to blame.
    """
    detail = ""
    for size in (_OUT_READ_BYTES, 1):  # what a read that fails has gathered is lost, so the last of it is read a byte at a time
        stream = _stream(_from_start(file, slow_from=damaged_from), compression="zstd")
        try:
            left = start
            while left and (passed := stream.read(min(left, _OUT_READ_BYTES))):
                left -= len(passed)
            while piece := stream.read(size):
                yield piece
                start += len(piece)
            return
        except OSError as error:
            detail = str(error)
    raise DamagedStreamError(detail, truncated="Truncated" in detail)


def _unreadable(path: Path, error: OSError) -> InputError:
    mend = "make it readable, or leave it out with `exclude`; then run again"
    return InputError(f"{path}: cannot be read", why=error.strerror or str(error), mend=mend)
