"""From figures to the sections about records: duplicates, quarantine, and drift against the corpus before. Pure."""

from typing import Final

from tasks.validate.figures.distinct import distinct_of
from tasks.validate.figures.refused import Refused
from tasks.validate.problem import Reason
from tasks.validate.report.drift import Change, Drift
from tasks.validate.report.finding import Topic
from tasks.validate.report.sections import shown_sources
from tasks.validate.report.view import Column, HistogramPlot, Listing, Part, Plot, Section, Table, bars_of, octave_ticks, of_share
from tasks.validate.stats import CorpusStats

_SHOWN_CLUSTERS: Final = 15
_ID_CHARS: Final = 12


def duplicates_section(stats: CorpusStats) -> Section:
    """Returns duplicates by source, and the largest clusters of them."""
    copies = {source.source: source.reasons.get(Reason.DUPLICATE.value, 0) for source in shown_sources(stats)}
    plots: list[Plot] = []
    if any(copies.values()):
        read = {source.source: source.read for source in stats.sources}
        shares = [(name, float(count), f"{of_share(count / read[name] if read[name] else 0.0)} · {count:,}") for name, count in copies.items()]
        plots.append(bars_of("Copies that were quarantined, by source", shares, tone=3))
    if stats.figures is not None and (refused := stats.figures.refused).clusters:
        plots += _clusters(refused)
    total = stats.total.reasons.get(Reason.DUPLICATE.value, 0)
    text = f"Records whose text is that of an earlier one, byte for byte: {total:,} were quarantined, and the first of each stays."
    hashes = stats.figures.whole.hashes if stats.figures is not None else ()
    if hashes:
        text = f"Copies were kept (corpus.rules.drop_duplicates is off): about {distinct_of(hashes):,} of {stats.total.num_accepted:,} are different."
    return Section(Topic.DUPLICATES, "Duplicates", text, tuple(plots))


def _clusters(refused: Refused) -> list[Plot]:
    shown = list(refused.clusters.items())[:_SHOWN_CLUSTERS]
    bars = [(f"{doc_id[:_ID_CHARS]}… {cluster.excerpt[:60]}", float(cluster.removed), f"{cluster.removed:,}") for doc_id, cluster in shown]
    exact = "" if not refused.unlisted else f"; a cluster may have up to {refused.unlisted:,} more than was counted"
    rows = tuple((doc_id, f"{cluster.removed + 1:,}", cluster.excerpt) for doc_id, cluster in refused.clusters.items())
    table = Table(("doc_id of the text", "records with it", "it begins"), rows, prose=frozenset({2}))
    return [bars_of(f"Largest clusters: copies removed{exact}", bars, tone=3, is_wide=True), Listing("Clusters of duplicates", table)]


def quarantine_section(stats: CorpusStats) -> Section:
    """Returns reasons, and records of each to look at."""
    reasons = sorted(stats.total.reasons.items(), key=lambda item: (-item[1], item[0]))
    if not reasons:
        return Section(Topic.QUARANTINE, "Quarantine", "Nothing was quarantined.", ())
    read = stats.total.read
    plots: list[Plot] = [
        bars_of("Records by reason", [(name, float(count), f"{of_share(count / read)} · {count:,}") for name, count in reasons], tone=4)
    ]
    names = [name for name, _ in reasons]
    by_source = tuple((source.source, *(f"{source.reasons.get(name, 0):,}" for name in names)) for source in stats.sources)
    plots.append(Listing("Reasons by source", Table(("source", *names), by_source)))
    samples = stats.figures.refused.samples if stats.figures is not None else {}
    for name in names:
        if samples.get(name):
            rows = tuple((f"{sample.source}/{sample.path}", f"{sample.row:,}", sample.detail, sample.excerpt) for sample in samples[name])
            plots.append(Listing(f"Samples: {name}", Table(("file", "row", "found", "it begins"), rows, prose=frozenset({2, 3}))))
    text = "What was refused and why. Samples are chosen by hash; every record is in quarantine/*.parquet, with file, row, reason and excerpt."
    return Section(Topic.QUARANTINE, "Quarantine", text, tuple(plots))


def drift_section(drift: Drift | None, *, why_not: str = "") -> Section:
    """Returns how the corpus differs from the one before. `why_not`: why there is nothing to compare with."""
    if drift is None:
        return Section(Topic.DRIFT, "Drift", why_not or "There is no earlier corpus of this name to compare with.", ())
    plots: list[Plot] = [Listing("Counts", _changes("", drift.counts)), Listing("Accepted documents by source", _changes("source", drift.sources))]
    before, now = drift.lengths
    if before and now:
        plots.append(_lengths(before, now))
    if drift.scripts:
        plots.append(Listing("Letters by script, in the documents that were looked at", _changes("script", drift.scripts)))
    index = "too few documents for an index" if drift.length_psi is None else f"{drift.length_psi:.3f}"
    apart = "unknown" if drift.script_divergence is None else f"{drift.script_divergence:.3f} bit"
    text = f"Against {drift.key}. Population stability index of lengths (above 0.25: another population): {index}."
    return Section(Topic.DRIFT, "Drift", f"{text} Divergence of scripts (0 to 1): {apart}.", tuple(plots))


def _changes(of: str, changes: tuple[Change, ...]) -> Table:
    rows = []
    for change in changes:
        share = "" if change.share is None else f"{change.share:+.1%}"
        state = "new" if not change.before and change.now else "vanished" if change.before and not change.now else share
        rows.append((change.name, f"{change.before:,}", f"{change.now:,}", state))
    return Table((of, "before", "now", "change"), tuple(rows))


def _lengths(before: tuple[int, ...], now: tuple[int, ...]) -> HistogramPlot:
    used = [index for counts in (before, now) for index, count in enumerate(counts) if count]
    first, last = min(used), max(used)
    width = 100 / (last - first + 1)
    shares = [[count / sum(counts) for count in (*counts, *[0] * (last + 1 - len(counts)))] for counts in (before, now)]
    tallest = max(max(each) for each in shares)
    columns, rows = [], []
    for index in range(first, last + 1):
        for place, each in enumerate(shares):
            left = (index - first + (0.1 if place == 0 else 0.5)) * width
            columns.append(Column(round(left, 2), round(width * 0.4, 2), round(100 * each[index] / tallest, 2), 7 if place == 0 else 0))
        low = 1 << index - 1 if index else 0
        rows.append((f"from {low:,}", *(f"{counts[index] if index < len(counts) else 0:,}" for counts in (before, now))))
    table, legend = Table(("characters", "before", "now"), tuple(rows)), (Part("before", 0, 7), Part("now", 0, 0))
    return HistogramPlot("Characters per document, before and now", tuple(columns), octave_ticks(first, last), table, legend)
