"""Bytes to records: every kind of file, and every kind of damage."""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.corpus_config import RulesConfig, SourceConfig
from tasks.validate import lines, parquet_reader, readers
from tasks.validate.problem import Reason
from tasks.validate.readers import Record, read_records, reading_of
from tasks.validate.streams import HashingFile

BOM = b"\xef\xbb\xbf"


def read(path: Path, *, max_chars: int = 10_000_000, **source: Any) -> list[Record]:
    config = SourceConfig.model_validate({"path": str(path)} | source)
    with HashingFile(path) as file:
        return list(read_records(file, reading_of(str(path), config, rules=RulesConfig(max_chars=max_chars))))


def outline(records: list[Record]) -> list[tuple[int, Any]]:
    """(row, fields or reason) of each record."""
    return [(record.row, record.fields if record.problem is None else record.problem.reason) for record in records]


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    stream = pa.CompressedOutputStream(sink, "zstd")
    stream.write(data)
    stream.close()
    return bytes(sink.getvalue())


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b'{"text":"a"}\n{"text":"b"}\n', [(1, {"text": "a"}), (2, {"text": "b"})]),
        (b'{"text":"a"}\r\n{"text":"b"}', [(1, {"text": "a"}), (2, {"text": "b"})]),
        (BOM + b'{"text":"a"}\n', [(1, {"text": "a"})]),
        (b'{"text":"\xc3\xa9"}\n', [(1, {"text": "é"})]),
        (b'{"text":"\xe9"}\n{"text":"b"}\n', [(1, Reason.INVALID_UTF8), (2, {"text": "b"})]),
        (b'{"text":"a"}\n\xff\xfe{\x00}\x00\n', [(1, {"text": "a"}), (2, Reason.INVALID_UTF8)]),
        (b'{"text":"a"\n{"text":"b"}\n', [(1, Reason.INVALID_JSON), (2, {"text": "b"})]),
        (b'{"text":"\\ud800"}\n', [(1, Reason.INVALID_JSON)]),
        (b'{"text":NaN}\n', [(1, Reason.INVALID_JSON)]),
        (b"[1,2]\n7\nnull\n" + b'"text"\n', [(row, Reason.NOT_AN_OBJECT) for row in (1, 2, 3, 4)]),
        (b'\n{"text":"a"}\n  \n', [(1, Reason.BLANK_LINE), (2, {"text": "a"}), (3, Reason.BLANK_LINE)]),
        (b"[" * 100_000 + b"\n", [(1, Reason.INVALID_JSON)]),
        (b"", []),
        (BOM, []),
    ],
)
def test_json_lines(tmp_path: Path, data: bytes, expected: list[tuple[int, Any]]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(data)
    assert outline(read(path)) == expected


@pytest.mark.parametrize("block_bytes", [1, 2, 3, 7, 64])
def test_lines_are_the_same_whatever_the_block_size(tmp_path: Path, block_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text":"first"}\n\n{"text":"second, longer"}\nbroken\n{"text":"last"}')
    whole = outline(read(path))
    monkeypatch.setattr("tasks.validate.streams._RAW_BLOCK_BYTES", block_bytes)
    assert outline(read(path)) == whole
    assert len(whole) == 5


def test_an_endless_line_is_passed_over_without_being_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "LINE_LIMIT_BYTES", 10_000)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text":"a"}\n{"text":"' + b"x" * 3_000_000 + b'"}\n{"text":"b"}\n' + b"y" * 2_000_000)
    records = read(path)
    assert outline(records) == [(1, {"text": "a"}), (2, Reason.LINE_TOO_LONG), (3, {"text": "b"}), (4, Reason.LINE_TOO_LONG)]
    assert records[1].problem is not None
    assert "3,000,011 bytes" in records[1].problem.detail
    assert records[1].raw is not None
    assert len(records[1].raw) <= 1024


@pytest.mark.parametrize(("ending", "compress"), [(".gz", gzip.compress), (".zst", zstd)])
class TestCompressed:
    """Compressed files of lines. 300 KB of records, several blocks of zstd, so that a cut falls within a record."""

    def make(self, tmp_path: Path, ending: str, data: bytes) -> Path:
        path = tmp_path / f"a.jsonl{ending}"
        path.write_bytes(data)
        return path

    def content(self) -> bytes:
        return b"".join(b'{"text":"document %d %d"}\n' % (i, i * i * 7919 % 100_003) for i in range(12_000))

    def test_is_read_like_the_plain_file_also_in_several_members(self, tmp_path: Path, ending: str, compress: Callable[[bytes], bytes]) -> None:
        content = self.content()
        path = self.make(tmp_path, ending, compress(content[:7001]) + compress(content[7001:]))
        records = read(path)
        assert [record.row for record in records] == list(range(1, 12_001))
        assert all(record.problem is None for record in records)

    def test_truncated_yields_what_came_before_and_one_record_for_the_damage(
        self, tmp_path: Path, ending: str, compress: Callable[[bytes], bytes]
    ) -> None:
        data = compress(self.content())
        *good, last = read(self.make(tmp_path, ending, data[: len(data) * 2 // 3]))
        assert len(good) > 3000
        assert [record.fields for record in good] == [record.fields for record in read(self.make(tmp_path, ending, data))[: len(good)]]
        assert last.problem is not None
        assert (last.row, last.problem.reason) == (len(good) + 1, Reason.TRUNCATED_FILE)

    def test_damaged_yields_one_record_for_the_damage(self, tmp_path: Path, ending: str, compress: Callable[[bytes], bytes]) -> None:
        for data in (b"this is not compressed at all", compress(self.content()) + b"garbage"):
            last = read(self.make(tmp_path, ending, data))[-1]
            assert last.problem is not None
            assert last.problem.reason is Reason.DAMAGED_FILE

    def test_empty_has_no_record(self, tmp_path: Path, ending: str, compress: Callable[[bytes], bytes]) -> None:
        assert read(self.make(tmp_path, ending, b"")) == []
        assert read(self.make(tmp_path, ending, compress(b""))) == []


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"text,id\na,1\nb,2\n", [(1, {"text": "a", "id": "1"}), (2, {"text": "b", "id": "2"})]),
        (b'text\r\n"a, ""b""\nc"\r\n', [(1, {"text": 'a, "b"\nc'})]),
        (BOM + b"text\na\n", [(1, {"text": "a"})]),
        (b"text,id\na\nb,2,3\nc,3\n", [(1, Reason.MALFORMED_CSV), (2, Reason.MALFORMED_CSV), (3, {"text": "c", "id": "3"})]),
        (b"text\n\na\n", [(1, Reason.BLANK_LINE), (2, {"text": "a"})]),
        (b"text\n\xe9\na\n", [(1, Reason.INVALID_UTF8), (2, {"text": "a"})]),
        (b'text\n"a"b\nc\n', [(1, Reason.MALFORMED_CSV), (2, {"text": "c"})]),
        (b'text\na\n"never closed\n', [(1, {"text": "a"}), (2, Reason.MALFORMED_CSV)]),
        (b"te\xe9xt\na\n", [(0, Reason.INVALID_UTF8)]),
        (b"text,text\na,b\n", [(0, Reason.MALFORMED_CSV)]),
        (b"text\n", []),
        (b"", []),
    ],
)
def test_csv(tmp_path: Path, data: bytes, expected: list[tuple[int, Any]]) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(data)
    assert outline(read(path)) == expected


def test_tab_separated_and_compressed_csv(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_bytes(b"id\ttext\n1\ta, b\n")
    assert outline(read(tmp_path / "a.tsv")) == [(1, {"id": "1", "text": "a, b"})]
    data = gzip.compress(b"text\n" + b"".join(b"line %d %d\n" % (i, i * 7919 % 10_007) for i in range(4000)))
    (tmp_path / "a.csv.gz").write_bytes(data[:-2000])
    *good, last = read(tmp_path / "a.csv.gz")
    assert len(good) > 1000
    assert last.problem is not None
    assert last.problem.reason is Reason.TRUNCATED_FILE


def test_a_csv_line_beyond_the_limit_costs_one_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "LINE_LIMIT_BYTES", 1000)
    (tmp_path / "a.csv").write_bytes(b"text\na\n" + b"x" * 5000 + b"\nb\n")
    assert outline(read(tmp_path / "a.csv")) == [(1, {"text": "a"}), (2, Reason.MALFORMED_CSV), (3, {"text": "b"})]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"def f():\n    pass\n", {"text": "def f():\n    pass\n"}),
        (BOM + "é".encode(), {"text": "é"}),
        (b"caf\xe9", Reason.INVALID_UTF8),
        (b"\x7fELF\x02\x01\x00\xff", Reason.INVALID_UTF8),
        (b"x" * 500, Reason.TOO_LONG),
    ],
)
def test_a_whole_file_is_one_document(tmp_path: Path, data: bytes, expected: Any) -> None:
    (tmp_path / "a.py").write_bytes(data)
    assert outline(read(tmp_path / "a.py", max_chars=100)) == [(1, expected)]


def test_an_empty_file_has_no_record(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"")
    assert read(tmp_path / "a.txt") == []


class TestParquet:
    """Parquet, whole and broken."""

    def test_all_text_types_are_read(self, write_parquet: Callable[..., Path]) -> None:
        values = ["a", None, "é"]
        kinds = [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string()), pa.binary()]
        for kind in kinds:
            column = pa.array(values).dictionary_encode() if pa.types.is_dictionary(kind) else pa.array(values).cast(kind)
            path = write_parquet("a.parquet", {"text": column, "id": [1, 2, 3]})
            assert outline(read(path)) == [(i + 1, {"text": value, "id": i + 1}) for i, value in enumerate(values)], kind

    def test_other_types_are_passed_on_and_binary_columns_are_left_out(self, write_parquet: Callable[..., Path]) -> None:
        path = write_parquet("a.parquet", {"text": [1, 2], "image": [b"\xff", b"\xfe"], "tags": [["a", None], None]})
        assert outline(read(path)) == [(1, {"text": 1, "tags": ["a", None]}), (2, {"text": 2, "tags": None})]

    def test_invalid_utf8_costs_its_own_row(self, write_parquet: Callable[..., Path]) -> None:
        broken = pa.array([b"a", b"\xe9", b"c"]).view(pa.string())
        assert outline(read(write_parquet("a.parquet", {"text": broken}))) == [(1, {"text": "a"}), (2, Reason.INVALID_UTF8), (3, {"text": "c"})]
        path = write_parquet("b.parquet", {"text": ["a", "b", "c"], "note": broken})
        assert outline(read(path))[1] == (2, Reason.INVALID_UTF8)

    def test_a_damaged_row_group_costs_its_own_rows_each_of_them(self, write_parquet: Callable[..., Path]) -> None:
        texts = [f"document {i} {i * 7919 % 10_007}" for i in range(300)]
        path = write_parquet("a.parquet", {"text": texts}, row_group_size=100, compression="zstd", write_page_checksum=True)
        chunk = pq.ParquetFile(path).metadata.row_group(1).column(0)
        data = bytearray(path.read_bytes())
        start = chunk.data_page_offset + 60
        data[start : start + 20] = bytes(byte ^ 0xFF for byte in data[start : start + 20])
        path.write_bytes(data)
        records = read(path)
        assert [record.row for record in records] == list(range(1, 301))
        assert [record.row for record in records if record.problem is not None] == list(range(101, 201))
        assert {record.problem.reason for record in records if record.problem is not None} == {Reason.DAMAGED_FILE}

    def test_rows_before_the_damage_are_read_as_well_when_many_are_decoded_together(
        self, write_parquet: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        texts = [f"document {i} {i * 7919 % 10_007}" for i in range(500)]
        pages = {"write_batch_size": 10, "data_page_size": 1, "write_page_checksum": True, "use_dictionary": False, "compression": "none"}
        path = write_parquet("a.parquet", {"text": texts}, **pages)
        data = bytearray(path.read_bytes())
        data[data.index(b"document 257")] ^= 1
        path.write_bytes(data)
        monkeypatch.setattr(parquet_reader, "_FEW_ROWS", 20)
        monkeypatch.setattr(parquet_reader, "_MAX_BATCH_ROWS", 110)
        records = read(path)
        assert [record.row for record in records] == list(range(1, 501))
        assert [record.fields for record in records[:240]] == [{"text": text} for text in texts[:240]]
        assert {record.problem.reason for record in records[240:] if record.problem is not None} == {Reason.DAMAGED_FILE}
        assert all(record.problem is not None for record in records[240:])

    @pytest.mark.parametrize("data", [b"", b"PAR1", b"no parquet at all", b"PAR1" + b"\0" * 100 + b"PAR1"])
    def test_what_is_no_parquet_is_one_damaged_file(self, tmp_path: Path, data: bytes) -> None:
        (tmp_path / "a.parquet").write_bytes(data)
        assert outline(read(tmp_path / "a.parquet")) == [(1, Reason.DAMAGED_FILE)]

    def test_a_truncated_file_is_one_damaged_file(self, write_parquet: Callable[..., Path]) -> None:
        path = write_parquet("a.parquet", {"text": [str(i) for i in range(1000)]})
        path.write_bytes(path.read_bytes()[:-100])
        assert outline(read(path)) == [(1, Reason.DAMAGED_FILE)]

    def test_no_rows_are_no_records(self, write_parquet: Callable[..., Path]) -> None:
        assert read(write_parquet("a.parquet", {"text": pa.array([], pa.string())})) == []


def test_what_is_read_is_what_is_hashed(tmp_path: Path) -> None:
    import xxhash

    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text":"a"}\n' * 1000) + b"garbage")
    with HashingFile(path) as file:
        list(read_records(file, reading_of(str(path), SourceConfig(path="x"), rules=RulesConfig(max_chars=100))))
        assert file.digest() == xxhash.xxh3_128(path.read_bytes()).hexdigest()
