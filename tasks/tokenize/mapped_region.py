"""Many files in one range of addresses, so that one gather reaches rows of all of them.

Gathering shard by shard costs Python some microseconds for every shard that a batch touches, which is more than the copying. Here a range is
reserved that holds all files, each beginning on a page of its own; a file is mapped to its place (`MAP_FIXED`) when it is first needed. That
takes address space, not memory, and no file descriptor stays open. The standard library's `mmap` cannot be told where to map, hence ctypes.
"""

import ctypes
import mmap
import os
import weakref
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_PROT_NONE, _MAP_FIXED, _MAP_NORESERVE = 0, 0x10, 0x4000
"""Of Linux's `mman.h`; the standard library has the others."""
_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)


class MappedRegion:
    """A reserved range of addresses with a place for each of some files. What is not mapped must not be read: the process would die."""

    def __init__(self, sizes: Sequence[int]) -> None:
        """Args: sizes: bytes of each file, at least one file. Raises OSError when there are not so many addresses."""
        pages = [-(-size // mmap.PAGESIZE) * mmap.PAGESIZE for size in sizes]
        self._sizes = tuple(sizes)
        self.begins: npt.NDArray[np.int64] = np.cumsum([0, *pages[:-1]], dtype=np.int64)
        """Where each file begins in `content`."""
        self._length = sum(pages)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        self._address = _mapped(None, self._length, protection=_PROT_NONE, flags=flags, descriptor=-1)
        weakref.finalize(self, _libc.munmap, self._address, self._length).atexit = False  # a thread may still read when the process ends
        self.content: npt.NDArray[np.uint8] = np.ctypeslib.as_array((ctypes.c_uint8 * self._length).from_address(self._address))
        """All of it, uint8. Does not keep the region alive."""

    def map(self, position: int, descriptor: int) -> npt.NDArray[np.uint8]:
        """Maps an open file to its place for reading, and returns its bytes. It must have the size that was stated."""
        begin, size = int(self.begins[position]), self._sizes[position]
        _mapped(self._address + begin, size, protection=mmap.PROT_READ, flags=mmap.MAP_SHARED | _MAP_FIXED, descriptor=descriptor)
        return self.content[begin : begin + size]

    def unmap(self, position: int) -> None:
        """Takes a file out; its place stays reserved."""
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE | _MAP_FIXED
        _mapped(self._address + int(self.begins[position]), self._sizes[position], protection=_PROT_NONE, flags=flags, descriptor=-1)


def _mapped(address: int | None, length: int, *, protection: int, flags: int, descriptor: int) -> int:
    """Returns the address of a new map. Raises OSError."""
    found: int | None = _libc.mmap(address, length, protection, flags, descriptor, 0)
    if found is None or found == _FAILED:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return found
