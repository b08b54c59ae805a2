"""A copy of a rank's fragments in memory that its writer process shares: what is written while training goes on.

Forward and backward passes only read what is copied, so the copy is made beside them; it must be whole before the next update.

The memory is anonymous (no name in any file system: nothing is left behind, whoever dies), allocated once, and its pages are mapped
in the background before the first copy, which would otherwise wait for the kernel at every page.
"""

import contextlib
import ctypes
import mmap
import os
import tempfile
import threading
import time
from collections.abc import Callable, Sequence

import torch

from cluster.durable import ALIGNMENT
from cluster.environment import BUFFER
from schemas.checkpoint import Fragment, Slot
from tasks.train.checkpoint.fragments import LocalFragment
from tasks.train.checkpoint.stream import prefault

_FP32_BYTES = 4


class SharedBuffer:
    """Page-aligned memory that another process can map through `descriptor`."""

    def __init__(self, num_bytes: int) -> None:
        """Args: num_bytes: rounded up to whole pages, at least one. No page is allocated yet, but by the start before (`cluster.agent.buffers`)."""
        self.size = max(1, -(-num_bytes // ALIGNMENT)) * ALIGNMENT
        inherited = os.environ.get(BUFFER)
        self.descriptor = _anonymous_file() if inherited is None else os.open(inherited, os.O_RDWR | os.O_CLOEXEC)
        os.ftruncate(self.descriptor, self.size)
        self.memory = mmap.mmap(self.descriptor, self.size)


class Snapshot:
    """One contiguous copy of a rank's fragments: `fragments` says what lies where, fp32 little-endian."""

    def __init__(self, fragments: Sequence[LocalFragment]) -> None:
        """Args: fragments: what this rank owns; live views."""
        pieces: list[tuple[LocalFragment, Slot]] = [(fragment, slot) for fragment in fragments for slot in fragment.slots]
        self.num_bytes = sum(fragment.count for fragment, _ in pieces) * _FP32_BYTES
        """Bytes that are written."""
        self.fragments = _index(pieces)
        self.buffer = SharedBuffer(self.num_bytes)
        self._copies = self._pair(pieces)
        self._on_device = any(source.device.type == "cuda" for _, source in self._copies)
        self.copy_s = 0.0
        """Seconds of the newest copy."""
        self._prefaulting: threading.Thread | None = None
        self._copying: threading.Thread | None = None
        self._trouble: BaseException | None = None

    def prepare(self) -> None:
        """Lets a thread allocate and map the pages. Without it the first snapshot takes longer."""
        if self._prefaulting is None:
            self._prefaulting = threading.Thread(target=self._map_pages, name="snapshot pages", daemon=True)
            self._prefaulting.start()

    def begin(self, then: Callable[[], None]) -> None:
        """Starts copying the present values, in a thread: nothing may change them before `finish`.

        Args:
            then: called in that thread once the copy is whole.
        """
        self.prepare()
        stream = torch.cuda.Stream() if self._on_device else None  # type: ignore[no-untyped-call]
        if stream is not None:
            stream.wait_stream(torch.cuda.current_stream())
        self._copying = threading.Thread(target=self._copy, args=(stream, then), name="snapshot", daemon=True)
        self._copying.start()

    def finish(self) -> bool:
        """Waits until the copy is whole; returns whether there was one under way. Raises what went wrong with it."""
        if self._copying is None:
            return False
        self._copying.join()
        self._copying = None
        if self._trouble is not None:
            raise self._trouble
        return True

    def _copy(self, stream: torch.cuda.Stream | None, then: Callable[[], None]) -> None:
        try:
            assert self._prefaulting is not None
            self._prefaulting.join()
            began = time.perf_counter()
            with torch.cuda.stream(stream) if stream is not None else contextlib.nullcontext():
                for target, source in self._copies:
                    _copy_flat(target, source)
            if stream is not None:
                stream.synchronize()
            self.copy_s = time.perf_counter() - began
            then()
        except BaseException as error:  # noqa: BLE001  # raised by `finish`, in the thread that trains
            self._trouble = error

    def _pair(self, pieces: Sequence[tuple[LocalFragment, Slot]]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        whole, position, pairs = torch.frombuffer(self.buffer.memory, dtype=torch.float32), 0, []
        for fragment, slot in pieces:
            pairs.append((whole[position : position + fragment.count], fragment.slots[slot]))
            position += fragment.count
        return pairs

    def _map_pages(self) -> None:
        prefault(self.buffer.memory)
        if self._on_device:  # pinned, so that the GPU copies by itself
            address = ctypes.addressof(ctypes.c_char.from_buffer(self.buffer.memory))
            torch.cuda.check_error(torch.cuda.cudart().cudaHostRegister(address, self.buffer.size, 0))  # type: ignore[no-untyped-call]


def _copy_flat(target: torch.Tensor, source: torch.Tensor) -> None:
    """Copies one flat fp32 tensor. In CPU memory by one plain memcpy: torch would start a team of threads of its own for this thread."""
    if source.device.type == "cpu" and source.is_contiguous():
        ctypes.memmove(target.data_ptr(), source.data_ptr(), source.nbytes)  # lets go of the interpreter's lock
    else:
        target.copy_(source, non_blocking=True)


def _index(pieces: Sequence[tuple[LocalFragment, Slot]]) -> tuple[Fragment, ...]:
    index, offset = [], 0
    for fragment, slot in pieces:
        index.append(Fragment(name=fragment.name, slot=slot, start=fragment.start, count=fragment.count, byte_offset=offset))
        offset += fragment.count * _FP32_BYTES
    return tuple(index)


def _anonymous_file() -> int:
    """Returns a descriptor of memory without a name; of an unlinked file where the system has none."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("headrace-snapshot", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
