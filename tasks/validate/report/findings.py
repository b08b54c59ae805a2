"""From figures to findings, each with its remedy. Pure: equal figures give equal findings, in an order that does not change.

The bounds are rules of thumb, here in one place; those of the verdict are the recipe's (`corpus.rules`), judged by Great Expectations.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from tasks.validate.figures.characters import LETTERS, Characters
from tasks.validate.figures.distinct import distinct_of
from tasks.validate.problem import Reason
from tasks.validate.report.column_findings import column_findings
from tasks.validate.report.drift import LARGE_DIVERGENCE, LARGE_PSI, NOTABLE_PSI, Drift, split_drift
from tasks.validate.report.finding import ReportFinding, Severity, Topic
from tasks.validate.stats import CorpusStats

DOMINANT_SHARE: Final = 0.9
"""Share of the text from which one source is most of the corpus."""
FAINT_SHARE: Final = 0.01
"""Share of the text below which a source will hardly be learned."""
MANY_COPIES: Final = 0.2
"""Share of duplicates from which a source is looked at."""
LARGE_CLUSTER: Final = 0.01
"""Share of the records from which one text that is repeated is named."""
MANY_REFUSED: Final = 0.01
"""Share of the records from which a reason of the quarantine is named."""
LENGTH_RATIO: Final = 20.0
"""Ratio of median lengths from which sources are of different scale."""
SHORT_MEDIAN: Final = 100
"""Characters below which half of the documents are very short."""
FEWEST_HELD_OUT: Final = 50
"""Documents below which a held-out split measures little."""
BROKEN_SHARE: Final = 1e-5
"""Share of characters from which signs of a broken encoding are named."""
ODD_SHARE: Final = 1e-3
"""Share of characters from which controls and private code points are named."""
MIXED_SCRIPT: Final = 0.05
"""Share of letters from which a script counts as one of the corpus."""
RECORD_CHANGE: Final = 0.2
"""Change of a number of records that is named."""

_FILES, _LINES = "mend the files, or leave them out", "mend or remove the records: file and row are in the quarantine"
REMEDIES: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {
    Reason.INVALID_UTF8: ("say how the files are encoded, or let it be found out (`auto`)", ("corpus.encoding", "corpus.sources[].encoding")),
    Reason.UNDECODABLE: (
        "the files are not in the encoding that the recipe names; `auto` finds it out",
        ("corpus.encoding", "corpus.sources[].encoding"),
    ),
    Reason.UNKNOWN_ENCODING: (
        "more than one encoding fits: name the right one; or a byte order mark names another: `auto` reads it",
        ("corpus.sources[].encoding",),
    ),
    Reason.NO_CONVERSATION: ("mend the turns of the record: who speaks, and what is said", ("corpus.sources[].text_column",)),
    Reason.INVALID_JSON: (_LINES, ()),
    Reason.NOT_AN_OBJECT: ("each line must be one JSON object; mend what writes the files", ()),
    Reason.BLANK_LINE: ("harmless; mend what writes the files", ()),
    Reason.LINE_TOO_LONG: ("divide long records; a line may have 64 MB", ()),
    Reason.MALFORMED_CSV: ("quote fields that contain separators or quotes", ()),
    Reason.EMPTY_FILE: ("leave empty files out", ("corpus.sources[].exclude",)),
    Reason.TRUNCATED_FILE: ("copy the file again: its end is missing", ("corpus.sources[].exclude",)),
    Reason.DAMAGED_FILE: ("restore the file from its origin", ("corpus.sources[].exclude",)),
    Reason.MISSING_COLUMN: ("name the right column, or mend the records", ("corpus.sources[].text_column", "corpus.rules.required_columns")),
    Reason.WRONG_TYPE: ("mend the values, or change the type that is asked for", ("corpus.rules.required_columns",)),
    Reason.NULL_TEXT: ("fill in the missing texts, or leave such records out where the files are made", ("corpus.sources[].text_column",)),
    Reason.EMPTY_TEXT: ("leave records without text out where the files are made", ("corpus.sources[].text_column",)),
    Reason.BLANK_TEXT: ("leave records without text out where the files are made", ("corpus.sources[].text_column",)),
    Reason.TOO_SHORT: ("put short records together, or lower the bound", ("corpus.rules.min_chars",)),
    Reason.TOO_LONG: ("divide long documents, or raise the bound", ("corpus.rules.max_chars",)),
    Reason.NUL_CHARACTER: ("leave binary files out, or take NUL characters out of the text", ("corpus.sources[].exclude",)),
    Reason.UNPRINTABLE: ("leave binary files out, or say how they are encoded", ("corpus.encoding", "corpus.rules.min_printable_share")),
}
"""What mends a reason of the quarantine, and the keys that are concerned."""


def findings_of(stats: CorpusStats, *, failed: Sequence[tuple[str, str]] = (), drift: Drift | None = None) -> tuple[ReportFinding, ...]:
    """Returns what there is to say about a corpus, what matters most first.

    Args:
        stats: its figures.
        failed: checks of the verdict that failed: what was found, and what mends it.
        drift: how it differs from the previous corpus, if there is one.
    """
    found = [ReportFinding(Severity.FAILED, Topic.COUNTS, text, mend or "look at the reasons in the quarantine") for text, mend in failed]
    found += [*_sources(stats), *_held_out(stats), *_duplicates(stats), *_quarantine(stats)]
    if stats.figures is not None:
        found += [*_lengths(stats), *_characters(stats.figures.whole.characters), *column_findings(stats.figures)]
    found += [] if drift is None else _drift(drift)
    order = list(Severity)
    return tuple(sorted(found, key=lambda finding: order.index(finding.severity)))


def _sources(stats: CorpusStats) -> Iterator[ReportFinding]:
    for source in stats.sources:
        if not source.num_accepted:
            text = f"{source.source}: not one of its {source.read:,} records was accepted"
            keys = ("corpus.sources[].path", "corpus.sources[].text_column")
            yield ReportFinding(Severity.WARNING, Topic.SOURCES, text, f"correct {keys[0]} or {keys[1]}, or leave the source out", keys)
    total = stats.total.lengths.text_bytes
    sizes = {source.source: source.lengths.text_bytes for source in stats.sources if source.num_accepted}
    if len(sizes) < 2:
        return
    keys = ("tokenization.by_source", "training.mixture.weights")
    mend = f"weigh sources in training with {keys[1]} (needs {keys[0]}: true), or add text to the small ones"
    largest = max(sizes, key=lambda name: sizes[name])
    if sizes[largest] >= DOMINANT_SHARE * total:
        text = f"imbalance: {largest} is {sizes[largest] / total:.1%} of the text, the other {len(sizes) - 1} sources together the rest"
        yield ReportFinding(Severity.WARNING, Topic.SOURCES, text, mend, keys)
    if faint := [f"{name} ({size / total:.2%})" for name, size in sizes.items() if size < FAINT_SHARE * total]:
        text = f"sources with less than {FAINT_SHARE:.0%} of the text, which a model will hardly learn: {', '.join(faint)}"
        yield ReportFinding(Severity.NOTE, Topic.SOURCES, text, mend, keys)


def _held_out(stats: CorpusStats) -> Iterator[ReportFinding]:
    for split in ("validation", "test"):
        lengths = stats.total.accepted.get(split)
        if stats.total.num_accepted and lengths is not None and lengths.documents < FEWEST_HELD_OUT:
            key = f"corpus.splits.{split}"
            text = f"the {split} split has {lengths.documents:,} documents: what is measured on so few says little"
            yield ReportFinding(Severity.WARNING, Topic.COUNTS, text, f"add text, or raise {key}", (key,))
    index = split_drift(stats.total)
    if index is not None and index >= LARGE_PSI:
        text = f"held-out documents differ from those of training in length (PSI {index:.2f}): evaluation would mislead"
        keys = ("corpus.splits.validation", "corpus.splits.test")
        yield ReportFinding(Severity.WARNING, Topic.LENGTHS, text, f"raise {keys[0]} and {keys[1]}, so that they are less a matter of chance", keys)


def _duplicates(stats: CorpusStats) -> Iterator[ReportFinding]:
    near = "corpus.preparation.duplicates.near"
    for source in stats.sources:
        copies = source.reasons.get(Reason.DUPLICATE.value, 0)
        if copies >= MANY_COPIES * source.read > 0:
            text = f"{source.source}: {copies / source.read:.1%} of its records ({copies:,}) are copies of others, and were quarantined"
            mend = f"look whether one file is there twice (corpus.sources[].exclude leaves it out); near copies stay unless {near} is on"
            yield ReportFinding(Severity.WARNING, Topic.DUPLICATES, text, mend, ("corpus.sources[].exclude", near))
    if stats.figures is None:
        return
    for doc_id, cluster in stats.figures.refused.clusters.items():
        if cluster.removed >= LARGE_CLUSTER * stats.total.read and cluster.removed > 1:
            text = f"one text is there {cluster.removed + 1:,} times ({doc_id[:12]}…, begins {cluster.excerpt[:60]!r})"
            mend = f"if it is a header or a licence, leave such files out (corpus.sources[].exclude); {near} finds what resembles it"
            yield ReportFinding(Severity.NOTE, Topic.DUPLICATES, text, mend, ("corpus.sources[].exclude", near))
    hashes = stats.figures.whole.hashes
    if hashes and (distinct := distinct_of(hashes)) < (1 - MANY_COPIES / 2) * stats.total.num_accepted:
        text = f"copies were kept: of {stats.total.num_accepted:,} accepted documents about {distinct:,} are different"
        key = "corpus.rules.drop_duplicates"
        yield ReportFinding(Severity.WARNING, Topic.DUPLICATES, text, f"set {key}: true; text that is seen often is memorised", (key,))


def _quarantine(stats: CorpusStats) -> Iterator[ReportFinding]:
    for source in stats.sources:
        for name, count in sorted(source.reasons.items(), key=lambda item: (-item[1], item[0])):
            if name == Reason.DUPLICATE or count < MANY_REFUSED * source.read:
                continue
            text = f"{source.source}: {count:,} records ({count / source.read:.1%}) quarantined: {name}"
            mend, concerned = REMEDIES.get(name, (_FILES, ("corpus.sources[].exclude",)))
            severity = Severity.WARNING if count >= 10 * MANY_REFUSED * source.read else Severity.NOTE
            yield ReportFinding(severity, Topic.QUARANTINE, text, mend + (f" ({', '.join(concerned)})" if concerned else ""), concerned)


def _lengths(stats: CorpusStats) -> Iterator[ReportFinding]:
    assert stats.figures is not None
    medians = {source.source: source.whole.lengths.quantile(0.5) for source in stats.figures.sources}
    known = {name: median for name, median in medians.items() if median is not None and median > 0}
    if len(known) > 1:
        low, high = min(known, key=lambda name: known[name]), max(known, key=lambda name: known[name])
        if known[high] >= LENGTH_RATIO * known[low]:
            text = f"scale: half of {high}'s documents have over {known[high]:,.0f} characters, half of {low}'s under {known[low]:,.0f}"
            keys = ("tokenization.packing", "training.mixture.weights")
            mend = f"{keys[0]}: best_fit keeps short documents whole; weigh by tokens, not documents ({keys[1]})"
            yield ReportFinding(Severity.NOTE, Topic.LENGTHS, text, mend, keys)
    median = stats.figures.whole.lengths.quantile(0.5)
    if median is not None and median < SHORT_MEDIAN:
        packing, attention, bound = keys_of_short = ("tokenization.packing", "training.document_attention", "corpus.rules.min_chars")
        text = f"half of the documents have at most {median:,.0f} characters: a sequence will hold many that have nothing to do with each other"
        mend = f"{packing}: best_fit and {attention}: masked keep them apart; or raise {bound}"
        yield ReportFinding(Severity.NOTE, Topic.LENGTHS, text, mend, keys_of_short)


def _characters(found: Characters) -> Iterator[ReportFinding]:
    total = found.total
    if found.mojibake and found.mojibake >= BROKEN_SHARE * total:
        text = f"{found.mojibake:,} places look like UTF-8 that was read as Latin-1 and encoded again (`Ã©`, `â€™`)"
        mend = "make these files anew from their origin; where they are not UTF-8 themselves, corpus.encoding says what they are"
        yield ReportFinding(Severity.WARNING, Topic.CHARACTERS, text, mend, ("corpus.encoding",))
    if found.replaced and found.replaced >= BROKEN_SHARE * total:
        text = f"{found.replaced:,} characters are U+FFFD: an earlier program could not decode what stood there"
        mend = "make these files anew from their origin, or raise corpus.rules.min_printable_share so that such documents are quarantined"
        yield ReportFinding(Severity.WARNING, Topic.CHARACTERS, text, mend, ("corpus.rules.min_printable_share",))
    for name in ("controls", "private use"):
        if (count := found.classes.get(name, 0)) and count >= ODD_SHARE * total:
            text = f"{count / total:.2%} of the characters are of the class {name}: remains of markup, fonts or binary data"
            mend = "take them out where the files are made, or raise corpus.rules.min_printable_share"
            yield ReportFinding(Severity.NOTE, Topic.CHARACTERS, text, mend, ("corpus.rules.min_printable_share",))
    letters = found.classes.get(LETTERS, 0)
    scripts = [
        f"{name} {count / letters:.0%}" for name, count in sorted(found.scripts.items(), key=lambda item: -item[1]) if count >= MIXED_SCRIPT * letters
    ]
    if len(scripts) > 1:
        keys = ("tokenizer.vocab_size", "corpus.preparation.language.keep")
        mend = f"{keys[0]} has to serve all of them: look at the tokenizer's bytes per token; {keys[1]} leaves languages out"
        yield ReportFinding(Severity.NOTE, Topic.CHARACTERS, f"several scripts: {', '.join(scripts)} of the letters", mend, keys)


def _drift(drift: Drift) -> Iterator[ReportFinding]:
    key = "corpus.rules.max_record_drift"
    records = drift.counts[0]
    if records.share is not None and abs(records.share) >= RECORD_CHANGE:
        text = f"drift: {records.now:,} records, {records.share:+.0%} against the {records.before:,} of {drift.key}"
        yield ReportFinding(Severity.WARNING, Topic.DRIFT, text, f"if that is not meant, look for missing files; {key} makes it fail", (key,))
    for names, what in ((drift.new_sources, "new"), (drift.lost_sources, "vanished")):
        if names:
            text = f"drift: {what} sources against {drift.key}: {', '.join(names)}"
            yield ReportFinding(
                Severity.NOTE, Topic.DRIFT, text, "compare models by source in their evaluations; corpus.sources", ("corpus.sources",)
            )
    for change in drift.sources:
        if change.before and not change.now and change.name not in drift.lost_sources:
            text = f"drift: {change.name} had {change.before:,} accepted documents, and now has none"
            yield ReportFinding(Severity.WARNING, Topic.DRIFT, text, "look for missing files (corpus.sources[].path)", ("corpus.sources[].path",))
    if drift.length_psi is not None and drift.length_psi >= NOTABLE_PSI:
        severity = Severity.WARNING if drift.length_psi >= LARGE_PSI else Severity.NOTE
        text = f"drift: document lengths are distributed otherwise than in {drift.key} (PSI {drift.length_psi:.2f})"
        mend = "look whether documents are divided otherwise now; corpus.rules.min_chars and max_chars bound them"
        yield ReportFinding(severity, Topic.DRIFT, text, mend, ("corpus.rules.min_chars", "corpus.rules.max_chars"))
    if drift.script_divergence is not None and drift.script_divergence >= LARGE_DIVERGENCE:
        text = f"drift: scripts are mixed otherwise than in {drift.key} (divergence {drift.script_divergence:.2f} of 1 bit)"
        mend = "train the tokenizer anew (tokenizer.path: leave it out), and evaluate by source"
        yield ReportFinding(Severity.WARNING, Topic.DRIFT, text, mend, ("tokenizer.path",))
