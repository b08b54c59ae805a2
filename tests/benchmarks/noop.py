"""G12: a finished pipeline, run again: ours, remembered and found out anew, Luigi with as many finished tasks, and Python's own start."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.benchmarks.harness import ROOT, Outcome, Sample, interleave, peer_python, run_program, versions_of

GOAL_S = 0.15
_HEADRACE = ROOT / ".venv" / "bin" / "headrace"
_AGAIN = (str(_HEADRACE), "run", str(ROOT / "infra" / "recipes" / "demo_cpu.yaml"))
_CERTIFICATES = ROOT / ".headrace" / "certificates"
_LUIGI = Path(__file__).with_name("noop_luigi.py")


def run() -> Outcome:
    """Returns the outcome. Runs the demo first when its pipeline is not finished."""
    run_program((str(_HEADRACE), "demo"), env=os.environ | {"DEMO_KILL": "0"})
    _check_answers()
    luigi = peer_python("luigi", "luigi==3.8.1")
    state = ROOT / ".headrace" / "bench-luigi"
    state.mkdir(parents=True, exist_ok=True)
    figures = interleave(
        {
            "headrace run": lambda: run_program(_AGAIN),
            "luigi": lambda: run_program((str(luigi), str(_LUIGI), str(state))),
            "python -c pass": lambda: run_program((sys.executable, "-c", "pass")),
            "headrace run, found out anew": _anew,
        }
    )
    ours, peer = figures[0].median_wall_s, figures[1].median_wall_s
    answer = "met" if ours <= GOAL_S else "missed"
    return Outcome(
        name="noop",
        figures=figures,
        verdict=f"noop: headrace {ours:.3f} s, {peer / ours:.2f} times as fast as luigi ({peer:.3f} s); goal {GOAL_S} s: {answer}",
        met=ours <= GOAL_S,
        versions=versions_of("headrace", "pydantic", "typer"),
    )


def _anew() -> Sample:
    """The same call when nothing is remembered: it leaves the certificate that the others answer from."""
    shutil.rmtree(_CERTIFICATES, ignore_errors=True)
    return run_program(_AGAIN)


def _check_answers() -> None:
    """Refuses to measure two ways that do not say the same."""
    shutil.rmtree(_CERTIFICATES, ignore_errors=True)
    anew, again = (subprocess.run(_AGAIN, cwd=ROOT, check=True, capture_output=True, text=True) for _ in range(2))
    if (anew.stdout, anew.stderr) != (again.stdout, again.stderr) or not list(_CERTIFICATES.iterdir()):
        raise SystemExit(f"the answers differ, or none is remembered: {anew.stdout!r} {again.stdout!r}")
