"""The compute half of `validate`, an array program with three steps.

* `scan`: one item per group of raw files.
* `find-repeats`: one item over the hashes of all groups. Options: `accepted`, the accepted files of the scan.
* `remove-repeats`: one item per group that holds texts of earlier groups. Options: `groups`, for each item the group's accepted files.
"""

from pathlib import Path

from schemas.manifest import AcceptedFile, CorpusPlan
from tasks.entry import ItemOutcome, ItemTask, item_main
from tasks.validate.scan import scan_group

SCAN = "scan"
FIND_REPEATS = "find-repeats"
REMOVE_REPEATS = "remove-repeats"
PLAN_NAME = "plan.json"


def run(task: ItemTask) -> ItemOutcome:
    """Runs one item of the step that the job names."""
    return {SCAN: _scan, FIND_REPEATS: _find_repeats, REMOVE_REPEATS: _remove_repeats}[task.spec.job.step_name](task)


def _scan(task: ItemTask) -> ItemOutcome:
    plan = CorpusPlan.model_validate_json((task.output_dir / PLAN_NAME).read_bytes())
    output = scan_group(plan.groups[task.index], corpus=task.config.corpus, output_dir=task.output_dir, temporary=task.temporary, report=task.report)
    files = [accepted.file for accepted in output.accepted]
    if output.quarantine is not None:
        files.append(output.quarantine)
    return ItemOutcome(files=tuple(files), output=output.model_dump(mode="json"))


def _find_repeats(task: ItemTask) -> ItemOutcome:
    from tasks.validate.duplicates import find_repeats  # duckdb: only where it is needed

    accepted = [AcceptedFile.model_validate(file) for file in task.options["accepted"]]
    threads = task.spec.job.threads_per_rank
    output = find_repeats(accepted, output_dir=task.output_dir, temporary=task.temporary, scratch_dir=Path(task.spec.scratch_dir), threads=threads)
    return ItemOutcome(files=() if output.file is None else (output.file,), output=output.model_dump(mode="json"))


def _remove_repeats(task: ItemTask) -> ItemOutcome:
    from tasks.validate.duplicates import remove_repeats

    accepted = [AcceptedFile.model_validate(file) for file in task.options["groups"][task.index]]
    output = remove_repeats(accepted[0].group, accepted, output_dir=task.output_dir, temporary=task.temporary)
    return ItemOutcome(files=(*(file.file for file in output.accepted), output.quarantine), output=output.model_dump(mode="json"))


if __name__ == "__main__":
    item_main(run)
