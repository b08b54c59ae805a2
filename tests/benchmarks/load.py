"""G3: globally shuffled batches from token files: ours against datatrove, litdata, mosaicml-streaming, and against a bare numpy gather.

Everybody has the same rows of uint16 ids in a format of its own, one thread and no worker processes, and delivers int64 tensors [64, 1024] on
the CPU. What is compared are tokens per CPU-second of a pass over all rows, opening the files included, ours with the hash of every shard
checked. Before that, every contestant must have delivered each row once, with the sum of its ids.
"""

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cluster.storage import file_entry
from schemas.manifest import Shard, ShardManifest
from tasks.tokenize.shard_file import write_shard
from tests.benchmarks.contestants.measuring import BATCH, LENGTH, STEP
from tests.benchmarks.data_peers import environment_of, peer_pythons, peer_versions
from tests.benchmarks.debian_text import CACHE
from tests.benchmarks.harness import Figure, Outcome, Sample, ask_program, interleave, versions_of

GOALS = {"datatrove": 4.0, "litdata": 4.0, "mosaicml-streaming": 50.0, "numpy gather": 0.7}
_COLD = ("headrace", "datatrove", "numpy gather")
_ROWS_PER_SHARD = 8192
_PEERS = Path(__file__).parent / "contestants" / "load_peers.py"
_ENV = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def run(*, megabytes: int = 256, repetitions: int = 5) -> Outcome:
    """Returns the outcome. `megabytes`: of ids, two bytes each."""
    num_rows = max(1, megabytes * 1_000_000 // (2 * LENGTH) // STEP) * STEP
    folder = _prepared(num_rows)
    pythons = peer_pythons()
    for name in GOALS:
        _check(name, folder=folder, pythons=pythons)
    _check("headrace", folder=folder, pythons=pythons)
    contestants = {name: _contestant(name, "warm", folder=folder, pythons=pythons) for name in ("headrace", *GOALS)}
    contestants |= {f"{name}, cold cache": _contestant(name, "cold", folder=folder, pythons=pythons) for name in _COLD}
    figures = interleave(contestants, repetitions=repetitions)
    rates = {figure.name: num_rows * LENGTH / 1e6 / figure.median_cpu_s for figure in figures}
    ratios = {name: rates["headrace"] / rates[name] for name in GOALS}
    is_met = all(ratios[name] >= goal for name, goal in GOALS.items())
    shown = ", ".join(f"{ratio:.2f} x {name} (goal {GOALS[name]:g})" for name, ratio in ratios.items())
    return Outcome(
        name="load",
        figures=figures,
        verdict=f"load: headrace {shown}: {'met' if is_met else 'missed'}",
        met=is_met,
        versions=versions_of("headrace", "numpy", "torch") | peer_versions(),
        notes=(
            f"{num_rows:,} rows of {LENGTH} ids; every contestant delivered each of them once",
            "million tokens per CPU-second: " + ", ".join(f"{name} {rate:,.0f}" for name, rate in rates.items()),
            _share_of_a_step(figures[0], num_batches=num_rows // BATCH),
        ),
    )


def _share_of_a_step(figure: Figure, *, num_batches: int) -> str:
    batch_ms = 1000 * figure.median_cpu_s / num_batches
    return f"a batch of {BATCH} x {LENGTH} tokens costs {batch_ms:.3f} ms of CPU: under 1 % of every step that takes {100 * batch_ms:.0f} ms or more"


def _contestant(name: str, mode: str, *, folder: Path, pythons: Mapping[str, Path]) -> Any:
    def once() -> Sample:
        answer = _ask(name, mode, folder=folder, pythons=pythons)
        return Sample(wall_s=answer["wall_s"], cpu_s=answer["cpu_s"])

    return once


def _ask(name: str, mode: str, *, folder: Path, pythons: Mapping[str, Path]) -> dict[str, Any]:
    if name == "headrace":
        argv = (sys.executable, "-m", "tests.benchmarks.contestants.load_headrace", str(folder / "headrace"), mode)
    else:
        argv = (str(pythons[environment_of(name)]), str(_PEERS), name, mode, str(folder / "raw" / "ids.bin"), str(_own(folder, name)))
    return ask_program(argv, env=os.environ | _ENV)


def _own(folder: Path, name: str) -> Path:
    return folder / name.replace(" ", "-")


def _check(name: str, *, folder: Path, pythons: Mapping[str, Path]) -> None:
    """Makes a peer's files where they are missing; raises AssertionError unless every row is delivered once and whole."""
    own = _own(folder, name)
    if name not in ("headrace", "numpy gather") and not (folder / f"{own.name}.made").exists():
        shutil.rmtree(own, ignore_errors=True)
        own.mkdir()
        argv = (str(pythons[environment_of(name)]), str(_PEERS), name, "make", str(folder / "raw" / "ids.bin"), str(own))
        ask_program(argv, env=os.environ | _ENV, answers=False)
        (folder / f"{own.name}.made").touch()
    rows = np.memmap(folder / "raw" / "ids.bin", dtype="<u2", mode="r").reshape(-1, LENGTH)
    expected = list(enumerate(rows.sum(1, dtype=np.int64).tolist()))
    batches = _ask(name, "check", folder=folder, pythons=pythons)["rows"]
    found = [tuple(row) for batch in batches for row in batch]
    assert found != expected, f"{name} does not shuffle"
    assert sorted(found) == expected, f"{name} delivered other rows"


def _prepared(num_rows: int) -> Path:
    """Returns the folder with the raw rows and our shards, made the first time. A row begins with its number."""
    folder = CACHE / "load" / str(num_rows)
    if (folder / "headrace" / "manifest.json").exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "raw").mkdir(parents=True)
    (folder / "headrace" / "shards").mkdir(parents=True)
    random, shards = np.random.default_rng(0), []
    with (folder / "raw" / "ids.bin").open("wb") as raw:
        for position, first in enumerate(range(0, num_rows, _ROWS_PER_SHARD)):
            numbers = np.arange(first, min(first + _ROWS_PER_SHARD, num_rows))
            rows = random.integers(0, 50_257, size=(numbers.size, LENGTH)).astype("<u2")
            rows[:, 0], rows[:, 1] = numbers & 0xFFFF, numbers >> 16
            raw.write(rows.tobytes())
            shards.append(_shard(folder / "headrace", rows, position=position))
    manifest = ShardManifest(
        layout="fixed",
        dtype="uint16",
        sequence_length=LENGTH,
        vocab_size=65_536,
        end_of_text_id=0,
        tokenizer_hash="",
        engine="imported",
        shards=tuple(shards),
    )
    (folder / "headrace" / "manifest.json").write_text(manifest.model_dump_json())
    return folder


def _shard(folder: Path, rows: Any, *, position: int) -> Shard:
    path = folder / "shards" / f"train-g0000-{position:05d}.parquet"
    written = write_shard(path, rows, layout="fixed", facts={})
    file = file_entry(path, relative_to=folder)
    tokens = rows.size
    return Shard(
        group=0, split="train", file=file, rows=len(rows), tokens=tokens, last_row_tokens=LENGTH, payload_offset=written.payload_offset, text_bytes=0
    )
