"""An array's program: writes one small file per item, has something unfinished until then, and faults on request.

    python -m tests.fakes.array_job --spec FILE --index I

`options`: item_s, and `faults`, a list of {item, kind, times} with the kinds of `gang_job`. `tell_inputs`, `tell_environment`: what the item sees
becomes its output. `content_by_epoch`: another start makes other bytes. `waits_below`: items with smaller numbers wait, in the first attempt, until
they are ended. `waits_at_first`: so do all items in epoch 0; what is started again after an incident is in a later one.
"""

import argparse
import contextlib
import os
import time
from pathlib import Path
from typing import Any

from cluster.layout import ArtifactLayout
from cluster.storage import AlreadyExistsError, FileStorage, file_entry
from cluster.unfinished import unfinished_path
from schemas.canonical import canonical_json
from schemas.job import ItemRecord, TaskSpec
from tests.fakes.gang_job import strike, strikes


def main() -> None:
    """Runs one item."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--spec", type=Path, required=True)
    parser.add_argument("--index", type=int, required=True)
    arguments = parser.parse_args()
    spec = TaskSpec.model_validate_json(arguments.spec.read_bytes())
    output = Path(spec.output_dir)
    print(f"item {arguments.index} starts in epoch {spec.epoch}", flush=True)
    path = output / f"part-{arguments.index:06d}.txt"
    unfinished = unfinished_path(path, epoch=spec.epoch, pid=os.getpid())
    unfinished.write_text("half")
    try:
        for fault in spec.job.options.get("faults", ()):
            if fault["item"] == arguments.index and strikes(output, {"rank": fault["item"], "step": 0, **fault}, spec.epoch):
                strike(fault["kind"])
        while arguments.index < spec.job.options.get("waits_below", 0) and spec.job.attempt == 0:
            time.sleep(0.1)
        while spec.epoch == 0 and spec.job.options.get("waits_at_first"):
            time.sleep(0.1)
        time.sleep(spec.job.options["item_s"])
    finally:
        unfinished.unlink()
    if not path.exists():
        path.write_text(f"item {arguments.index}{f' of epoch {spec.epoch}' if spec.job.options.get('content_by_epoch') else ''}\n")
    told: dict[str, Any] = {"environment": sorted(os.environ)} if spec.job.options.get("tell_environment") else {}
    if spec.job.options.get("tell_inputs"):
        told["inputs"] = {stage: {file.name: file.read_text() for file in Path(folder).iterdir()} for stage, folder in spec.input_dirs.items()}
    record = ItemRecord(index=arguments.index, epoch=spec.epoch, files=(file_entry(path, relative_to=output),), output=told)
    with contextlib.suppress(AlreadyExistsError):
        FileStorage(output.parent).create_exclusive(ArtifactLayout(output.name).item(spec.job.step_name, arguments.index), canonical_json(record))


if __name__ == "__main__":
    main()
