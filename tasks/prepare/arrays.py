"""The arrays of jobs that `prepare` consists of, in the order in which they run: each plans from what the ones before it came to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from schemas.artifact import FileEntry
from schemas.frozen import thaw
from schemas.job import FileRead, ItemRecord, WorkItem, WorkPlan
from schemas.manifest import AcceptedFile
from schemas.stage import Stage
from tasks.prepare.clusters import ClusterOutput, GroupDocuments
from tasks.prepare.filtering import FilterOutput
from tasks.prepare.held_out import IndexOutput
from tasks.prepare.job import FILTER, FIND_DUPLICATES, INDEX, REMOVE_DUPLICATES
from tasks.prepare.removal import RemovalOutput
from tasks.prepare.reuse import Donor, filter_offers, removal_offers
from tasks.taking_over import finish_items
from tasks.tokenizer.corpus import Corpus
from tasks.work import Work

_MODULE = "tasks.prepare.job"


@dataclass(frozen=True)
class Arrays:
    """What all jobs of one artifact work on."""

    work: Work
    corpus: Corpus
    manifest: FileEntry
    """Of the accepted corpus."""

    @property
    def groups(self) -> dict[int, list[AcceptedFile]]:
        """The accepted files by group, in order."""
        groups: dict[int, list[AcceptedFile]] = {}
        for file in self.corpus.manifest.files:
            groups.setdefault(file.group, []).append(file)
        return groups

    def index(self) -> IndexOutput | None:
        """Returns the index of texts to compare with; None where that is not declared."""
        against = self.work.config.corpus.preparation.decontamination
        if against.ngram is None:
            return None
        files = [file.file for split in against.splits for file in self.corpus.manifest.of_split(split)]
        options = {"files": self.work.identity.inputs.get("compared")}
        weight = sum(file.size for file in files)
        reads = [FileRead(key=self._source, file=file) for file in files]
        (record,) = self._run(INDEX, [WorkItem(index=0, weight_bytes=weight, label="texts to compare with")], options=options, reads=reads)
        found = IndexOutput.model_validate(thaw(record.output))
        named = ", ".join(f"{origin} {count:,}" for origin, count in found.texts.items())
        self.work.note(
            f"compared with {sum(found.texts.values()):,} texts{f' ({named})' if named else ''}, {found.ngrams:,} n-grams of {against.ngram} words"
            + (f"; {found.short_texts:,} texts have fewer words, so nothing can be found of them" if found.short_texts else "")
        )
        return found

    def filter(self, *, index: Sequence[FileEntry], donors: Sequence[Donor]) -> tuple[tuple[FilterOutput, ...], int]:
        """Returns what the steps made of every group, in order, and how many groups were taken over."""
        groups = self.groups
        offered = partial(filter_offers, storage=self.work.storage, groups=groups, donors=donors)
        finish_items(self.work, offered, step_name=FILTER, num_items=len(groups))
        items = [WorkItem(index=at, weight_bytes=_bytes_of(files), label=f"g{group:04d}") for at, (group, files) in enumerate(groups.items())]
        reads = [FileRead(key=self.work.key, file=file) for file in index]
        reads += [FileRead(key=self._source, file=file.file, item=at) for at, files in enumerate(groups.values()) for file in files]
        records = self._run(FILTER, items, options={"groups": list(groups), **_shared(index, donors)}, reads=reads)
        outputs = [thaw(record.output) for record in records]
        return tuple(FilterOutput.model_validate(output["filtered"]) for output in outputs), sum(bool(output["reused"]) for output in outputs)

    def find_duplicates(self, filtered: Sequence[FilterOutput]) -> ClusterOutput | None:
        """Returns what is to be removed; None where duplicates are not looked for, or there is nothing to compare."""
        compared = [
            GroupDocuments(group=each.group, documents={file.split: file.documents for file in each.accepted}, signatures=each.signatures)
            for each in filtered
            if each.signatures is not None
        ]
        if not compared:
            return None
        weight = sum(each.signatures.size for each in compared)
        options = {"groups": [each.model_dump(mode="json") for each in compared]}
        reads = [FileRead(key=self.work.key, file=each.signatures) for each in compared]
        items = [WorkItem(index=0, weight_bytes=weight, label="signatures of all groups")]
        (record,) = self._run(FIND_DUPLICATES, items, options=options, reads=reads)
        return ClusterOutput.model_validate(thaw(record.output))

    def remove_duplicates(
        self, filtered: Sequence[FilterOutput], found: ClusterOutput | None, *, index: Sequence[FileEntry], donors: Sequence[Donor]
    ) -> dict[int, RemovalOutput]:
        """Returns what was removed of each group that holds duplicates."""
        concerned = [each for each in filtered if each.absent or (found is not None and each.group in found.groups)]
        if found is None or not concerned:
            return {}
        accepted = self.groups
        groups = {each.group: accepted[each.group] for each in concerned}
        offered = partial(removal_offers, storage=self.work.storage, groups=groups, donors=donors, listed=found.listed)
        finish_items(self.work, offered, step_name=REMOVE_DUPLICATES, num_items=len(groups))
        items = [WorkItem(index=at, weight_bytes=_bytes_of(each.accepted), label=f"g{each.group:04d}") for at, each in enumerate(concerned)]
        options = {
            "groups": [each.model_dump(mode="json") for each in concerned],
            "file": found.file.model_dump(mode="json") if found.file is not None else None,
            "listed": {str(group): digest for group, digest in found.listed.items()},
        }
        own = [*index, *([found.file] if found.file is not None else [])]
        reads = [FileRead(key=self.work.key, file=entry) for entry in own]
        for at, each in enumerate(concerned):
            reads += [FileRead(key=self.work.key, file=file.file, item=at) for file in each.accepted if file.split not in each.absent]
            reads += [FileRead(key=self._source, file=file.file, item=at) for file in groups[each.group] if each.absent]  # what was not taken over
        records = self._run(REMOVE_DUPLICATES, items, options={**options, **_shared(index, donors)}, reads=reads)
        removals = [RemovalOutput.model_validate(removal) for record in records if (removal := thaw(record.output)["removal"]) is not None]
        return {removal.group: removal for removal in removals}

    @property
    def _source(self) -> str:
        return self.work.inputs[Stage.VALIDATE].key

    def _run(self, step: str, items: Sequence[WorkItem], *, options: Mapping[str, Any], reads: Sequence[FileRead]) -> tuple[ItemRecord, ...]:
        plan = WorkPlan(stage=Stage.PREPARE, step_name=step, items=tuple(items))
        known = {"corpus": self.manifest.model_dump(mode="json"), **options}
        return self.work.run_array(plan, module=_MODULE, options=known, reads=[FileRead(key=self._source, file=self.manifest), *reads])


def _shared(index: Sequence[FileEntry], donors: Sequence[Donor]) -> dict[str, Any]:
    """Returns what every step needs that may look at documents."""
    return {"ngrams": [file.model_dump(mode="json") for file in index], "donors": [donor.model_dump(mode="json") for donor in donors]}


def _bytes_of(files: Sequence[AcceptedFile]) -> int:
    return sum(file.text_bytes for file in files)
