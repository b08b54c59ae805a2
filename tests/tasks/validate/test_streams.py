"""Compressed files: padded, damaged or cut anywhere, all that can be decompressed comes before the damage is told."""

import gzip
import os
import zlib
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
import xxhash

from schemas.corpus_config import RulesConfig, SourceConfig
from schemas.errors import InputError
from tasks.validate import streams
from tasks.validate.problem import Reason
from tasks.validate.readers import read_records, reading_of
from tasks.validate.sources import Compression
from tasks.validate.streams import DamagedStreamError, HashingFile, blocks

RECORDS = 300


def content(records: int = RECORDS) -> bytes:
    return b"".join(b'{"text":"document %d %d"}\n' % (i, i * i * 7919 % 100_003) for i in range(records))


def zstd(data: bytes) -> bytes:
    return bytes(pa.compress(data, "zstd", asbytes=True))


def decompressed(path: Path, compression: Compression) -> tuple[bytes, DamagedStreamError | None]:
    """What comes of a file, and the damage that ends it; the hash is of the whole in any case."""
    found: list[bytes] = []
    damage = None
    with HashingFile(path) as file:
        try:
            for block in blocks(file, compression=compression):
                assert 0 < len(block) <= 1 << 20
                found.append(block)
        except DamagedStreamError as error:
            damage = error
        assert file.digest() == xxhash.xxh3_128(path.read_bytes()).hexdigest()
    return b"".join(found), damage


def outline(path: Path) -> tuple[list[int], list[tuple[int, Reason]]]:
    """Rows that were read, and (row, reason) of what was not."""
    with HashingFile(path) as file:
        records = list(read_records(file, reading_of(path.name, SourceConfig(path="x"), rules=RulesConfig())))
    refused = [(record.row, record.problem.reason) for record in records if record.problem is not None]
    return [record.row for record in records if record.problem is None], refused


@pytest.mark.parametrize("num_zeros", [1, 2, 3, 512, 200_000])
@pytest.mark.parametrize("records", [RECORDS, 30_000])
def test_zeros_behind_a_gzip_member_are_passed_over(tmp_path: Path, num_zeros: int, records: int) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(content(records)) + bytes(num_zeros))
    assert outline(path) == (list(range(1, records + 1)), [])


def test_members_behind_zeros_are_read_as_well(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    member = gzip.compress(content()) + bytes(512)
    path.write_bytes(member * 3)
    assert decompressed(path, "gzip") == (content() * 3, None) == (gzip.decompress(path.read_bytes()), None)
    path.write_bytes(member * 3 + member[:500])
    data, damage = decompressed(path, "gzip")
    assert data.startswith(content() * 3 + b'{"text"')
    assert damage is not None
    assert damage.truncated


def test_nothing_but_zeros_is_no_gzip(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(bytes(512))
    assert outline(tmp_path / "a.jsonl.gz") == ([], [(1, Reason.DAMAGED_FILE)])


@pytest.mark.parametrize("garbage", [b"\x01\x02", b"garbage", bytes(512) + b"garbage" * 50])
@pytest.mark.parametrize(("ending", "compress"), [(".gz", gzip.compress), (".zst", zstd)])
@pytest.mark.parametrize("num_members", [1, 2])
def test_what_comes_before_garbage_is_kept_whole(
    tmp_path: Path, ending: str, compress: Callable[[bytes], bytes], garbage: bytes, num_members: int
) -> None:
    path = tmp_path / f"a.jsonl{ending}"
    path.write_bytes(compress(content()) * num_members + garbage)
    rows, refused = outline(path)
    assert len(rows) == RECORDS * num_members
    assert refused == [(len(rows) + 1, Reason.DAMAGED_FILE)]


@pytest.mark.parametrize("records", [RECORDS, 30_000])
def test_a_gzip_file_that_was_cut_gives_all_that_can_be_decompressed(tmp_path: Path, records: int) -> None:
    path = tmp_path / "a.gz"
    whole = gzip.compress(content(records))
    for size in (5, 500, len(whole) // 3, len(whole) // 2, len(whole) - 9, len(whole) - 1):
        path.write_bytes(whole[:size])
        data, damage = decompressed(path, "gzip")
        assert data == zlib.decompressobj(31).decompress(whole[:size]), size
        assert damage is not None
        assert damage.truncated


def test_a_zstd_file_that_was_cut_gives_all_that_can_be_decompressed(tmp_path: Path) -> None:
    path = tmp_path / "a.zst"
    frame = zstd(content())
    path.write_bytes(frame * 5 + frame[:-5])
    data, damage = decompressed(path, "zstd")
    assert data == content() * 5
    assert damage is not None
    assert damage.truncated


BLOCK_BYTES = 128 << 10
"""Of content, in each block of a zstd frame but for the last."""


def block_positions(frame: bytes) -> list[int]:
    """Where the blocks of a zstd frame begin (RFC 8878, 3.1.1): behind the frame's header, each with a header of three bytes."""
    descriptor = frame[4]
    has_window = not descriptor & 0x20
    position = 5 + has_window + (0, 1, 2, 4)[descriptor & 3] + (0 if has_window else 1, 2, 4, 8)[descriptor >> 6]
    found, is_last = list[int](), False
    while not is_last:
        header = int.from_bytes(frame[position : position + 3], "little")
        found.append(position)
        is_last, is_repeated = bool(header & 1), header >> 1 & 3 == 1
        position += 3 + (1 if is_repeated else header >> 3)
    return found


@pytest.mark.parametrize(
    "data", [content(150_000), b"the same line again and again\n" * 400_000, os.urandom(1_500_000)], ids=["text", "repeated", "random"]
)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_damaged_block_costs_no_block_before_it(tmp_path: Path, data: bytes, share: float) -> None:
    frame = bytearray(zstd(data))
    positions = block_positions(frame)
    number = round(share * (len(positions) - 1))
    frame[positions[number]] |= 6  # a kind of block that there is not
    (tmp_path / "a.zst").write_bytes(frame)
    kept, damage = decompressed(tmp_path / "a.zst", "zstd")
    assert kept == data[: number * BLOCK_BYTES]
    assert damage is not None
    assert not damage.truncated


def test_a_wrong_checksum_costs_no_content(tmp_path: Path) -> None:
    whole = bytearray(gzip.compress(content(30_000)))
    whole[-8] ^= 1
    (tmp_path / "a.gz").write_bytes(whole)
    data, damage = decompressed(tmp_path / "a.gz", "gzip")
    assert data == content(30_000)
    assert damage is not None
    assert not damage.truncated
    assert "data check" in damage.detail


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_a_sound_file_is_decompressed_once(tmp_path: Path, compression: Compression, monkeypatch: pytest.MonkeyPatch) -> None:
    compress = gzip.compress if compression == "gzip" else zstd
    (tmp_path / "a").write_bytes(compress(content(20_000)) + compress(content()))
    monkeypatch.setattr(streams, "_from_start", None)
    assert decompressed(tmp_path / "a", compression) == (content(20_000) + content(), None)


@pytest.mark.parametrize(("compression", "compress"), [("gzip", gzip.compress), ("zstd", zstd)])
def test_a_disk_that_fails_while_a_damaged_file_is_read_again_is_no_damage(
    tmp_path: Path, compression: Compression, compress: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(compress(content()) + b"garbage")
    pread, positions = os.pread, set[int]()

    def once(descriptor: int, size: int, position: int) -> bytes:
        if position in positions:
            raise OSError(5, "Input/output error")
        positions.add(position)
        return pread(descriptor, size, position)

    monkeypatch.setattr(os, "pread", once)
    with HashingFile(tmp_path / "a") as file, pytest.raises(InputError, match="cannot be read"):
        list(blocks(file, compression=compression))
