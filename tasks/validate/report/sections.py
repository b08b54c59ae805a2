"""From figures to the sections of the page: counts, sources, lengths, characters. Pure."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from schemas.manifest import SPLITS
from tasks.validate.figures.characters import CLASSES
from tasks.validate.figures.corpus import CorpusFigures
from tasks.validate.figures.histogram import Histogram
from tasks.validate.figures.languages import KEPT_DOCUMENTS, language_counts
from tasks.validate.report.finding import Topic
from tasks.validate.report.view import (
    TONES,
    Axis,
    Boxes,
    BoxRow,
    Column,
    HistogramPlot,
    Listing,
    Part,
    Places,
    Plot,
    Section,
    Stack,
    Stacks,
    Table,
    bars_of,
    octave_ticks,
    of_bytes,
    of_share,
)
from tasks.validate.stats import CorpusStats, Lengths, SourceStats

MOST_SHOWN: Final = 30
"""Sources that get plots of their own, the ones with most text; tables have all."""


def shown_sources(stats: CorpusStats) -> tuple[SourceStats, ...]:
    """Returns the sources with plots of their own, in the order of the recipe."""
    largest = sorted(stats.sources, key=lambda source: -source.lengths.text_bytes)[:MOST_SHOWN]
    names = {source.source for source in largest}
    return tuple(source for source in stats.sources if source.source in names)


def counts_section(stats: CorpusStats) -> Section:
    """Returns the counts that balance, by source."""
    rows = []
    for source in (*stats.sources, stats.total):
        splits = tuple(f"{source.accepted[split].documents if split in source.accepted else 0:,}" for split in SPLITS)
        row = (source.source, f"{source.files:,}", of_bytes(source.raw_bytes), f"{source.read:,}", f"{source.num_accepted:,}")
        rows.append((*row, f"{source.num_quarantined:,}", *splits))
    total = stats.total
    text = f"{total.read:,} records read = {total.num_accepted:,} accepted + {total.num_quarantined:,} quarantined."
    table = Table(("source", "files", "raw size", "read", "accepted", "quarantined", *SPLITS), tuple(rows))
    return Section(Topic.COUNTS, "Counts", f"{text} They balance in every source.", (Listing("Records and documents by source", table),))


def sources_section(stats: CorpusStats) -> Section:
    """Returns the sources' shares of the text, of documents and of raw bytes."""
    sources, total = shown_sources(stats), stats.total
    measures = (
        ("text, UTF-8 bytes", {source.source: source.lengths.text_bytes for source in sources}, total.lengths.text_bytes),
        ("accepted documents", {source.source: source.num_accepted for source in sources}, total.num_accepted),
        ("raw bytes", {source.source: source.raw_bytes for source in sources}, total.raw_bytes),
    )
    plots: list[Plot] = []
    for title, sizes, whole in measures:
        if not whole:  # a stage that reads no raw files
            continue
        shown = [(name, float(size), f"{of_share(size / whole)} · {_amount(title, size)}") for name, size in sizes.items()]
        plots.append(bars_of(f"Share of {title}", shown, tone=len(plots)))
    text = "How much of the corpus each source is. Training sees sources by their tokens, so the first plot is the one that matters most."
    return Section(Topic.SOURCES, "Sources", text, tuple(plots))


def _amount(title: str, size: int) -> str:
    """Returns an amount as its plot has it."""
    return of_bytes(size) if "bytes" in title else f"{size:,}"


def lengths_section(stats: CorpusStats) -> Section:
    """Returns histograms and box plots of document lengths, by source and split."""
    sources = [source for source in shown_sources(stats) if source.num_accepted]
    used = [index for source in sources for index, count in enumerate(source.lengths.by_length) if count]
    if not used:
        return Section(Topic.LENGTHS, "Lengths", "No document was accepted.", ())
    first, last = min(used), max(used)
    plots: list[Plot] = [_length_histogram(source, first=first, last=last) for source in sources]
    if stats.figures is not None:
        plots.append(_length_boxes(stats, names=[source.source for source in sources]))
    text = "Characters per document, on a logarithmic scale: a histogram has a bar for each power of two. All documents are counted."
    return Section(Topic.LENGTHS, "Lengths", text, tuple(plots))


def _length_histogram(source: SourceStats, *, first: int, last: int) -> HistogramPlot:
    """Returns the histogram of one source: training, and beside it what is held out, each as shares of their documents."""
    held_out = _added([source.accepted[split].by_length for split in SPLITS if split != "train" and split in source.accepted])
    train = source.accepted.get("train", Lengths()).by_length
    width = 100 / (last - first + 1)
    columns, rows = [], []
    tallest = max((share for counts in (train, held_out) for share in _shares(counts)), default=0.0) or 1.0
    for index in range(first, last + 1):
        for place, counts in enumerate((train, held_out)):
            share = _shares(counts)[index] if index < len(counts) else 0.0
            left = (index - first + (0.1 if place == 0 else 0.55)) * width
            columns.append(Column(round(left, 2), round(width * (0.45 if place == 0 else 0.35), 2), round(100 * share / tallest, 2), place))
        low, high = (1 << index - 1, (1 << index) - 1) if index else (0, 0)
        counts_of_splits = (_at(source.accepted.get(split, Lengths()).by_length, index) for split in SPLITS)
        rows.append((f"{low:,}" if low == high else f"{low:,} to {high:,}", *(f"{count:,}" for count in counts_of_splits)))
    legend = (Part("training", 0, 0), Part("held out", 0, 1))
    return HistogramPlot(
        f"{source.source}: characters per document", tuple(columns), octave_ticks(first, last), Table(("characters", *SPLITS), tuple(rows)), legend
    )


def _length_boxes(stats: CorpusStats, *, names: Sequence[str]) -> Boxes:
    assert stats.figures is not None
    exact = {source.source: source.accepted for source in stats.sources}
    found: list[tuple[str, int, Histogram, Lengths]] = []
    for source in stats.figures.sources:
        for tone, split in enumerate(SPLITS):
            lengths = exact[source.source].get(split, Lengths())
            if source.source in names and split in source.splits and lengths.documents:
                found.append((f"{source.source}, {split}", tone, source.splits[split].lengths, lengths))
    axis = Axis([float(value) for _, _, _, lengths in found for value in (lengths.min_chars or 0, lengths.max_chars or 0)])
    rows, cells = [], []
    for label, tone, histogram, lengths in found:
        box, least, most = histogram.box(), float(lengths.min_chars or 0), float(lengths.max_chars or 0)
        assert box is not None
        values = [least, *(max(least, min(most, value)) for value in box), most]
        rows.append(BoxRow(label, Places._make(axis.at(value) for value in values), tone=tone))
        cells.append((label, f"{lengths.documents:,}", *(f"{value:,.0f}" for value in values), f"{lengths.chars / lengths.documents:,.0f}"))
    heads = ("source, split", "documents", "least", "5 %", "25 %", "median", "75 %", "95 %", "most", "mean")
    return Boxes("Characters per document: quantiles (right to 3 %) by source and split", tuple(rows), axis.ticks(), Table(heads, tuple(cells)))


def characters_section(stats: CorpusStats, figures: CorpusFigures) -> Section:
    """Returns scripts and classes of characters by source, and how files were encoded."""
    sources = [(source.source, source.whole.characters) for source in figures.sources]
    largest = sorted((each for each in sources if each[1].total), key=lambda each: -each[1].total)[:MOST_SHOWN]
    shown = [each for each in sources if each in largest]
    whole = figures.whole.characters
    plots: list[Plot] = [
        stacks_of("Letters by script", [(name, found.scripts) for name, found in shown], order=_by_size(whole.scripts)),
        stacks_of("Characters by class", [(name, found.classes) for name, found in shown], order=[name for name in CLASSES if name in whole.classes]),
        Listing(
            "Signs of broken encodings",
            Table(
                ("source", "characters", "U+FFFD", "UTF-8 read as Latin-1"),
                tuple((name, f"{found.total:,}", f"{found.replaced:,}", f"{found.mojibake:,}") for name, found in sources),
            ),
        ),
    ]
    shares = [(source.source, language_counts(source.whole.languages)) for source in figures.sources if source.whole.languages]
    whole_shares = language_counts({key: code for source in figures.sources for key, code in source.whole.languages.items()})
    if shares:
        title = f"Languages of at most {KEPT_DOCUMENTS} documents of each source, chosen by hash (identified by CLD2)"
        plots.insert(0, stacks_of(title, shares[:MOST_SHOWN], order=list(whole_shares)))
    if encodings := sorted(stats.total.encodings):
        rows = tuple((source.source, *(f"{source.encodings.get(name, 0):,}" for name in encodings)) for source in stats.sources)
        plots.append(Listing("Files by encoding, where the recipe leaves it open or names another than UTF-8", Table(("source", *encodings), rows)))
    text = "What texts consist of. Languages are of a small sample, right to some 7 percentage points. Scripts go by Unicode block."
    return Section(Topic.CHARACTERS, "Languages and characters", f"{text} {looked_at(figures.sampling.text)}", tuple(plots))


def looked_at(one_in: int) -> str:
    """Returns how many documents figures are of."""
    return "All documents are counted." if one_in == 1 else f"Counted in one of {one_in} documents, chosen by hash of their text."


def stacks_of(title: str, rows: Sequence[tuple[str, Mapping[str, int]]], *, order: Sequence[str]) -> Stacks:
    """Returns each row divided into its parts; parts beyond the colours there are go together as `others`."""
    named, rest = list(order[: TONES - 1]), list(order[TONES - 1 :])
    if len(rest) == 1:
        named, rest = [*named, *rest], []
    stacks = []
    for label, counts in rows:
        total = sum(counts.values()) or 1
        sizes = [*(counts.get(name, 0) for name in named), *([sum(counts.get(name, 0) for name in rest)] if rest else [])]
        names = [*named, *(["others"] if rest else [])]
        parts = (Part(name, round(100 * size / total, 3), tone) for tone, (name, size) in enumerate(zip(names, sizes, strict=True)))
        stacks.append(Stack(label, tuple(part for part in parts if part.width)))
    legend = tuple(Part(name, 0, tone) for tone, name in enumerate([*named, *(["others"] if rest else [])]))
    cells = []
    for label, counts in rows:
        total = sum(counts.values())
        cells.append((label, *(f"{counts.get(name, 0):,} ({of_share(counts.get(name, 0) / total if total else 0.0)})" for name in order)))
    return Stacks(title, tuple(stacks), legend, Table(("", *order), tuple(cells)))


def _by_size(counts: Mapping[str, int]) -> list[str]:
    return [name for name, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]


def _added(parts: Iterable[Sequence[int]]) -> tuple[int, ...]:
    total: Counter[int] = Counter()
    for counts in parts:
        total.update(dict(enumerate(counts)))
    return tuple(total[index] for index in range(max(total, default=-1) + 1))


def _shares(counts: Sequence[int]) -> list[float]:
    total = sum(counts)
    return [count / total if total else 0.0 for count in counts]


def _at(counts: Sequence[int], index: int) -> int:
    return counts[index] if index < len(counts) else 0
