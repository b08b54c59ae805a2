"""What a page of the report consists of, as data: the template draws it, and nothing else does. Every plot carries the table behind it.

Positions are percentages of a plot's width. Texts are plain: the template escapes them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

TONES: Final = 8
"""Colours that the template knows, 0 to 7; the last one is for the rest."""


@dataclass(frozen=True)
class Table:
    """Rows of text."""

    headers: tuple[str, ...]
    """Column heads; the first column names the rows, and all others are numbers unless `prose` says otherwise."""
    rows: tuple[tuple[str, ...], ...]
    """Cells."""
    prose: frozenset[int] = frozenset()
    """Columns that hold text."""


@dataclass(frozen=True)
class Tick:
    """A mark on an axis."""

    at: float
    """Position."""
    text: str
    """Its label."""


@dataclass(frozen=True)
class Bar:
    """A bar with its number."""

    label: str
    """Of what."""
    width: float
    """Percentage of the longest one's."""
    text: str
    """The number."""
    tone: int = 0
    """Colour."""


@dataclass(frozen=True)
class Bars:
    """Horizontal bars. They are a table themselves: label, bar, number."""

    title: str
    bars: tuple[Bar, ...]
    is_wide: bool = False
    """Whether labels need the width of the page."""
    kind: str = field(default="bars", init=False)


@dataclass(frozen=True)
class Part:
    """A part of a whole."""

    name: str
    width: float
    """Percentage of the whole."""
    tone: int


@dataclass(frozen=True)
class Stack:
    """A whole, divided into its parts."""

    label: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Stacks:
    """Several wholes, one below the other, with one legend."""

    title: str
    stacks: tuple[Stack, ...]
    legend: tuple[Part, ...]
    table: Table
    kind: str = field(default="stacks", init=False)


class Places(NamedTuple):
    """Where a box plot has its marks. Positions."""

    least: float
    p5: float
    p25: float
    median: float
    p75: float
    p95: float
    most: float


@dataclass(frozen=True)
class BoxRow:
    """A box plot: whiskers from 5 to 95 %, the box from 25 to 75 %, a line at the median, dots at the extremes."""

    label: str
    places: Places
    tone: int = 0


@dataclass(frozen=True)
class Boxes:
    """Box plots over one axis."""

    title: str
    rows: tuple[BoxRow, ...]
    ticks: tuple[Tick, ...]
    table: Table
    kind: str = field(default="boxes", init=False)


@dataclass(frozen=True)
class Column:
    """A bar of a histogram. All in percent of the plot."""

    left: float
    width: float
    height: float
    tone: int


@dataclass(frozen=True)
class HistogramPlot:
    """A histogram."""

    title: str
    columns: tuple[Column, ...]
    ticks: tuple[Tick, ...]
    table: Table
    legend: tuple[Part, ...] = ()
    kind: str = field(default="histogram", init=False)


@dataclass(frozen=True)
class Cell:
    """A correlation."""

    text: str
    strength: float
    """0 to 100."""
    is_negative: bool


@dataclass(frozen=True)
class HeatMap:
    """Correlations of each column with each. It is a table itself."""

    title: str
    names: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    kind: str = field(default="heatmap", init=False)


@dataclass(frozen=True)
class Listing:
    """A table that stands for itself."""

    title: str
    table: Table
    kind: str = field(default="listing", init=False)


Plot = Bars | Stacks | Boxes | HistogramPlot | HeatMap | Listing


@dataclass(frozen=True)
class Section:
    """A part of the page."""

    anchor: str
    title: str
    text: str
    """What is to be seen, in a sentence or two."""
    plots: tuple[Plot, ...]


class Axis:
    """From values to positions: linear near zero, logarithmic beyond, both signs. What is 10 times as large is as far away on every scale."""

    def __init__(self, values: Sequence[float], *, unit: float = 1.0) -> None:
        """Args:
        values: what must have a place, at least one.
        unit: where linear becomes logarithmic.
        """
        self._unit = unit
        self._low, self._high = self._stretched(min(values)), self._stretched(max(values))
        if self._high - self._low < 1e-9:
            self._low, self._high = self._low - 0.5, self._high + 0.5

    def at(self, value: float) -> float:
        """Returns the position of a value."""
        return round(100 * max(0.0, min(1.0, (self._stretched(value) - self._low) / (self._high - self._low))), 2)

    def ticks(self, *, most: int = 6) -> tuple[Tick, ...]:
        """Returns marks at powers of ten (and at zero) within the axis, at most so many."""
        decades = [self._unit * 10.0**power for power in range(25)]
        values = [value for value in (*(-value for value in reversed(decades)), 0.0, *decades) if self._low <= self._stretched(value) <= self._high]
        step = max(1, math.ceil(len(values) / most))
        return tuple(Tick(self.at(value), short(value)) for value in values[::step])

    def _stretched(self, value: float) -> float:
        return math.asinh(value / self._unit)


def bars_of(title: str, values: Sequence[tuple[str, float, str]], *, tone: int = 0, is_wide: bool = False) -> Bars:
    """Returns bars of (label, size, text), the longest one as wide as the plot."""
    longest = max((size for _, size, _ in values), default=0.0) or 1.0
    bars = tuple(Bar(label, round(100 * size / longest, 2), text, tone) for label, size, text in values)
    return Bars(title, bars, is_wide=is_wide)


def octave_ticks(first: int, last: int) -> tuple[Tick, ...]:
    """Returns marks for bars of the powers of two `first` … `last`, each bar beginning where its power does; entry 0 is of length 0."""
    width, step = 100 / (last - first + 1), max(1, -(-(last - first + 1) // 4))
    return tuple(Tick(round((index - first) * width, 2), f"{1 << index - 1 if index else 0:,}") for index in range(first, last + 1, step))


def short(value: float) -> str:
    """Returns a number as an axis has it: 0, 50, 20k, 3M, 1e+12, 0.001."""
    size = abs(value)
    if 1e4 <= size < 1e12:
        limit, unit = next((limit, unit) for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if size >= limit)
        return f"{value / limit:.4g}{unit}"
    return f"{value:.4g}"


def of_bytes(size: float) -> str:
    """Returns a size for people: 12.3 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def of_share(share: float) -> str:
    """Returns a share for people: 12.3 %, 0.01 %."""
    return f"{share:.1%}" if share >= 0.001 or not share else f"{share:.2g}" if share < 1e-5 else f"{share:.3%}"
