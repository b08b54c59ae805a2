"""`python -m tests.benchmarks NAME [--json FILE]`: one benchmark; ends with the line that states the ratio, exits 1 when the goal is missed."""

import argparse
import importlib
import sys
from pathlib import Path

from tests.benchmarks.harness import busy_warning, report

NAMES = ("noop", "tokenize", "shards", "load", "position", "validate", "checkpoint", "hang", "resume", "recovery", "goodput")
_MODULES = {"tokenize": "tokenizing"}
"""Where the module has another name: beside scripts, `tokenize.py` would stand in for the standard library's."""


def main() -> int:
    """Runs the named benchmark."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--json", type=Path, default=None, help="write the figures here")
    parser.add_argument("--megabytes", type=int, default=None, help="benchmarks of data: another size, for development")
    parser.add_argument("--repetitions", type=int, default=None, help="benchmarks of data: how often everybody is measured")
    arguments = parser.parse_args()
    options = {name: value for name in ("megabytes", "repetitions") if (value := getattr(arguments, name)) is not None}
    if warning := busy_warning():
        print(warning, file=sys.stderr)
    benchmark = importlib.import_module(f"tests.benchmarks.{_MODULES.get(arguments.name, arguments.name)}")
    return report(benchmark.run(**options), json_file=arguments.json)


if __name__ == "__main__":
    sys.exit(main())
