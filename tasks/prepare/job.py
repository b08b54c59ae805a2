"""The compute half of `prepare`, an array program with four steps. A recipe needs those that its declared steps need.

* `index`: one item over the texts to compare with. Options: `corpus`, the entry of the accepted corpus' manifest; `files`, the hash of named files.
* `filter`: one item per corpus group. Options: `corpus`; `groups`, the group of each item; `ngrams`, the entries of the index; `donors`, earlier
  artifacts whose groups may be taken over.
* `find-duplicates`: one item over the signatures of all groups. Options: `groups`, what each of them has to compare.
* `remove-duplicates`: one item per group that holds duplicates, or held some where it was taken over from. Options: `corpus`, `ngrams`, `donors`;
  `groups`, for each item what the steps made of the group; `file`, the entry of the list of duplicates; `listed`, by group its part's hash.
"""

from pathlib import Path

from schemas.artifact import FileEntry
from schemas.frozen import thaw
from schemas.manifest import SPLITS, AcceptedFile
from schemas.stage import Stage
from tasks.entry import ItemOutcome, ItemTask, item_main
from tasks.prepare.filtering import FilterOutput
from tasks.prepare.reuse import Donor, Reuse
from tasks.recorded_file import verified_path
from tasks.tokenizer.corpus import Corpus, open_corpus

INDEX = "index"
FILTER = "filter"
FIND_DUPLICATES = "find-duplicates"
REMOVE_DUPLICATES = "remove-duplicates"


def run(task: ItemTask) -> ItemOutcome:
    """Runs one item of the step that the job names."""
    steps = {INDEX: _index, FILTER: _filter, FIND_DUPLICATES: _find_duplicates, REMOVE_DUPLICATES: _remove_duplicates}
    return steps[task.spec.job.step_name](task)


def _index(task: ItemTask) -> ItemOutcome:
    from tasks.prepare.held_out import build_index

    corpus = _corpus(task)
    against = task.config.corpus.preparation.decontamination
    output = build_index(
        [file for split in against.splits for file in corpus.manifest.of_split(split)],
        folder=corpus.folder,
        config=task.config.corpus,
        prompts=task.config.evaluation.prompts if against.compares_prompts else (),
        expected_files=task.options["files"],
        scratch_dir=Path(task.spec.scratch_dir),
        output_dir=task.output_dir,
        temporary=task.temporary,
    )
    return ItemOutcome(files=output.files, output=output.model_dump(mode="json"))


def _filter(task: ItemTask) -> ItemOutcome:
    group = int(task.options["groups"][task.index])
    reuse = _reuse(task, group)
    output = reuse.take_filtered() if reuse is not None else None
    reused = output is not None
    output = output or _filtered(task, group)
    return ItemOutcome(files=tuple(_files_of(output)), output={"filtered": output.model_dump(mode="json"), "reused": reused})


def _find_duplicates(task: ItemTask) -> ItemOutcome:
    from tasks.prepare.clusters import GroupDocuments, find_duplicates

    output = find_duplicates(
        [GroupDocuments.model_validate(group) for group in thaw(task.options["groups"])],
        config=task.config.corpus.preparation.duplicates,
        output_dir=task.output_dir,
        temporary=task.temporary,
        scratch_dir=Path(task.spec.scratch_dir),
    )
    return ItemOutcome(files=() if output.file is None else (output.file,), output=output.model_dump(mode="json"))


def _remove_duplicates(task: ItemTask) -> ItemOutcome:
    from tasks.prepare.removal import remove_duplicates

    options = thaw(task.options)
    filtered = FilterOutput.model_validate(options["groups"][task.index])
    listed, reuse = options["listed"].get(str(filtered.group)), _reuse(task, filtered.group)
    output = reuse.take_removal(listed) if reuse is not None else None
    made: list[FileEntry] = []
    if output is None:
        if filtered.absent:
            filtered = _filtered(task, filtered.group)
            made = _files_of(filtered)
        if listed is not None:
            entry = FileEntry.model_validate(options["file"])
            output = remove_duplicates(filtered.accepted, entry, output_dir=task.output_dir, temporary=task.temporary)
    made += [*(file.file for file in output.accepted), output.quarantine] if output is not None else []
    return ItemOutcome(files=tuple(made), output={"removal": output.model_dump(mode="json") if output is not None else None})


def _filtered(task: ItemTask, group: int) -> FilterOutput:
    """Applies the steps to a group's documents."""
    from tasks.prepare.filtering import filter_group
    from tasks.prepare.ngram_index import NgramIndex

    paths = [verified_path(task.output_dir, FileEntry.model_validate(entry), subject="index of held-out texts") for entry in task.options["ngrams"]]
    corpus = _corpus(task)
    return filter_group(
        _accepted(corpus, group),
        folder=corpus.folder,
        config=task.config.corpus,
        ngrams=NgramIndex.load(paths[0].parent) if paths else None,
        output_dir=task.output_dir,
        temporary=task.temporary,
        report=task.report,
    )


def _files_of(filtered: FilterOutput) -> list[FileEntry]:
    """Returns the files of a group that are there."""
    files = [file.file for file in filtered.accepted if file.split not in filtered.absent]
    return files + [entry for entry in (filtered.quarantine, filtered.signatures) if entry is not None]


def _reuse(task: ItemTask, group: int) -> Reuse | None:
    donors = [Donor.model_validate(donor) for donor in thaw(task.options["donors"])]
    return Reuse.of_group(task, donors, accepted=_accepted(_corpus(task), group)) if donors else None


def _accepted(corpus: Corpus, group: int) -> list[AcceptedFile]:
    return [file for split in SPLITS for file in corpus.manifest.of_split(split) if file.group == group]


def _corpus(task: ItemTask) -> Corpus:
    return open_corpus(task.input_dirs[Stage.VALIDATE], manifest=FileEntry.model_validate(thaw(task.options["corpus"])))


if __name__ == "__main__":
    item_main(run)
