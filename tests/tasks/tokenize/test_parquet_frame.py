"""A file put together around values is, to the byte, the one that pyarrow writes of them."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.tokenize.parquet_frame import LAYOUT_OF, framed


def by_pyarrow(columns: dict[str, npt.NDArray[Any]], metadata: dict[str, str]) -> bytes:
    arrays = {
        name: pa.array(values)
        if values.ndim == 1
        else pa.FixedSizeBinaryArray.from_buffers(pa.binary(values[0].nbytes), len(values), [None, pa.py_buffer(values)])
        for name, values in columns.items()
    }
    table = pa.Table.from_arrays(list(arrays.values()), schema=pa.schema([pa.field(name, one.type, nullable=False) for name, one in arrays.items()]))
    sink = pa.BufferOutputStream()
    options: dict[str, Any] = {"use_dictionary": False, "write_statistics": False, "write_page_checksum": True, "store_schema": False}
    with pq.ParquetWriter(sink, table.schema, compression="none", data_page_size=1 << 31, max_rows_per_page=table.num_rows, **options) as writer:
        writer.write_table(table, row_group_size=table.num_rows)
        writer.add_key_value_metadata(metadata)
    return bytes(sink.getvalue())


def columns_of(*, rows: int, length: int, dtype: str, others: int) -> dict[str, npt.NDArray[Any]]:
    """A column of rows, and up to 15 others: numbers and bits in turns."""
    random = np.random.default_rng(rows * length)
    columns: dict[str, npt.NDArray[Any]] = {"ids": random.integers(0, 65_000, size=(rows, length)).astype(dtype)}
    for number in range(others):
        if number % 2:
            columns[f"marks{number}"] = random.integers(0, 255, size=(rows, -(-length // 8))).astype(np.uint8)
        else:
            columns[f"tokens{number}"] = random.integers(-length, length, size=rows, dtype=np.int32)
    return columns


@settings(max_examples=60)
@given(
    rows=st.integers(1, 3000),
    length=st.integers(1, 300),
    dtype=st.sampled_from(["<u2", "<u4"]),
    others=st.sampled_from([0, 0, 1, 2, 3, 13, 14, 15]),
    note=st.text(max_size=300).filter(lambda text: "\0" not in text),
)
def test_the_file_is_the_one_that_pyarrow_writes(rows: int, length: int, dtype: str, others: int, note: str) -> None:
    columns = columns_of(rows=rows, length=length, dtype=dtype, others=others)
    file = framed(columns, metadata={"headrace": note})
    content = b"".join(file.pieces)
    # the only thing that may differ once another version of pyarrow is installed
    expected = by_pyarrow(columns, {"headrace": note})
    written_by = pq.read_metadata(pa.BufferReader(expected)).created_by.encode()
    assert content == expected.replace(written_by, f"parquet-cpp-arrow version {LAYOUT_OF}".encode())
    for name, values in columns.items():
        assert content[file.offsets[name] : file.offsets[name] + values.nbytes] == values.tobytes()


def test_values_are_not_copied() -> None:
    rows = np.arange(4096, dtype="<u2").reshape(2, 2048)
    (_, _, values, _) = framed({"ids": rows}, metadata={}).pieces
    assert np.shares_memory(np.frombuffer(values, dtype=np.uint8), rows)
