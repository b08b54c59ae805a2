"""`python -m tests.benchmarks NAME [--json FILE]`: one benchmark; ends with the line that states the ratio, exits 1 when the goal is missed."""

import argparse
import importlib
import sys
from pathlib import Path

from tests.benchmarks.harness import busy_warning, report

NAMES = ("noop", "checkpoint", "hang", "resume", "recovery", "goodput")


def main() -> int:
    """Runs the named benchmark."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--json", type=Path, default=None, help="write the figures here")
    arguments = parser.parse_args()
    if warning := busy_warning():
        print(warning, file=sys.stderr)
    return report(importlib.import_module(f"tests.benchmarks.{arguments.name}").run(), json_file=arguments.json)


if __name__ == "__main__":
    sys.exit(main())
