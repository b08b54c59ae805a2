"""Runs the stages before training on a recipe without Prefect, as a program: what `flows/prepare_data.py` does, in a second or two less.

Prints one JSON document: the run, and per stage its folder and whether it was made or found.
"""

import json
import sys
from pathlib import Path

from schemas.journal import EventKind
from schemas.recipe import load_recipe
from schemas.stage import Stage
from tasks.runs import create_run, open_run
from tasks.tokenize.build import build as tokenize
from tasks.tokenizer.build import build as make_tokenizer
from tasks.validate.build import build as validate
from tasks.wiring import Listener, bench_of, find_or_make, ignore_view

_ENDS = {EventKind.STAGE_FINISHED: "made", EventKind.STAGE_REUSED: "found"}


def main() -> None:
    loaded = load_recipe(Path(sys.argv[1]), tuple(sys.argv[2:]))
    handle = create_run(loaded.config, project_dir=loaded.project_dir, recipe=str(loaded.path))
    run = open_run(handle)
    run.append(EventKind.RUN_STARTED)
    listener = Listener(note=lambda line: print(line, file=sys.stderr), view=ignore_view)
    for stage, build in ((Stage.VALIDATE, validate), (Stage.TOKENIZER, make_tokenizer), (Stage.TOKENIZE, tokenize)):
        find_or_make(stage, bench=bench_of(handle, listener=listener), build=build)
    run.append(EventKind.RUN_FINISHED)
    stages = {str(event.stage): [_ENDS[event.kind], event.artifact_key] for event in run.events() if event.kind in _ENDS}
    print(json.dumps({"run_id": handle.run_id, "stages": stages}))


if __name__ == "__main__":
    main()
