"""The control half of `validate`: plan groups, scan them, remove duplicates across groups, judge the figures, write the manifest."""

import contextlib
import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pydantic import ValidationError

from cluster.layout import REPORT_NAME, ArtifactLayout, parse_artifact_folder
from cluster.storage import Storage, file_entry, walk_files
from schemas.artifact import ArtifactRecord, FileEntry, content_hash_of
from schemas.errors import DataVerdictError, InputError, VerificationError
from schemas.frozen import thaw
from schemas.job import FileRead, WorkItem, WorkPlan
from schemas.manifest import CorpusGroup, CorpusManifest, CorpusPlan, InputFile, raw_hash
from schemas.source_url import is_remote
from schemas.stage import Stage
from tasks.carrying import carry_unseen, drop_carried
from tasks.store import Store
from tasks.taking_over import finish_items, set_aside
from tasks.validate import judge as judging
from tasks.validate.checks import PreviousCorpus, Verdict
from tasks.validate.duplicates import REPEATS_NAME, RemovalOutput, without_repeats
from tasks.validate.figures.corpus import corpus_figures
from tasks.validate.figures.sampling import Sampling, sampling_of
from tasks.validate.grouping import plan_groups
from tasks.validate.job import FIND_REPEATS, PLAN_NAME, REMOVE_REPEATS, SCAN
from tasks.validate.report.publish import publish_report
from tasks.validate.reuse import SCANS, facts_of, find_donors, is_offered, offers
from tasks.validate.sample import merge_samples
from tasks.validate.scan import ScanOutput
from tasks.validate.sources import format_doubts, plan_inputs
from tasks.validate.stats import CorpusStats, SourceStats, corpus_stats
from tasks.work import Draft, Work

logger = logging.getLogger(__name__)

_MODULE = "tasks.validate.job"
_DOCS = "docs"
_SHOWN_FAULTS = 10


def build(work: Work) -> Draft:
    """Makes the accepted corpus and returns its draft. The content hash covers the accepted documents alone: that is what later stages read.

    Raises:
        InputError: a raw file is missing, changed, or lacks a column in all its records.
        DataVerdictError: the corpus was judged and failed; figures, quarantine and Data Docs stay in the artifact's folder.
    """
    corpus = work.config.corpus
    with work.hashes() as hashes:
        inputs = plan_inputs(work.config, hashes)
    if raw_hash(inputs) != work.identity.inputs["raw"]:
        raise InputError("the raw files changed while the run began", why="this corpus would stand under another one's name", mend="headrace run")
    plan = plan_groups(inputs, group_bytes=corpus.group_bytes, source_names=corpus.source_names)
    for doubt in format_doubts(work.config, inputs):
        work.note(doubt)
    plan_entry = _publish_wherever_files_lie(work, PLAN_NAME, plan)
    judging.preload()
    sampling = sampling_of(plan.raw_bytes)
    facts = facts_of(work.identity.recipe, sampling=sampling)
    scans, notes = _scan(work, plan, entry=plan_entry, facts=facts)
    _refuse_faults(scans)
    removals = _remove_repeats(work, scans, sampling=sampling)
    groups = [without_repeats(scan, removals.get(scan.group)) for scan in scans]
    figures = corpus_figures((part for group in groups for part in group.figures), source_names=corpus.source_names, sampling=sampling)
    stats = corpus_stats((part for group in groups for part in group.stats), source_names=corpus.source_names, figures=figures)
    manifest = _manifest(plan, groups=groups, stats=stats)
    manifest_entry = _publish_wherever_files_lie(work, "manifest.json", manifest)
    published = (plan_entry, manifest_entry, work.publish_json("stats.json", stats))
    quarantine = [*(scan.quarantine for scan in scans if scan.quarantine), *(removal.quarantine for removal in removals.values())]
    docs = _judge(work, stats=stats, groups=groups)
    _drop_superseded(work, scans=scans, removals=removals)
    accepted = tuple(file.file for file in manifest.files)
    return Draft(
        files=(*published, *accepted, *quarantine, *notes.files, *docs.files),
        summary={**_summary(stats, manifest=manifest, verdict=docs.verdict), "facts": facts, "reused_groups": notes.reused_groups},
        content_hash=content_hash_of(accepted),
    )


def _publish_wherever_files_lie(work: Work, name: str, value: CorpusPlan | CorpusManifest) -> FileEntry:
    """Publishes what names raw files. An earlier start, which was cut short or refused the corpus, may have found the same ones elsewhere."""
    key = f"{work.key}/{name}"
    if work.storage.exists(key):
        with contextlib.suppress(ValidationError):  # it is something else, which `publish_json` refuses
            earlier = type(value).model_validate_json(work.storage.read(key))
            if earlier != value and earlier.without_places() == value.without_places():
                work.check_lease()  # else it is that of whoever goes on
                work.storage.delete(key)
    return work.publish_json(name, value)


@dataclass(frozen=True)
class _ScanNotes:
    """What the next corpus will want to know of the scans."""

    files: tuple[FileEntry, ...]
    reused_groups: int


def _scan(work: Work, plan: CorpusPlan, *, entry: FileEntry, facts: str) -> tuple[tuple[ScanOutput, ...], _ScanNotes]:
    """Returns the outcome of every group, in order."""
    sizes = [sum(file.size for file in group.inputs) for group in plan.groups]
    items = tuple(
        WorkItem(index=index, weight_bytes=sizes[index], label=f"g{group.index:04d}", num_files=len(group.inputs))
        for index, group in enumerate(plan.groups)
    )
    donors = find_donors(work.storage, work.identity, facts=facts)
    offered = partial(offers, storage=work.storage, groups=plan.groups, donors=donors, facts=facts)
    finish_items(work, offered, step_name=SCAN, num_items=len(plan.groups))
    raw = carry_unseen(work, _read_by_items(work, plan, donors=donors, facts=facts), step_name=SCAN)
    reads = [FileRead(key=work.key, file=entry), *raw]
    options = {"donors": list(donors), "facts": facts}
    records = work.run_array(WorkPlan(stage=Stage.VALIDATE, step_name=SCAN, items=items), module=_MODULE, options=options, reads=reads)
    drop_carried(work)
    reused = sum(bool(record.output["reused"]) for record in records)
    if reused:
        work.note(f"{reused:,} of {len(records):,} groups are taken over from an earlier corpus; their raw files are the same")
    files = tuple(file for record in records for file in record.files if file.path.startswith(SCANS))
    return tuple(ScanOutput.model_validate(thaw(record.output)["scan"]) for record in records), _ScanNotes(files, reused_groups=reused)


def _read_by_items(work: Work, plan: CorpusPlan, *, donors: Sequence[str], facts: str) -> dict[int, Sequence[InputFile]]:
    """Returns item → raw files that it reads. Remote ones of a group that will be taken over are not asked for again."""
    lasting = [donor for donor in donors if work.storage.exists(ArtifactLayout(f"{work.stage.value}/{donor}").record)]  # the others may go meanwhile

    def is_taken(group: CorpusGroup) -> bool:
        is_fetched = work.mirror is None and any(is_remote(file.path) for file in group.inputs)  # in object storage it is taken over by now
        return is_fetched and is_offered(work.output_dir.parent, group, donors=lasting, facts=facts)

    return {index: () if is_taken(group) else group.inputs for index, group in enumerate(plan.groups)}


def _refuse_faults(scans: Sequence[ScanOutput]) -> None:
    """Raises InputError, naming files and columns, when a file lacks a column in all its records."""
    faults = [fault for scan in scans for fault in scan.faults]
    if not faults:
        return
    lines = [f"    {fault.source}/{fault.path}: {fault.problem}, in all {fault.records:,} records" for fault in faults[:_SHOWN_FAULTS]]
    if len(faults) > _SHOWN_FAULTS:
        lines.append(f"    … and {len(faults) - _SHOWN_FAULTS} more")
    raise InputError(
        "\n".join([f"{len(faults)} column(s) are missing or of the wrong type in whole files", *lines]),
        why="a file without the column is the wrong file, or the recipe names the wrong column; nothing was tokenized",
        mend="correct corpus.sources[].text_column or corpus.rules.required_columns, or mend the files",
    )


def _remove_repeats(work: Work, scans: Sequence[ScanOutput], *, sampling: Sampling) -> dict[int, RemovalOutput]:
    """Returns the rewritten groups. Without jobs when no document can be in two places: one group, all of whose hashes were remembered."""
    accepted = {scan.group: scan.accepted for scan in scans if scan.accepted}
    if not work.config.corpus.rules.drop_duplicates or (len(accepted) < 2 and not any(scan.may_repeat for scan in scans)):
        return {}
    files = [file for found in accepted.values() for file in found]
    weight = sum(file.file.size for file in files)
    search = WorkPlan(stage=Stage.VALIDATE, step_name=FIND_REPEATS, items=(WorkItem(index=0, weight_bytes=weight, label="hashes of all groups"),))
    reads = [FileRead(key=work.key, file=file.file) for file in files]
    (record,) = work.run_array(search, module=_MODULE, options={"accepted": [file.model_dump(mode="json") for file in files]}, reads=reads)
    groups = sorted(int(group) for group in record.output["groups"])
    if not groups:
        return {}
    sizes = [sum(file.file.size for file in accepted[group]) for group in groups]
    items = tuple(WorkItem(index=index, weight_bytes=sizes[index], label=f"g{group:04d}") for index, group in enumerate(groups))
    options = {
        "groups": [[file.model_dump(mode="json") for file in accepted[group]] for group in groups],
        "sampling": sampling.model_dump(mode="json"),
    }
    reads = [FileRead(key=work.key, file=file) for file in record.files]
    reads += [FileRead(key=work.key, file=file.file, item=index) for index, group in enumerate(groups) for file in accepted[group]]
    records = work.run_array(WorkPlan(stage=Stage.VALIDATE, step_name=REMOVE_REPEATS, items=items), module=_MODULE, options=options, reads=reads)
    removals = [RemovalOutput.model_validate(thaw(record.output)) for record in records]
    return {removal.group: removal for removal in removals}


def _manifest(plan: CorpusPlan, *, groups: Sequence[ScanOutput], stats: CorpusStats) -> CorpusManifest:
    files = tuple(file for group in groups for file in group.accepted)
    total = stats.total
    written = sum(file.documents for file in files)
    assert written == total.num_accepted, f"{written} documents were written, {total.num_accepted} counted"
    return CorpusManifest(
        files=files,
        inputs=tuple(file for group in plan.groups for file in group.inputs),
        read=total.read,
        accepted=total.num_accepted,
        quarantined=total.num_quarantined,
        reasons=total.reasons,
        encodings=tuple(encoding for group in groups for encoding in group.encodings),
    )


@dataclass(frozen=True)
class _Docs:
    verdict: Verdict
    files: tuple[FileEntry, ...]


def _judge(work: Work, *, stats: CorpusStats, groups: Sequence[ScanOutput]) -> _Docs:
    """Judges the figures and publishes the Data Docs, whatever the verdict.

    Raises:
        DataVerdictError: the verdict is *fail*.
    """
    rules = work.config.corpus.rules
    is_bound = rules.max_record_drift is not None
    previous = previous_corpus(work.storage, name=work.config.name, key=work.key, passes_over_damage=not is_bound)
    sample = merge_samples(document for group in groups for document in group.sample)
    with tempfile.TemporaryDirectory(prefix="headrace-docs-") as scratch:
        name, compared = work.key.rpartition("/")[2], previous if is_bound else None
        judgement = judging.judge(stats, name=name, rules=rules, previous=compared, sample=sample, docs_dir=Path(scratch))
        files = _publish_docs(work, Path(scratch))
    total = stats.total
    counts = f"{total.read:,} records read, {total.num_accepted:,} accepted, {total.num_quarantined:,} quarantined{_reasons(total)}"
    work.note(f"{judgement.verdict.value}: {counts}")
    report = publish_report(work, stats, judgement=judgement, previous=previous)
    for split, lengths in total.accepted.items():
        if not lengths.documents and (split == "train" or getattr(work.config.corpus.splits, split) > 0):
            work.note(f"no document fell into the {split} split: add text, or raise corpus.splits")
    if judgement.verdict is Verdict.FAIL:
        raise _verdict_error(work, judgement)
    return _Docs(verdict=judgement.verdict, files=(*files, report))


def _verdict_error(work: Work, judgement: judging.Judgement) -> DataVerdictError:
    lines, folder = [f"    {finding.suite}: {finding.text}" for finding in judgement.findings], f"{work.storage.url}/{work.key}"
    mends = list(dict.fromkeys(finding.mend for finding in judgement.findings if finding.mend))
    return DataVerdictError(
        "\n".join([f"the corpus failed {len(judgement.findings)} of {judgement.num_checks} checks", *lines]),
        why="nothing after `validate` may use it",
        mend="; ".join([*mends, f"reports: {folder}/{REPORT_NAME}, {folder}/{_DOCS}/index.html, quarantined records: {folder}/quarantine"]),
    )


def _publish_docs(work: Work, site: Path) -> tuple[FileEntry, ...]:
    """Puts the site into the artifact's folder, in place of one that an unfinished start left."""
    work.storage.delete(f"{work.key}/{_DOCS}")
    entries = []
    for path in walk_files(site):
        entry = file_entry(path, relative_to=site)
        name = f"{_DOCS}/{entry.path}"
        work.storage.create_exclusive(f"{work.key}/{name}", path.read_bytes())
        entries.append(entry.model_copy(update={"path": name}))
    return tuple(entries)


def _drop_superseded(work: Work, *, scans: Sequence[ScanOutput], removals: Mapping[int, RemovalOutput]) -> None:
    """Sets the scans' files aside that were rewritten: a later corpus begins with them, and readers of `accepted` must not see them."""
    for scan in scans:
        removal = removals.get(scan.group)
        for file in scan.accepted:
            if removal is not None and file.split in removal.splits:
                set_aside(work, file.file)
    work.storage.delete(f"{work.key}/{REPEATS_NAME}")


def previous_corpus(storage: Storage, *, name: str, key: str, passes_over_damage: bool = False) -> PreviousCorpus | None:
    """Returns the newest finished corpus of the same recipe name other than `key`, or None.

    Args:
        storage: where artifacts are.
        name: the recipe's.
        key: the corpus in the making.
        passes_over_damage: whether a damaged record counts as none: where nothing but a picture depends on it.

    Raises:
        VerificationError: a record is damaged.
    """
    newest: ArtifactRecord | None = None
    store = Store(storage)
    for folder in storage.names(Stage.VALIDATE.value):
        parsed = parse_artifact_folder(folder)
        other = f"{Stage.VALIDATE.value}/{folder}"
        if parsed is None or parsed[0] != name or other == key:
            continue
        try:
            record = store.read(other)
        except FileNotFoundError:  # unfinished, or removed meanwhile
            continue
        except VerificationError as error:
            if not passes_over_damage:
                raise
            logger.warning("not compared with %s: %s", other, error)
            continue
        if newest is None or record.provenance.created_at > newest.provenance.created_at:
            newest = record
    return None if newest is None else PreviousCorpus(key=newest.key, read=int(newest.summary["read"]))


def _summary(stats: CorpusStats, *, manifest: CorpusManifest, verdict: Verdict) -> dict[str, object]:
    total = stats.total
    return {
        "verdict": verdict.value,
        "read": total.read,
        "accepted": total.num_accepted,
        "quarantined": total.num_quarantined,
        "reasons": total.reasons,
        "files": total.files,
        "raw_bytes": total.raw_bytes,
        "text_bytes": total.lengths.text_bytes,
        "groups": len({file.group for file in manifest.files}),
        "documents": {split: lengths.documents for split, lengths in total.accepted.items()},
        "docs": f"{_DOCS}/index.html",
        "report": REPORT_NAME,
    }


def _reasons(total: SourceStats) -> str:
    """Returns the reasons by count, for people."""
    if not total.reasons:
        return ""
    return " (" + ", ".join(f"{reason} {count:,}" for reason, count in sorted(total.reasons.items(), key=lambda item: -item[1])) + ")"
