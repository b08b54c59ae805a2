"""The control half of `prepare`: the declared steps over each corpus group, duplicates over all of them, and the manifest of what is left.

The artifact has the form of an accepted corpus: what reads one reads the other. Accepted + refused = read, always.
"""

from collections.abc import Iterator, Mapping, Sequence

from schemas.artifact import FileEntry, content_hash_of
from schemas.errors import InputError
from schemas.manifest import CorpusManifest
from schemas.stage import Stage
from tasks.prepare.arrays import Arrays
from tasks.prepare.clusters import ClusterOutput
from tasks.prepare.filtering import FilterOutput
from tasks.prepare.removal import RemovalOutput, without_duplicates
from tasks.prepare.report import preparation_page
from tasks.prepare.reuse import GROUPS_NAME, GroupRecord, PreparedGroups, facts_of, find_donors
from tasks.prepare.rows import INDEX_FOLDER
from tasks.prepare.stats import DuplicateStats, PreparationStats, StepStats, merge_steps
from tasks.recorded_file import entry_of
from tasks.tokenizer.corpus import MANIFEST_NAME, open_corpus
from tasks.validate.report.publish import publish_page
from tasks.validate.stats import corpus_stats
from tasks.work import Draft, Work


def build(work: Work) -> Draft:
    """Makes the prepared corpus and returns its draft. The content hash covers the documents alone: that is what later stages read.

    Raises:
        InputError: a file to compare with is missing or not text, or no training document is left.
    """
    entry = entry_of(work.inputs[Stage.VALIDATE], MANIFEST_NAME)
    arrays = Arrays(work=work, corpus=open_corpus(work.input_dir(Stage.VALIDATE, entry), manifest=entry), manifest=entry)
    compared = arrays.index()
    index = compared.files if compared is not None else ()
    facts = facts_of(work.config, index=index)
    donors = find_donors(work.storage, work.identity, facts=facts)
    filtered, num_reused = arrays.filter(index=index, donors=donors)
    found = arrays.find_duplicates(filtered)
    removals = arrays.remove_duplicates(filtered, found, index=index, donors=donors)
    groups = [without_duplicates(each, removals.get(each.group)) for each in filtered]
    stats = _stats(work, groups, found, compared_with=compared.texts if compared is not None else {})
    manifest = _manifest(arrays.corpus.manifest, groups=groups, stats=stats)
    _tell(work, stats, num_reused=num_reused)
    report = publish_page(work, preparation_page(stats, key=work.key))
    _refuse_nothing_left(manifest, stats)
    heads = {MANIFEST_NAME: manifest, "stats.json": stats, GROUPS_NAME: _groups(arrays, filtered, removals=removals, found=found)}
    published = [work.publish_json(name, content) for name, content in heads.items()]
    published += [entry for each in filtered for entry in (each.quarantine, each.signatures) if entry is not None]
    published += [removal.quarantine for removal in removals.values()]
    _drop_superseded(work, filtered=filtered, removals=removals, index=index, found=found)
    accepted = tuple(file.file for file in manifest.files)
    summary = _summary(stats, manifest) | {"reused_groups": num_reused, "facts": facts}
    return Draft(files=(*published, report, *accepted), summary=summary, content_hash=content_hash_of(accepted))


def _groups(
    arrays: Arrays, filtered: Sequence[FilterOutput], *, removals: Mapping[int, RemovalOutput], found: ClusterOutput | None
) -> PreparedGroups:
    """Returns what later artifacts need to know to take groups over."""
    read = {group: {file.split: file.file.xxh3 for file in files} for group, files in arrays.groups.items()}
    listed = found.listed if found is not None else {}
    return PreparedGroups(
        groups=tuple(
            GroupRecord(
                read=read[each.group],
                filtered=each.model_copy(update={"absent": ()}),
                listed=listed.get(each.group),
                removal=removals.get(each.group),
            )
            for each in filtered
        )
    )


def _drop_superseded(
    work: Work,
    *,
    filtered: Sequence[FilterOutput],
    removals: Mapping[int, RemovalOutput],
    index: Sequence[FileEntry],
    found: ClusterOutput | None,
) -> None:
    """Deletes what was made on the way, once nothing reads it any more."""
    superseded = [file.file for each in filtered for file in each.accepted if each.group in removals and file.split in removals[each.group].splits]
    superseded += [found.file] if found is not None and found.file is not None else []
    for name in (*(entry.path for entry in superseded), *([INDEX_FOLDER] if index else [])):
        work.storage.delete(f"{work.key}/{name}")


def _stats(work: Work, groups: Sequence[FilterOutput], found: ClusterOutput | None, *, compared_with: Mapping[str, int]) -> PreparationStats:
    """Returns the figures; that accepted + refused = read, by source and in all, is asserted."""
    known = {part.source for each in groups for part in each.sources}
    names = tuple(name for name in work.config.corpus.source_names if name in known)
    stats = corpus_stats((part for each in groups for part in each.sources), source_names=names)
    duplicates = found.stats if found is not None else DuplicateStats() if "duplicates" in work.config.corpus.preparation.steps else None
    return PreparationStats(
        sources=stats.sources,
        total=stats.total,
        compared_with=dict(compared_with),
        steps=merge_steps(each.steps for each in groups),
        duplicates=duplicates,
    )


def _manifest(corpus: CorpusManifest, *, groups: Sequence[FilterOutput], stats: PreparationStats) -> CorpusManifest:
    files, total = tuple(file for each in groups for file in each.accepted), stats.total
    written = sum(file.documents for file in files)
    assert total.read == corpus.accepted, f"{total.read} documents were read, {corpus.accepted} were accepted before"
    assert written == total.num_accepted, f"{written} documents were written, {total.num_accepted} counted"
    return CorpusManifest(
        files=files,
        inputs=corpus.inputs,
        read=total.read,
        accepted=total.num_accepted,
        quarantined=total.num_quarantined,
        reasons=total.reasons,
    )


def _tell(work: Work, stats: PreparationStats, *, num_reused: int) -> None:
    """Notes one line per step."""
    if num_reused:
        work.note(f"{num_reused:,} groups taken over from earlier artifacts")
    for step in stats.steps:
        changed = f", {step.changed:,} changed" if step.changed else ""
        work.note(f"{step.name}: {step.read:,} documents read{changed}, {step.num_refused:,} refused{_named(step.refused)}{_done(step)}")
    if (found := stats.duplicates) is not None:
        held_out = f"; {found.refused_for_held_out:,} of them resemble held-out documents" if found.refused_for_held_out else ""
        largest = f", the largest of {found.largest[0].documents:,}" if found.largest else ""
        refused = sum(found.refused.values())
        work.note(
            f"duplicates: {found.compared:,} documents in {found.clusters:,} sets{largest}, {refused:,} refused{_named(found.refused)}{held_out}"
        )


def _named(reasons: Mapping[str, int]) -> str:
    return " (" + ", ".join(f"{reason} {count:,}" for reason, count in _by_count(reasons)) + ")" if reasons else ""


def _done(step: StepStats) -> str:
    return "; " + ", ".join(f"{kind} {count:,}" for kind, count in _by_count(step.counts)) if step.counts else ""


def _by_count(counts: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    yield from sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _refuse_nothing_left(manifest: CorpusManifest, stats: PreparationStats) -> None:
    """Raises InputError when preparation left nothing to train on."""
    if sum(file.documents for file in manifest.of_split("train")):
        return
    raise InputError(
        "preparation leaves no training document",
        why=f"of {stats.total.read:,} documents {stats.total.num_quarantined:,} were refused{_named(stats.total.reasons)}",
        mend="loosen or remove the steps in corpus.preparation that refuse most",
    )


def _summary(stats: PreparationStats, manifest: CorpusManifest) -> dict[str, object]:
    total = stats.total
    return {
        "read": total.read,
        "accepted": total.num_accepted,
        "quarantined": total.num_quarantined,
        "reasons": total.reasons,
        "text_bytes": total.lengths.text_bytes,
        "groups": len({file.group for file in manifest.files}),
        "documents": {split: lengths.documents for split, lengths in total.accepted.items()},
        "steps": [step.name for step in stats.steps] + (["duplicates"] if stats.duplicates is not None else []),
    }
