"""Findings about the other columns: nulls, constants, classes, scales, correlations. Pure."""

from collections.abc import Iterator
from typing import Final

from tasks.validate.figures.columns import Column, Columns
from tasks.validate.figures.corpus import CorpusFigures
from tasks.validate.report.finding import ReportFinding, Severity, Topic

MANY_NULLS: Final = 0.3
"""Share of documents without a value from which a column is named."""
SCALE_RATIO: Final = 1000.0
"""Ratio of standard deviations from which columns are of different scale."""
STRONG_CORRELATION: Final = 0.95
"""Magnitude of r from which two columns say the same."""
CLASS_RATIO: Final = 20.0
"""Ratio of the largest to the smallest class from which classes are imbalanced."""
FEWEST: Final = 30
"""Documents below which nothing is said about a column."""
_MOST_CLASSES: Final = 32
"""A column with more values than this is no class: a year, a file name."""
_REQUIRED = "corpus.rules.required_columns"
_MIXTURE = "training.mixture.weights"


def column_findings(figures: CorpusFigures) -> Iterator[ReportFinding]:
    """Yields what there is to say about the columns of all sources together, and, where columns differ between them, of each source."""
    columns = figures.whole.columns
    if columns.documents < FEWEST:
        return
    for source in figures.sources:
        yield from _nulls(source.source, source.whole.columns)
    yield from _classes(columns)
    yield from _scales(columns)
    yield from _correlations(columns)
    if not columns.is_complete:
        mend = f"look whether keys are data; {_REQUIRED} names the columns that count"
        yield ReportFinding(Severity.NOTE, Topic.COLUMNS, "there are more columns than the report counts", mend, (_REQUIRED,))


def is_class(column: Column) -> bool:
    """Whether a column's values are classes: few, and each of several documents on average."""
    return column.values is not None and 1 < len(column.values) <= _MOST_CLASSES and column.present >= 2 * len(column.values)


def _nulls(source: str, columns: Columns) -> Iterator[ReportFinding]:
    for name, column in columns.columns.items():
        nulls = columns.documents - column.present
        if columns.documents >= FEWEST and nulls >= MANY_NULLS * columns.documents:
            text = f"{source}: column {name!r} is null or missing in {nulls / columns.documents:.0%} of the documents"
            mend = f"fill it in where the files are made, or leave it out; {_REQUIRED} refuses records without it"
            yield ReportFinding(Severity.NOTE, Topic.COLUMNS, text, mend, (_REQUIRED,))


def _classes(columns: Columns) -> Iterator[ReportFinding]:
    for name, column in columns.columns.items():
        if column.values is not None and len(column.values) == 1 and column.present >= FEWEST:
            text = f"column {name!r} has one value only"
            yield ReportFinding(Severity.NOTE, Topic.COLUMNS, text, "it tells nothing apart: leave it out where the files are made")
        if not is_class(column) or column.values is None:
            continue
        ordered = sorted(column.values.items(), key=lambda item: (-item[1], item[0]))
        (most, large), (least, small) = ordered[0], ordered[-1]
        if large >= CLASS_RATIO * small:
            shares = f"{most!r} has {large / column.present:.1%} of the documents, {least!r} {small / column.present:.2%}"
            text = f"class imbalance in column {name!r}: {shares}"
            mend = f"make a source of each class and weigh them with {_MIXTURE}, or add documents of the rare ones"
            yield ReportFinding(Severity.WARNING, Topic.COLUMNS, text, mend, (_MIXTURE,))


def _scales(columns: Columns) -> Iterator[ReportFinding]:
    spread = {
        name: column.numbers.moments.deviation
        for name, column in columns.columns.items()
        if column.numbers is not None and column.numbers.moments.count >= FEWEST and column.numbers.moments.deviation > 0
    }
    if len(spread) < 2:
        return
    low, high = min(spread, key=lambda name: spread[name]), max(spread, key=lambda name: spread[name])
    if spread[high] >= SCALE_RATIO * spread[low]:
        text = f"mixed scales: the standard deviation of column {high!r} is {spread[high]:.3g}, of {low!r} {spread[low]:.3g}"
        mend = f"standardise them (minus mean, by deviation) or take logarithms before they become weights or features; {_REQUIRED} checks types"
        yield ReportFinding(Severity.WARNING, Topic.COLUMNS, text, mend, (_REQUIRED,))


def _correlations(columns: Columns) -> Iterator[ReportFinding]:
    for pair in columns.pairs:
        found = pair.moments.correlation
        if found is not None and abs(found) >= STRONG_CORRELATION and pair.moments.first.count >= FEWEST:
            text = f"columns {pair.first!r} and {pair.second!r} say nearly the same (r = {found:+.2f})"
            mend = f"keep one of them where the files are made, and take the other out of {_REQUIRED}"
            yield ReportFinding(Severity.WARNING, Topic.COLUMNS, text, mend, (_REQUIRED,))
