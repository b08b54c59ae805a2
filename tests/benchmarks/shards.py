"""G2: the file format of token shards, against `list<uint16>` Parquet at pyarrow's defaults, and a raw file of ids.

Real ids (English text of the `tokenize` benchmark), in files of 8,192 rows of 1,024. Writing ends when the file is hashed and on the disk, for
everybody (ours has also been compared with the ids); `unsettled` is the peer without both. Reading gives an array of uint16 ids [rows, 1024] of
one file after the other, which are not kept: ours have been hashed and compared with the manifest. All in one process with one thread, pages cached.
"""

import itertools
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.storage import file_entry, hash_file
from schemas.manifest import Shard, ShardManifest
from tasks.tokenize.shard_file import write_shard
from tasks.tokenize.shard_reader import ShardReader
from tasks.tokenizer.engine import GigatokenEngine
from tests.benchmarks import tokenizing
from tests.benchmarks.debian_text import CACHE
from tests.benchmarks.harness import Outcome, Sample, interleave, timed, versions_of

GOAL_WRITE, GOAL_READ, GOAL_BITS = 8.0, 15.0, 16.1
LENGTH, ROWS_PER_FILE = 1024, 8192
Rows = np.ndarray[Any, Any]


def run(*, megabytes: int = 256, repetitions: int = 5) -> Outcome:
    """Returns the outcome. `megabytes`: English text that the ids are made of."""
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    rows = _ids(megabytes)
    folder = CACHE / "shards"
    shutil.rmtree(folder, ignore_errors=True)
    formats = {"headrace": (_write_ours, _read_ours), "list<uint16>": (_write_list, _read_list), "raw file": (_write_raw, _read_raw)}
    contestants: dict[str, Callable[[], Sample]] = {}
    bits = {}
    for name, (write, read) in formats.items():
        own = folder / name.replace("<", "-").replace(">", "").replace(" ", "-")
        _write(write, rows, own)
        assert np.array_equal(np.concatenate(list(read(own))), rows), f"{name} gives other ids back"
        bits[name] = 8 * sum(path.stat().st_size for path in own.rglob("*") if path.is_file()) / rows.size
        contestants[f"write {name}"] = lambda write=write, own=own: timed(lambda: _write(write, rows, own))  # type: ignore[misc]
        contestants[f"read {name}"] = lambda read=read, own=own: timed(lambda: deque(read(own), maxlen=0))  # type: ignore[misc]
    contestants["write list<uint16>, unsettled"] = lambda: timed(lambda: _write(_write_list_unsettled, rows, folder / "unsettled"))
    figures = interleave(contestants, repetitions=repetitions)
    shutil.rmtree(folder)
    rates = {figure.name: rows.size / 1e6 / figure.median_cpu_s for figure in figures}
    writing, reading = (rates[f"{verb} headrace"] / rates[f"{verb} list<uint16>"] for verb in ("write", "read"))
    is_met = writing >= GOAL_WRITE and reading >= GOAL_READ and bits["headrace"] <= GOAL_BITS
    return Outcome(
        name="shards",
        figures=figures,
        verdict=f"shards: headrace writes {writing:.1f} times (goal {GOAL_WRITE:g}) and reads {reading:.1f} times (goal {GOAL_READ:g}) as fast as "
        f"list<uint16> Parquet per CPU-second, at {bits['headrace']:.2f} bits per id (goal {GOAL_BITS}): {'met' if is_met else 'missed'}",
        met=is_met,
        versions=versions_of("headrace", "pyarrow", "numpy", "xxhash"),
        notes=(
            "million ids per CPU-second: " + ", ".join(f"{name} {rate:,.0f}" for name, rate in rates.items()),
            "bits per id: " + ", ".join(f"{name} {value:.2f}" for name, value in bits.items()),
        ),
    )


def _ids(megabytes: int) -> Rows:
    """Returns the ids of the text as whole rows, encoded the first time."""
    path = CACHE / f"ids-{megabytes}.bin"
    if not path.exists():
        site = tokenizing.english(megabytes)
        engine = GigatokenEngine(site.tokenizer_json.read_bytes())
        with path.open("wb") as file:
            for source in sorted((site.folder / "all").glob("*.parquet")):
                for part in pq.ParquetFile(source).iter_batches(columns=["text"]):
                    file.write(engine.encode_column(part.column("text")).ids.astype("<u2").tobytes())
    ids = np.fromfile(path, dtype="<u2")
    return ids[: ids.size // LENGTH * LENGTH].reshape(-1, LENGTH)


def _write(write: Callable[[Path, Rows], None], rows: Rows, folder: Path) -> None:
    """Writes all rows into a new folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for number, first in enumerate(range(0, len(rows), ROWS_PER_FILE)):
        write(folder / f"{number:05d}.parquet", rows[first : first + ROWS_PER_FILE])


def _files(folder: Path) -> Iterator[Path]:
    yield from sorted(folder.glob("*.parquet"))


def _write_ours(path: Path, rows: Rows) -> None:
    write_shard(path, rows, layout="fixed", facts={})


def _read_ours(folder: Path) -> Iterator[Rows]:
    reader = ShardReader(_manifest(folder), folder=folder, split="train")
    ends = np.cumsum([shard.rows for shard in reader.shards]).tolist()
    yield from (reader.stored(np.arange(first, last)) for first, last in itertools.pairwise([0, *ends]))


_MANIFESTS: dict[Path, ShardManifest] = {}


def _manifest(folder: Path) -> ShardManifest:
    """Returns the manifest of a folder of shards, made when it is first asked for: everybody writes equal bytes again and again."""
    if folder not in _MANIFESTS:
        shards = []
        for path in _files(folder):
            chunk = pq.read_metadata(path).row_group(0).column(0)
            rows = chunk.num_values
            offset = chunk.data_page_offset + chunk.total_compressed_size - rows * LENGTH * 2
            file = file_entry(path, relative_to=folder)
            shards.append(
                Shard(group=0, split="train", file=file, rows=rows, tokens=rows * LENGTH, last_row_tokens=LENGTH, payload_offset=offset, text_bytes=0)
            )
        _MANIFESTS[folder] = ShardManifest(
            layout="fixed",
            dtype="uint16",
            sequence_length=LENGTH,
            vocab_size=65_536,
            end_of_text_id=0,
            tokenizer_hash="",
            engine="imported",
            shards=tuple(shards),
        )
    return _MANIFESTS[folder]


def _write_list(path: Path, rows: Rows) -> None:
    _write_list_unsettled(path, rows)
    _settle(path)


def _write_list_unsettled(path: Path, rows: Rows) -> None:
    offsets = pa.array(np.arange(len(rows) + 1, dtype=np.int32) * LENGTH)
    pq.write_table(pa.table({"ids": pa.ListArray.from_arrays(offsets, pa.array(rows.reshape(-1)))}), path)


def _read_list(folder: Path) -> Iterator[Rows]:
    tables = (pq.read_table(path, use_threads=False) for path in _files(folder))
    yield from (table["ids"].combine_chunks().flatten().to_numpy().reshape(-1, LENGTH) for table in tables)


def _write_raw(path: Path, rows: Rows) -> None:
    rows.tofile(path)
    _settle(path)


def _settle(path: Path) -> None:
    """Brings a file to the disk and hashes it, as a shard is when `write_shard` returns."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    hash_file(path)


def _read_raw(folder: Path) -> Iterator[Rows]:
    yield from (np.fromfile(path, dtype="<u2").reshape(-1, LENGTH) for path in _files(folder))
