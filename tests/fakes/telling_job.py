"""A gang's program that tells where it is: `told-{rank}.json` in the output folder, with what `options.look_at` names.

python -m tests.fakes.telling_job --spec FILE
"""

import argparse
import contextlib
import json
import os
import sys
from pathlib import Path

from schemas.job import TaskSpec


def main() -> None:
    """Runs one rank."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--spec", type=Path, required=True)
    spec = TaskSpec.model_validate_json(parser.parse_args().spec.read_bytes())
    paths = [Path(path) for path in spec.job.options["look_at"]]
    told = {
        "prefix": sys.prefix,
        "folder": str(Path.cwd()),
        "environment": dict(os.environ),
        "seen": [str(path) for path in paths if path.exists()],
        "written": [str(path) for path in paths if path.is_dir() and _writes(path)],
    }
    (Path(spec.output_dir) / f"told-{os.environ['RANK']}.json").write_text(json.dumps(told))


def _writes(folder: Path) -> bool:
    with contextlib.suppress(OSError):
        (folder / f"written-{os.environ['RANK']}").touch()
        return True
    return False


if __name__ == "__main__":
    main()
