"""What stands around values in a Parquet file: page headers and the footer, so that the values themselves are written from where they are.

A file of required columns, each in one uncompressed PLAIN page of one row group, is so little of the format that writing it takes a page of
code. pyarrow would copy all values three times on the way to the file, growing its buffers as it goes; a tenth of the CPU time of `tokenize`
went there. To the byte the file is what pyarrow 25 makes of the same columns with `write_page_checksum`, without statistics, dictionary and Arrow's
own schema; a test compares them. Format: https://github.com/apache/parquet-format (`parquet.thrift`), in Thrift's compact protocol.
"""

import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

_MAGIC = b"PAR1"
LAYOUT_OF = "25.0.1"
"""The version of pyarrow whose layout it is. A constant, so that bytes do not change with what is installed."""
_CREATED_BY = f"parquet-cpp-arrow version {LAYOUT_OF}"
"""Readers look here for the errors of known writers."""

_I32, _I64, _BINARY, _LIST, _STRUCT = 5, 6, 8, 9, 12
"""Types of the compact protocol."""
_INT32, _FIXED_LEN_BYTE_ARRAY = 1, 7
"""`Type` of the format."""
_PLAIN, _RLE = 0, 3
"""`Encoding`."""
_DATA_PAGE, _REQUIRED, _UNCOMPRESSED = 0, 0, 0
"""`PageType`, `FieldRepetitionType`, `CompressionCodec`."""


@dataclass(frozen=True)
class Framed:
    """A file in pieces."""

    pieces: tuple[bytes | memoryview, ...]
    """What the file consists of, in order. Values are views of the arrays."""
    offsets: Mapping[str, int]
    """First byte of each column's values in the file."""


def framed(columns: Mapping[str, npt.NDArray[Any]], *, metadata: Mapping[str, str]) -> Framed:
    """Returns a Parquet file of some columns.

    Args:
        columns: C-contiguous; int32 [R] becomes a column of INT32, what has two dimensions [R, …] one of FIXED_LEN_BYTE_ARRAY, a row each.
            Each less than 2 GiB.
        metadata: key-value metadata of the file.
    """
    num_rows = len(next(iter(columns.values())))
    pieces: list[bytes | memoryview] = [_MAGIC]
    offsets: dict[str, int] = {}
    chunks: list[bytes] = []
    position = start = len(_MAGIC)
    for name, values in columns.items():
        content = values.data.cast("B")
        header = _page_header(content, num_rows=num_rows)
        chunks.append(_column_chunk(name, values, offset=position, size=len(header) + len(content)))
        offsets[name] = position + len(header)
        position = offsets[name] + len(content)
        pieces += (header, content)
    size = _int(position - start)
    group = _struct((1, _LIST, _list(_STRUCT, chunks)), (2, _I64, size), (3, _I64, _int(num_rows)), (5, _I64, _int(start)), (6, _I64, size))
    footer = _struct(
        (1, _I32, _int(2)),
        (2, _LIST, _list(_STRUCT, [_root(len(columns)), *(_leaf(name, values) for name, values in columns.items())])),
        (3, _I64, _int(num_rows)),
        (4, _LIST, _list(_STRUCT, [group])),
        (5, _LIST, _list(_STRUCT, [_struct((1, _BINARY, _text(key)), (2, _BINARY, _text(value))) for key, value in metadata.items()])),
        (6, _BINARY, _text(_CREATED_BY)),
        (7, _LIST, _list(_STRUCT, [_struct((1, _STRUCT, _struct()))] * len(columns))),  # the order of values: the type's own
    )
    pieces.append(footer + struct.pack("<I", len(footer)) + _MAGIC)
    return Framed(tuple(pieces), offsets)


def _page_header(content: memoryview, *, num_rows: int) -> bytes:
    """`PageHeader` of a data page without levels."""
    size = _int(len(content))
    checksum = struct.unpack("<i", struct.pack("<I", zlib.crc32(content)))[0]
    page = ((1, _I32, _int(num_rows)), (2, _I32, _int(_PLAIN)), (3, _I32, _int(_RLE)), (4, _I32, _int(_RLE)), (5, _STRUCT, _struct()))
    return _struct((1, _I32, _int(_DATA_PAGE)), (2, _I32, size), (3, _I32, size), (4, _I32, _int(checksum)), (5, _STRUCT, _struct(*page)))


def _column_chunk(name: str, values: npt.NDArray[Any], *, offset: int, size: int) -> bytes:
    """`ColumnChunk`."""
    pages = _struct((1, _I32, _int(_DATA_PAGE)), (2, _I32, _int(_PLAIN)), (3, _I32, _int(1)))
    about = _struct(
        (1, _I32, _int(_type_of(values))),
        (2, _LIST, _list(_I32, [_int(_RLE), _int(_PLAIN)])),
        (3, _LIST, _list(_BINARY, [_text(name)])),
        (4, _I32, _int(_UNCOMPRESSED)),
        (5, _I64, _int(len(values))),
        (6, _I64, _int(size)),
        (7, _I64, _int(size)),
        (9, _I64, _int(offset)),
        (13, _LIST, _list(_STRUCT, [pages])),
    )
    return _struct((2, _I64, _int(0)), (3, _STRUCT, about))


def _root(num_columns: int) -> bytes:
    """`SchemaElement` of the whole."""
    return _struct((3, _I32, _int(_REQUIRED)), (4, _BINARY, _text("schema")), (5, _I32, _int(num_columns)))


def _leaf(name: str, values: npt.NDArray[Any]) -> bytes:
    """`SchemaElement` of a column."""
    length = ((2, _I32, _int(values[0].nbytes)),) if values.ndim > 1 else ()
    return _struct((1, _I32, _int(_type_of(values))), *length, (3, _I32, _int(_REQUIRED)), (4, _BINARY, _text(name)))


def _type_of(values: npt.NDArray[Any]) -> int:
    assert values.ndim > 1 or values.dtype == np.dtype("<i4"), values.dtype
    return _FIXED_LEN_BYTE_ARRAY if values.ndim > 1 else _INT32


# ---- Thrift's compact protocol --------------------------------------------------------------------------------------------


def _struct(*fields: tuple[int, int, bytes]) -> bytes:
    """A struct of (number, type, value); numbers ascend by less than 16."""
    encoded, last = bytearray(), 0
    for number, kind, value in fields:
        encoded.append((number - last) << 4 | kind)
        encoded += value
        last = number
    return bytes(encoded) + b"\0"


def _list(kind: int, items: Sequence[bytes]) -> bytes:
    head = bytes([len(items) << 4 | kind]) if len(items) < 15 else bytes([15 << 4 | kind]) + _varint(len(items))
    return head + b"".join(items)


def _text(value: str) -> bytes:
    content = value.encode()
    return _varint(len(content)) + content


def _int(value: int) -> bytes:
    """A signed number of up to 64 bits."""
    return _varint(value << 1 ^ value >> 63)


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
