"""The compute half of `validate`, an array program with three steps.

* `scan`: one item per group of raw files. Options: `donors`, folders of earlier corpora whose groups may be taken over; `facts`, how they were made.
* `find-repeats`: one item over the hashes of all groups. Options: `accepted`, the accepted files of the scan.
* `remove-repeats`: one item per group that holds texts of earlier groups. Options: `groups`, for each item the group's accepted files; `sampling`,
  which documents figures look at closely.
"""

from functools import partial
from pathlib import Path

from cluster.storage import file_entry, make_folder, publish_file
from schemas.artifact import FileEntry
from schemas.manifest import AcceptedFile, CorpusPlan, raw_hash
from tasks.carrying import place_of
from tasks.entry import ItemOutcome, ItemTask, item_main
from tasks.validate.figures.sampling import Sampling, sampling_of
from tasks.validate.reuse import GroupScan, files_of, scan_name, take_group
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
    group = plan.groups[task.index]
    facts = str(task.options["facts"])
    taken = take_group(task, group, donors=task.options["donors"], facts=facts)
    output = taken or scan_group(
        group,
        corpus=task.config.corpus,
        output_dir=task.output_dir,
        temporary=task.temporary,
        report=task.report,
        sampling=sampling_of(plan.raw_bytes),
        place_of=partial(place_of, task),
    )
    scan = _publish(task, scan_name(group.index), GroupScan(facts=facts, raw=raw_hash(group.inputs), output=output).sealed())
    return ItemOutcome(files=(*files_of(output), scan), output={"scan": output.model_dump(mode="json"), "reused": taken is not None})


def _publish(task: ItemTask, name: str, value: GroupScan) -> FileEntry:
    """Publishes a small file and returns its entry."""
    temporary, final = task.temporary(name), task.output_dir / name
    temporary.write_bytes(value.to_bytes())
    entry = file_entry(temporary, relative_to=temporary.parent).model_copy(update={"path": name})
    make_folder(final.parent)
    publish_file(temporary, final)
    return entry


def _find_repeats(task: ItemTask) -> ItemOutcome:
    from tasks.validate.duplicates import find_repeats  # duckdb: only where it is needed

    accepted = [AcceptedFile.model_validate(file) for file in task.options["accepted"]]
    threads = task.spec.job.threads_per_rank
    output = find_repeats(accepted, output_dir=task.output_dir, temporary=task.temporary, scratch_dir=Path(task.spec.scratch_dir), threads=threads)
    return ItemOutcome(files=() if output.file is None else (output.file,), output=output.model_dump(mode="json"))


def _remove_repeats(task: ItemTask) -> ItemOutcome:
    from tasks.validate.duplicates import remove_repeats

    accepted = [AcceptedFile.model_validate(file) for file in task.options["groups"][task.index]]
    sampling = Sampling.model_validate(task.options["sampling"])
    output = remove_repeats(accepted[0].group, accepted, output_dir=task.output_dir, temporary=task.temporary, sampling=sampling)
    return ItemOutcome(files=(*(file.file for file in output.accepted), output.quarantine), output=output.model_dump(mode="json"))


if __name__ == "__main__":
    item_main(run)
