"""G13: validation, against Great Expectations on pandas, reading included.

Rows are the paragraphs of English text, with some faults put in. The peer reads and judges, no more. Ours is measured twice: what the stage does of
that kind, which is like for like; and the whole stage, which also splits, and writes the accepted corpus, the quarantine, Data Docs and a report.
The goal is asked of both. Verdicts and counts must be equal first: of a corpus without faults, with few, and with many.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from tests.benchmarks.debian_text import CACHE, debian_text
from tests.benchmarks.harness import Outcome, Sample, ask_program, in_a_job, interleave, versions_of

GOAL, GOAL_GROWTH = 5.0, 2.0
_FILE_BYTES = 32_000_000
_LEAST_CHARS = 20
_ENV = {"OMP_NUM_THREADS": "1", "ARROW_IO_THREADS": "1", "POLARS_MAX_THREADS": "1"}
_PEER = Path(__file__).parent / "contestants" / "validate_pandas.py"
KINDS = ("jsonl", "parquet")
_JUDGING, _STAGE, _GX = "reading and judging", "the whole stage", "GX on pandas"


@dataclass(frozen=True)
class _Corpus:
    folder: Path
    kind: str
    rows: int

    @property
    def files(self) -> list[str]:
        return sorted(str(path) for path in self.folder.glob(f"*.{self.kind}"))


def run(*, megabytes: int = 256, repetitions: int = 5) -> Outcome:
    """Returns the outcome. `megabytes`: English text."""
    notes = [_check_verdicts(kind) for kind in KINDS]
    contestants: dict[str, Callable[[], Sample]] = {}
    corpora = {kind: _corpus(megabytes, kind=kind, every=200) for kind in KINDS}
    for kind, corpus in corpora.items():
        contestants[f"{_JUDGING}, {kind}"] = lambda corpus=corpus: _sample(_ours(corpus, program="validate_judgement"))  # type: ignore[misc]
        contestants[f"{_STAGE}, {kind}"] = lambda corpus=corpus: _sample(_ours(corpus))  # type: ignore[misc]
        contestants[f"{_GX}, {kind}"] = lambda corpus=corpus: _sample(_gx(corpus))  # type: ignore[misc]
    figures = interleave(contestants, repetitions=repetitions)
    rates = {figure.name: corpora[figure.name.rsplit(" ", 1)[-1]].rows / 1e6 / figure.median_cpu_s for figure in figures}
    ratios = {(part, kind): rates[f"{part}, {kind}"] / rates[f"{_GX}, {kind}"] for part in (_JUDGING, _STAGE) for kind in KINDS}
    growth, memory = _growth(megabytes)
    is_met = min(ratios.values()) >= GOAL and growth <= GOAL_GROWTH
    return Outcome(
        name="validate",
        figures=figures,
        verdict="validate: " + ", ".join(f"{part} {ratio:.1f} times ({kind})" for (part, kind), ratio in ratios.items()) + f" as fast as {_GX} per "
        f"CPU-second (goal {GOAL:g}); ten times the data take {growth:.2f} times the memory (goal {GOAL_GROWTH:g}): {'met' if is_met else 'missed'}",
        met=is_met,
        versions=versions_of("headrace", "great-expectations", "pandas", "pyarrow", "orjson", "duckdb"),
        notes=(*notes, "million rows per CPU-second: " + ", ".join(f"{name} {rate:.3f}" for name, rate in rates.items()), memory),
    )


def _sample(answer: dict[str, Any]) -> Sample:
    return Sample(wall_s=answer["wall_s"], cpu_s=answer["cpu_s"])


def _ours(corpus: _Corpus, *, program: str = "validate_headrace") -> dict[str, Any]:
    pattern = str(corpus.folder / f"*.{corpus.kind}")
    argv = (sys.executable, "-m", f"tests.benchmarks.contestants.{program}", pattern, str(CACHE / "validate" / "out"))
    return ask_program(argv, env=in_a_job(os.environ | _ENV))


def _gx(corpus: _Corpus) -> dict[str, Any]:
    return ask_program((sys.executable, str(_PEER), corpus.kind, *corpus.files), env=os.environ | _ENV)


def _check_verdicts(kind: str) -> str:
    """Raises AssertionError when verdicts or counts differ."""
    seen = []
    for every in (0, 200, 5):
        corpus = _corpus(4, kind=kind, every=every)
        ours, judged, peer = _ours(corpus), _ours(corpus, program="validate_judgement"), _gx(corpus)
        assert [judged[name] for name in ("verdict", "reasons", "accepted")] == [ours[name] for name in ("verdict", "reasons", "accepted")], judged
        reasons, counts = ours["reasons"], peer["counts"]
        own = {
            "null": reasons.get("null text", 0),
            "empty": reasons.get("empty text", 0),
            "blank": reasons.get("blank text", 0) + reasons.get("empty text", 0),
            "nul": reasons.get("NUL character", 0),
            "repeated": 2 * reasons.get("duplicate", 0),
        }
        assert (ours["verdict"], own) == (peer["verdict"], counts), f"{kind}, a fault every {every} rows: {ours} and {peer}"
        seen.append(ours["verdict"])
    assert seen == ["pass", "pass with quarantine", "fail"], seen
    return f"{kind}: equal verdicts ({', '.join(seen)}), and equal counts of every fault"


def _growth(megabytes: int) -> tuple[float, str]:
    """Returns how the stage's peak memory grows with ten times the data, and a line that says so."""
    small, large = (_ours(_corpus(size, kind="jsonl", every=200))["peak_mb"] for size in (max(1, megabytes // 10), megabytes))
    peer = [_gx(_corpus(size, kind="jsonl", every=200))["peak_mb"] for size in (max(1, megabytes // 10), megabytes)]
    return (
        large / small,
        f"peak memory, MB, at a tenth and at all of it: headrace {small:,.0f} and {large:,.0f}, GX on pandas {peer[0]:,.0f} and {peer[1]:,.0f}",
    )


# ---- corpora --------------------------------------------------------------------------------------------------------------


def _corpus(megabytes: int, *, kind: str, every: int) -> _Corpus:
    """Returns rows of text in files of one kind, made the first time. `every`: one row in so many is faulty; 0: none."""
    folder = CACHE / "validate" / f"{megabytes}-{every}"
    about = folder / f"{kind}.json"
    if not about.exists():
        folder.mkdir(parents=True, exist_ok=True)
        rows = 0
        for number, part in enumerate(_parts(_with_faults(_paragraphs(megabytes), every=every))):
            _WRITERS[kind](folder / f"{number:04d}.{kind}", part, first=rows)
            rows += len(part)
        about.write_text(json.dumps(rows))
    return _Corpus(folder=folder, kind=kind, rows=json.loads(about.read_text()))


def _paragraphs(megabytes: int) -> Iterator[str]:
    """Yields different paragraphs."""
    seen: set[int] = set()
    for text in debian_text("english", megabytes=megabytes).texts():
        for paragraph in text.split("\n\n"):
            digest = xxhash.xxh3_64_intdigest(paragraph.encode())
            if len(paragraph.strip()) >= _LEAST_CHARS and digest not in seen and paragraph.replace("\n", " ").isprintable():
                seen.add(digest)
                yield paragraph


def _with_faults(rows: Iterator[str], *, every: int) -> Iterator[str | None]:
    """Yields rows, some of them null, blank, with a NUL, or repeated once."""
    for number, row in enumerate(rows):
        yield row
        if every and number % every == 0:
            match number // every % 5:
                case 0 | 1:
                    yield None
                case 2:
                    yield f"{number} \0 {row}"
                case 3:
                    yield row
                case 4:
                    yield " " * (1 + number // every)  # blank, and different from all other blank ones


def _parts(rows: Iterator[str | None]) -> Iterator[list[str | None]]:
    part: list[str | None] = []
    size = 0
    for row in rows:
        part.append(row)
        size += len(row or "")
        if size >= _FILE_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part


def _write_jsonl(path: Path, rows: Sequence[str | None], *, first: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        for number, row in enumerate(rows, start=first):
            file.write(json.dumps({"id": number, "text": row}, ensure_ascii=False) + "\n")


def _write_parquet(path: Path, rows: Sequence[str | None], *, first: int) -> None:
    pq.write_table(pa.table({"id": pa.array(range(first, first + len(rows))), "text": pa.array(rows, pa.string())}), path)


_WRITERS = {"jsonl": _write_jsonl, "parquet": _write_parquet}
