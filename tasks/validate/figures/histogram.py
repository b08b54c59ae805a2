"""How often values of each size came: bins of equal relative width, which merge exactly. Pure.

A bin covers 1/32 of a power of two, so a quantile is right to 3 %, and integers below 64 are exact. Of any number of values at most some
8,000 bins are kept, and in practice tens or hundreds.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from schemas.frozen import Frozen

_BINS_PER_OCTAVE = 32
_LEAST_EXPONENT, _MOST_EXPONENT = -64, 64
"""Values whose magnitude lies outside of 2^-65 … 2^64 count as the least or the greatest there is."""
_BOX_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


class Edges(NamedTuple):
    """What a bin covers: low <= value < high."""

    low: float
    high: float


class Box(NamedTuple):
    """Quantiles: what a box plot shows."""

    p5: float
    p25: float
    median: float
    p75: float
    p95: float


class Histogram(Frozen):
    """Counts of values by size."""

    counts: dict[int, int] = {}
    """Bin → values in it. Bin 0 holds zeros, negative bins negative values; `edges_of` says what a bin covers."""

    @property
    def total(self) -> int:
        """Values."""
        return sum(self.counts.values())

    def quantile(self, share: float) -> float | None:
        """Returns the value below which `share` of the values lie, to 3 %; None without values."""
        total = self.total
        if not total:
            return None
        rank, seen = min(total - 1, int(share * total)), 0
        for index in sorted(self.counts):
            seen += self.counts[index]
            if seen > rank:
                return _value_of(index)
        raise AssertionError("a rank above the number of values")

    def box(self) -> Box | None:
        """Returns the quantiles of a box plot; None without values."""
        values = [self.quantile(share) for share in _BOX_QUANTILES]
        return None if values[0] is None else Box(*(value for value in values if value is not None))

    def octaves(self) -> dict[int, int]:
        """Returns counts by power of two: key k holds values of 2^(k-1) … 2^k, zeros and negative values are under key 0."""
        found: Counter[int] = Counter()
        for index, count in self.counts.items():
            found[0 if index <= 0 else max(0, _exponent_of(index))] += count
        return dict(sorted(found.items()))


def bins_of(values: np.ndarray) -> np.ndarray:
    """Returns the bin of each finite value; both arrays are of one dimension, bins are int64."""
    mantissas, exponents = np.frexp(np.abs(values.astype(np.float64)))
    exponents = exponents.astype(np.int64)
    steps = ((mantissas - 0.5) * (2 * _BINS_PER_OCTAVE)).astype(np.int64)
    steps = np.where(exponents < _LEAST_EXPONENT, 0, np.where(exponents > _MOST_EXPONENT, _BINS_PER_OCTAVE - 1, steps))
    exponents = np.clip(exponents, _LEAST_EXPONENT, _MOST_EXPONENT)
    bins = 1 + (exponents - _LEAST_EXPONENT) * _BINS_PER_OCTAVE + steps
    return np.where(values == 0, 0, np.where(values < 0, -bins, bins))


def edges_of(index: int) -> Edges:
    """Returns what a bin covers."""
    if index == 0:
        return Edges(0.0, 0.0)
    step = (abs(index) - 1) % _BINS_PER_OCTAVE
    unit = math.ldexp(1.0, _exponent_of(abs(index)) - 1)
    low, high = unit * (1 + step / _BINS_PER_OCTAVE), unit * (1 + (step + 1) / _BINS_PER_OCTAVE)
    return Edges(low, high) if index > 0 else Edges(-high, -low)


def counts_of(values: np.ndarray) -> Counter[int]:
    """Returns how many of the finite values fall into each bin."""
    if not len(values):
        return Counter()
    bins = bins_of(values)
    first = int(bins.min())
    counts = np.bincount(bins - first)
    return Counter({first + index: int(counts[index]) for index in np.flatnonzero(counts).tolist()})


def merge_histograms(parts: Iterable[Histogram]) -> Histogram:
    """Returns the counts of several sets of values together."""
    merged: Counter[int] = Counter()
    for part in parts:
        merged.update(part.counts)
    return Histogram(counts=dict(sorted(merged.items())))


def shares_of(counts: Sequence[int]) -> list[float]:
    """Returns each count's share of their sum; zeros when there is none."""
    total = sum(counts)
    return [count / total if total else 0.0 for count in counts]


def _exponent_of(index: int) -> int:
    return (index - 1) // _BINS_PER_OCTAVE + _LEAST_EXPONENT


def _value_of(index: int) -> float:
    """Returns what stands for the values of a bin: the only integer in it, or its middle."""
    low, high = edges_of(index)
    if index > 0 and high - low <= 1.0 and low.is_integer():
        return low
    if index < 0 and high - low <= 1.0 and high.is_integer():
        return high
    return (low + high) / 2
