"""How Headrace measures: peers side by side, interleaved, medians with min and max, wall and CPU-seconds, versions in the answer."""

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from cluster.environment import DEFAULTS

ROOT = Path(__file__).resolve().parents[2]
PEERS = ROOT / ".headrace" / "peers"
BUSY_LOAD = 0.5
"""A load per core above this before the start makes the figures doubtful."""


@dataclass(frozen=True)
class Sample:
    """One repetition of one contestant."""

    wall_s: float
    cpu_s: float


@dataclass(frozen=True)
class Figure:
    """What a contestant needed, over all repetitions."""

    name: str
    median_wall_s: float
    min_wall_s: float
    max_wall_s: float
    median_cpu_s: float


@dataclass(frozen=True)
class Outcome:
    """The answer of a benchmark."""

    name: str
    figures: tuple[Figure, ...]
    verdict: str
    """The one line that states the ratio."""
    met: bool
    """Whether the goal is met."""
    versions: Mapping[str, str]
    notes: Sequence[str] = ()
    """What else was found, a line each; printed above the verdict."""


def run_program(argv: Sequence[str], *, env: Mapping[str, str] | None = None, cwd: Path = ROOT) -> Sample:
    """Returns what one run of a program cost, children included. Raises CalledProcessError when it fails."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(argv, env=None if env is None else dict(env), cwd=cwd, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return Sample(wall_s=wall, cpu_s=after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def timed(work: Callable[[], object]) -> Sample:
    """Returns what a call cost in this process, all its threads included."""
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    work()
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
    return Sample(wall_s=wall, cpu_s=after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def in_a_job(env: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment of a program of ours, as an agent starts it: with our own settings of allocators and threads."""
    return {**DEFAULTS, **env, "PYTHONPATH": str(ROOT)}


def ask_program(argv: Sequence[str], *, env: Mapping[str, str] | None = None, cwd: Path = ROOT, answers: bool = True) -> dict[str, Any]:
    """Returns the JSON object on the last line that a program prints: one that measures itself (`contestants/measuring.py`). Else nothing.

    Raises:
        RuntimeError: it failed; with the end of what it said.
    """
    done = subprocess.run(argv, env=None if env is None else dict(env), cwd=cwd, capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)} ended with {done.returncode}: {done.stderr.decode(errors='replace')[-3000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1]) if answers else {}
    return answer


def interleave(contestants: Mapping[str, Callable[[], Sample]], *, repetitions: int = 7) -> tuple[Figure, ...]:
    """Runs A B A B …, after one unmeasured round that warms caches, and returns a figure for each."""
    for contestant in contestants.values():
        contestant()
    samples: dict[str, list[Sample]] = {name: [] for name in contestants}
    for _ in range(repetitions):
        for name, contestant in contestants.items():
            samples[name].append(contestant())
    return tuple(
        Figure(
            name=name,
            median_wall_s=statistics.median(sample.wall_s for sample in taken),
            min_wall_s=min(sample.wall_s for sample in taken),
            max_wall_s=max(sample.wall_s for sample in taken),
            median_cpu_s=statistics.median(sample.cpu_s for sample in taken),
        )
        for name, taken in samples.items()
    )


def peer_python(name: str, *requirements: str, on_ours: bool = False) -> Path:
    """Returns the interpreter of a peer's own environment, made from PyPI the first time. `on_ours`: on top of the packages that we run on."""
    folder = PEERS / name
    python, ready = folder / "bin" / "python", folder / ".ready"
    if not ready.exists() or ready.read_text() != "\n".join(requirements):
        subprocess.run((sys.executable, "-m", "venv", "--clear", str(folder)), check=True)
        if on_ours:
            ours, theirs = sysconfig.get_path("purelib"), sysconfig.get_path("purelib", vars={"base": str(folder)})
            Path(theirs, "ours.pth").write_text(f"{ours}\n")
        subprocess.run((str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements), check=True)
        ready.write_text("\n".join(requirements))
    return python


def busy_warning() -> str:
    """Returns a warning when the machine has other work to do, or nothing."""
    load = os.getloadavg()[0] / (os.cpu_count() or 1)
    return f"warning: load per core is {load:.2f} before the start; the figures are doubtful" if load > BUSY_LOAD else ""


def versions_of(*packages: str) -> dict[str, str]:
    """Returns the versions that the figures depend on."""
    return {"python": platform.python_version(), "machine": platform.platform()} | {package: metadata.version(package) for package in packages}


def report(outcome: Outcome, *, json_file: Path | None) -> int:
    """Prints the table and the verdict, writes the JSON, and returns the exit code: 0 when the goal is met."""
    width = max([24, *(len(figure.name) for figure in outcome.figures)])
    print(f"{'':{width}} {'median':>9} {'min':>9} {'max':>9} {'cpu':>9}   seconds")
    for figure in outcome.figures:
        print(f"{figure.name:{width}} {figure.median_wall_s:9.3f} {figure.min_wall_s:9.3f} {figure.max_wall_s:9.3f} {figure.median_cpu_s:9.3f}")
    for note in outcome.notes:
        print(note)
    if json_file is not None:
        json_file.write_text(json.dumps(asdict(outcome), indent=2) + "\n")
    print(outcome.verdict)
    return 0 if outcome.met else 1
