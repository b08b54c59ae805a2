"""What the other columns of a corpus hold (`extra`, a JSON object per document): nulls, classes, numbers, and how numbers go together.

Memory is bounded whatever the documents say: so many columns, so many values of each. What is kept when there are more does not depend on the
order in which they come (the first by name; no values at all), so that figures of parts still merge to those of the whole.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import orjson

from schemas.frozen import Frozen
from tasks.validate.figures.histogram import Histogram, counts_of, merge_histograms
from tasks.validate.figures.moments import LARGEST, CoMoments, Moments, Pair, co_moments_of, moments_of

MOST_COLUMNS: Final = 64
"""Columns that are counted, the first ones by name."""
MOST_PAIRED: Final = 16
"""Columns with numbers whose correlations are kept, the first ones by name."""
MOST_VALUES: Final = 64
"""A column with more different values than this has no classes."""
_NAME_CHARS = 80
_VALUE_CHARS = 80
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_NONE: Final = type(None)


class Numbers(Frozen):
    """The numbers in a column. A text that reads as a number is one: CSV has no types."""

    moments: Moments
    """Mean and spread."""
    least: float
    """The smallest."""
    most: float
    """The largest."""
    histogram: Histogram
    """By size."""


class Column(Frozen):
    """One column."""

    present: int
    """Documents with a value that is not null."""
    numbers: Numbers | None = None
    """Its numbers; null without any."""
    values: dict[str, int] | None = None
    """Documents by value; null where there are more than `MOST_VALUES` different ones, or such as are no class (fractions, lists, objects)."""


class PairFigures(Frozen):
    """Two columns with numbers."""

    first: str
    """The one that is first by name."""
    second: str
    """The other."""
    moments: CoMoments
    """Of the documents that have both."""


class Columns(Frozen):
    """The other columns of some documents."""

    documents: int = 0
    """Documents, with other columns or without."""
    columns: dict[str, Column] = {}
    """By name."""
    pairs: tuple[PairFigures, ...] = ()
    """By name of the first, then of the second."""
    is_complete: bool = True
    """Whether all columns are there: False when there are more than `MOST_COLUMNS`, or a name is longer than 80 characters."""


@dataclass
class _ColumnTally:
    present: int = 0
    moments: Moments = field(default_factory=Moments)
    least: float = float("inf")
    most: float = float("-inf")
    bins: Counter[int] = field(default_factory=Counter)
    values: Counter[str] | None = field(default_factory=Counter)

    def add(self, values: Sequence[Any], numbers: np.ndarray, types: frozenset[type]) -> None:
        """Counts the values of a column that are not null, and its numbers."""
        self.present += len(values)
        if len(numbers):
            self.moments = self.moments.merged(moments_of(numbers))
            self.least, self.most = min(self.least, float(numbers.min())), max(self.most, float(numbers.max()))
            self.bins.update(counts_of(numbers))
        if self.values is not None:
            self.values = self.values + _classes_of(values, types) if types <= _CLASSES else None
            if self.values is not None and len(self.values) > MOST_VALUES:
                self.values = None

    def column(self) -> Column:
        values = None if self.values is None else dict(sorted(self.values.items()))
        if not self.moments.count:
            return Column(present=self.present, values=values)
        histogram = Histogram(counts=dict(sorted(self.bins.items())))
        return Column(
            present=self.present, numbers=Numbers(moments=self.moments, least=self.least, most=self.most, histogram=histogram), values=values
        )


class ColumnsTally:
    """Counts other columns as documents come."""

    def __init__(self) -> None:
        self._documents = 0
        self._columns: dict[str, _ColumnTally] = {}
        self._pairs: dict[Pair, CoMoments] = {}
        self._is_complete = True

    def add(self, extras: Sequence[bytes], *, documents: int) -> None:
        """Counts documents.

        Args:
            extras: the other columns of those documents that have any, as JSON objects.
            documents: how many there are in all.
        """
        self._documents += documents
        if not extras:
            return
        rows: list[dict[str, Any]] = orjson.loads(b"[" + b",".join(extras) + b"]")
        numeric: dict[str, np.ndarray] = {}
        for name in self._names_of(rows):
            numbers = self._add_column(name, [row.get(name) for row in rows])
            if numbers is not None:
                numeric[name] = numbers
        self._drop_columns()
        self._add_pairs({name: numbers for name, numbers in numeric.items() if name in self._columns})

    def columns(self) -> Columns:
        """Returns the counts."""
        pairs = tuple(PairFigures(first=pair.first, second=pair.second, moments=moments) for pair, moments in sorted(self._pairs.items()))
        columns = {name: tally.column() for name, tally in sorted(self._columns.items())}
        return Columns(documents=self._documents, columns=columns, pairs=pairs, is_complete=self._is_complete)

    def _names_of(self, rows: Sequence[Mapping[str, Any]]) -> list[str]:
        """Returns the columns of some records that may be among those kept, by name."""
        first = rows[0].keys()
        found = set(first) if all(row.keys() == first for row in rows) else set().union(*rows)
        names = sorted(name for name in found if len(name) <= _NAME_CHARS)
        if len(found) > min(len(names), MOST_COLUMNS):
            self._is_complete = False
        return names[:MOST_COLUMNS]

    def _add_column(self, name: str, values: Sequence[Any]) -> np.ndarray | None:
        """Counts one column and returns its number per document, NaN where it has none; None without any number."""
        types = frozenset(map(type, values))
        present = [value for value in values if value is not None] if _NONE in types else values
        tally = self._columns.setdefault(name, _ColumnTally())
        numbers = _numbers_of(values, types)
        tally.add(present, np.empty(0) if numbers is None else numbers[~np.isnan(numbers)], types - {_NONE})
        return numbers

    def _drop_columns(self) -> None:
        for name in sorted(self._columns)[MOST_COLUMNS:]:
            del self._columns[name]
            self._is_complete = False

    def _add_pairs(self, numeric: dict[str, np.ndarray]) -> None:
        paired = set([name for name in sorted(self._columns) if self._columns[name].moments.count][:MOST_PAIRED])
        self._pairs = {pair: moments for pair, moments in self._pairs.items() if paired.issuperset(pair)}
        for pair, moments in co_moments_of({name: values for name, values in numeric.items() if name in paired}).items():
            self._pairs[pair] = self._pairs[pair].merged(moments) if pair in self._pairs else moments


def merge_columns(parts: Iterable[Columns]) -> Columns:
    """Returns the figures of several sets of documents together."""
    present = list(parts)
    by_name: dict[str, list[Column]] = {}
    for part in present:
        for name, column in part.columns.items():
            by_name.setdefault(name, []).append(column)
    kept = sorted(by_name)[:MOST_COLUMNS]
    columns = {name: _merge_column(by_name[name]) for name in kept}
    paired = set([name for name, column in columns.items() if column.numbers is not None][:MOST_PAIRED])
    pairs: dict[Pair, CoMoments] = {}
    for figures in (pair for part in present for pair in part.pairs):
        pair = Pair(figures.first, figures.second)
        if paired.issuperset(pair):
            pairs[pair] = pairs[pair].merged(figures.moments) if pair in pairs else figures.moments
    return Columns(
        documents=sum(part.documents for part in present),
        columns=columns,
        pairs=tuple(PairFigures(first=pair.first, second=pair.second, moments=moments) for pair, moments in sorted(pairs.items())),
        is_complete=all(part.is_complete for part in present) and len(by_name) <= MOST_COLUMNS,
    )


def _merge_column(parts: Sequence[Column]) -> Column:
    numbers = [part.numbers for part in parts if part.numbers is not None]
    values: Counter[str] = Counter()
    for part in parts:
        values.update(part.values or {})
    is_class = all(part.values is not None for part in parts) and len(values) <= MOST_VALUES
    merged = dict(sorted(values.items())) if is_class else None
    return Column(present=sum(part.present for part in parts), numbers=_merge_numbers(numbers) if numbers else None, values=merged)


def _merge_numbers(parts: Sequence[Numbers]) -> Numbers:
    moments = Moments()
    for part in parts:
        moments = moments.merged(part.moments)
    least, most = min(part.least for part in parts), max(part.most for part in parts)
    return Numbers(moments=moments, least=least, most=most, histogram=merge_histograms(part.histogram for part in parts))


_CLASSES: Final = frozenset((str, int, bool))
_PLAIN: Final = frozenset((int, float))


def _numbers_of(values: Sequence[Any], types: frozenset[type]) -> np.ndarray | None:
    """Returns a number per value, NaN for what is none; None where none can be."""
    if types <= _PLAIN:
        numbers = np.array(values, dtype=np.float64)
    elif types & (_PLAIN | {str}):
        numbers = np.array([_number_of(value) for value in values], dtype=np.float64)
        if np.isnan(numbers).all():
            return None
    else:
        return None
    return np.clip(numbers, -LARGEST, LARGEST)


def _number_of(value: Any) -> float:
    kind = type(value)
    if kind is int or kind is float:
        return float(value)
    if kind is str and value[:1] in _FIRST_OF_NUMBER and _NUMBER.fullmatch(value):
        return float(value)
    return float("nan")


_FIRST_OF_NUMBER: Final = frozenset("+-.0123456789")


def _classes_of(values: Sequence[Any], types: frozenset[type]) -> Counter[str]:
    """Returns how often each value came, by what people read."""
    if bool in types:  # True and 1 are equal to Python
        values = [str(value).lower() if type(value) is bool else value for value in values]
    found: Counter[str] = Counter()
    for value, count in Counter(values).items():
        found[str(value)[:_VALUE_CHARS]] += count
    return found
