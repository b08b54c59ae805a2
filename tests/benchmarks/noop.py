"""G12: a finished pipeline, run again. Ours against Luigi with as many finished tasks, and against Python's own start."""

import os
import sys
from pathlib import Path

from tests.benchmarks.harness import ROOT, Outcome, interleave, peer_python, run_program, versions_of

GOAL_S = 0.15
_RECIPE = ROOT / "infra" / "recipes" / "demo_cpu.yaml"
_LUIGI = Path(__file__).with_name("noop_luigi.py")


def run() -> Outcome:
    """Returns the outcome. Runs the demo first when its pipeline is not finished."""
    headrace = ROOT / ".venv" / "bin" / "headrace"
    run_program((str(headrace), "demo"), env=os.environ | {"DEMO_KILL": "0"})
    luigi = peer_python("luigi", "luigi==3.8.1")
    state = ROOT / ".headrace" / "bench-luigi"
    state.mkdir(parents=True, exist_ok=True)
    figures = interleave(
        {
            "headrace run": lambda: run_program((str(headrace), "run", str(_RECIPE))),
            "luigi": lambda: run_program((str(luigi), str(_LUIGI), str(state))),
            "python -c pass": lambda: run_program((sys.executable, "-c", "pass")),
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
