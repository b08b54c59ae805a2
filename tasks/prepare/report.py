"""The page about a prepared corpus: what each step read, changed and refused, and what is left. Pure; drawn by the template of the data report."""

from collections.abc import Iterator
from typing import Final

from tasks.prepare.stats import PreparationStats, StepStats
from tasks.validate.report.finding import ReportFinding, Severity, Topic
from tasks.validate.report.page import Fact, Page
from tasks.validate.report.sections import counts_section, lengths_section, sources_section
from tasks.validate.report.view import Listing, Plot, Section, Table, bars_of, of_bytes, of_share
from tasks.validate.stats import SourceStats

MANY_REFUSED: Final = 0.5
"""Share of what came to a step, or of a source, from which its refusals are a finding."""


def preparation_page(stats: PreparationStats, *, key: str) -> Page:
    """Returns the report of a prepared corpus. `key`: its artifact."""
    total = stats.total
    kept = f"{total.num_accepted:,} of {total.read:,} documents stay"
    facts = (
        Fact("documents left", f"{total.num_accepted:,}"),
        Fact("text left", of_bytes(total.lengths.text_bytes)),
        Fact("refused", f"{total.num_quarantined:,}"),
        Fact("changed, by all steps", f"{sum(step.changed for step in stats.steps):,}"),
    )
    findings = tuple(_findings(stats))
    return Page(
        title="Preparation report",
        key=key,
        headline=kept,
        tone="warn" if findings else "good",
        summary=f"{total.read:,} read = {total.num_accepted:,} kept + {total.num_quarantined:,} refused, in every source.",
        facts=facts,
        findings=findings,
        sections=(steps_section(stats), *_duplicates(stats), _refused(stats), counts_section(stats), sources_section(stats), lengths_section(stats)),
        links=(("figures", "../stats.json"),),
    )


def steps_section(stats: PreparationStats) -> Section:
    """Returns what each step that looks at documents one by one did, in order."""
    refused = [(step.name, float(step.num_refused), f"{of_share(_share(step))} · {step.num_refused:,}") for step in stats.steps]
    changed = [(step.name, float(step.changed), f"{step.changed:,}") for step in stats.steps]
    rows = [
        (step.name, f"{step.read:,}", f"{step.changed:,}", f"{step.num_refused:,}", _list_of(step.refused), _list_of(step.counts))
        for step in stats.steps
    ]
    heads = ("step", "read", "changed", "refused", "reasons", "done in documents")
    plots: list[Plot] = [bars_of("Refused by step, as a share of what came to it", refused, tone=4), bars_of("Changed by step", changed, tone=2)]
    plots.append(Listing("Steps, in their order", Table(heads, tuple(rows), prose=frozenset({4, 5}))))
    text = "Each step sees what the ones before it left."
    if stats.compared_with:
        text += f" Training documents were compared with these texts: {_list_of(stats.compared_with)}."
    return Section("steps", "Steps", text, tuple(plots) if stats.steps else ())


def _duplicates(stats: PreparationStats) -> Iterator[Section]:
    found = stats.duplicates
    if found is None:
        return
    rows = tuple((cluster.kept, f"{cluster.documents:,}", cluster.split) for cluster in found.largest)
    shown = [(cluster.kept[:12] + "…", float(cluster.documents), f"{cluster.documents:,}") for cluster in found.largest[:15]]
    text = f"{found.compared:,} documents were compared. Sets of two or more that are the same, or nearly: {found.clusters:,}; one of each stays."
    text += f" Training documents that went because they resemble a held-out one: {found.refused_for_held_out:,}."
    table = Table(("doc_id of the one that stays", "documents", "its split"), rows, prose=frozenset({2}))
    yield Section(
        Topic.DUPLICATES, "Duplicates", text, (bars_of("Largest sets", shown, tone=3), Listing("Largest sets, by size", table)) if rows else ()
    )


def _refused(stats: PreparationStats) -> Section:
    reasons = sorted(stats.total.reasons.items(), key=lambda item: (-item[1], item[0]))
    read = stats.total.read
    bars = bars_of("Documents by reason", [(name, float(count), f"{of_share(count / read)} · {count:,}") for name, count in reasons], tone=4)
    names = [name for name, _ in reasons]
    table = Table(("source", *names), tuple((source.source, *(f"{source.reasons.get(name, 0):,}" for name in names)) for source in stats.sources))
    text = "Every refused document is in quarantine/*.parquet, with file, row, reason, figures and excerpt."
    return Section(
        Topic.QUARANTINE, "Refused", text if reasons else "Nothing was refused.", (bars, Listing("Reasons by source", table)) if reasons else ()
    )


def _findings(stats: PreparationStats) -> Iterator[ReportFinding]:
    for step in stats.steps:
        if step.num_refused >= MANY_REFUSED * step.read > 0:
            key = f"corpus.preparation.{step.name}"
            text = f"{step.name} refuses {_share(step):.0%} of the {step.read:,} documents that come to it: {_list_of(step.refused)}"
            mend = f"look at the quarantine whether these are what you want out; {key} has the limits"
            yield ReportFinding(Severity.WARNING, Topic.QUARANTINE, text, mend, (key,))
    for source in stats.sources:
        if source.num_quarantined >= MANY_REFUSED * source.read > 0:
            text = f"{source.source} loses {source.num_quarantined / source.read:.0%} of its documents: {_most(source)}"
            mend = "its share of the corpus is another one now: weigh it with training.mixture.weights, or loosen that step of corpus.preparation"
            yield ReportFinding(Severity.WARNING, Topic.SOURCES, text, mend, ("training.mixture.weights", "corpus.preparation"))


def _share(step: StepStats) -> float:
    return step.num_refused / step.read if step.read else 0.0


def _most(source: SourceStats) -> str:
    reason, count = max(source.reasons.items(), key=lambda item: (item[1], item[0]))
    return f"most of them ({count:,}) by {reason}"


def _list_of(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])))
