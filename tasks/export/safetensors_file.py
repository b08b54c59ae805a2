"""A safetensors file written front to back: the header from names and shapes alone, then the tensors' bytes as they come.

The library's own writer wants every tensor in memory at once. Format: https://huggingface.co/docs/safetensors (8 bytes
little-endian header length, JSON header padded with spaces to 8 bytes, then the data, contiguous, in header order).
Imports neither torch nor safetensors.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import BinaryIO

_ALIGNMENT = 8


class TensorType(StrEnum):
    """Number format of stored tensors; the value is safetensors' own word."""

    FP32 = "F32"
    BF16 = "BF16"
    FP16 = "F16"

    @property
    def itemsize(self) -> int:
        """Bytes per element."""
        return 4 if self is TensorType.FP32 else 2


@dataclass(frozen=True)
class TensorSpec:
    """A tensor to be written."""

    name: str
    shape: tuple[int, ...]

    @property
    def num_elements(self) -> int:
        """Product of the shape; 1 for a scalar."""
        return math.prod(self.shape)


def header_of(tensors: Sequence[TensorSpec], *, dtype: TensorType) -> bytes:
    """Returns the file's first bytes: length, JSON header and padding. The tensors follow it in the given order, without gaps."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        end = offset + tensor.num_elements * dtype.itemsize
        header[tensor.name] = {"dtype": dtype.value, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


class SafetensorsWriter:
    """Writes one file. Call `write` with the bytes of the tensors, in header order, in pieces of any size; then `finish`."""

    def __init__(self, file: BinaryIO, *, tensors: Sequence[TensorSpec], dtype: TensorType) -> None:
        """Args: file: open for writing, at its start. tensors: all of the file's tensors, in order."""
        self._file = file
        self._left = sum(tensor.num_elements for tensor in tensors) * dtype.itemsize
        file.write(header_of(tensors, dtype=dtype))

    def write(self, data: memoryview) -> None:
        """Appends tensor bytes (little-endian)."""
        size = data.nbytes
        assert size <= self._left, f"{size} bytes offered, {self._left} announced in the header"
        self._left -= size
        self._file.write(data)

    def finish(self) -> None:
        """Asserts that every announced byte was written."""
        assert self._left == 0, f"{self._left} bytes announced in the header were not written"
