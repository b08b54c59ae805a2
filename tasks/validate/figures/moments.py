"""Mean, spread and correlation that can be merged: sums of squares and products about the means (Chan, Golub, LeVeque 1979). Pure.

Merging is exact but for the last digits of floating point, and its order is that of groups, so equal corpora give equal bytes.
"""

import math
from typing import NamedTuple, Self

import numpy as np

from schemas.frozen import Frozen

LARGEST = 1e100
"""Numbers beyond this count as this: squares of larger ones have no form as a float."""


class Moments(Frozen):
    """What mean and spread of some numbers follow from."""

    count: int = 0
    """Numbers."""
    mean: float = 0.0
    """Their mean."""
    squares: float = 0.0
    """Sum of the squares of their distances from the mean."""

    @property
    def deviation(self) -> float:
        """Their standard deviation (of the numbers themselves, not an estimate of those they were drawn from)."""
        return math.sqrt(max(0.0, self.squares) / self.count) if self.count else 0.0

    def merged(self, other: Self) -> "Moments":
        """Returns the moments of both sets of numbers together."""
        if not self.count or not other.count:
            return self if self.count else other
        count, apart = self.count + other.count, other.mean - self.mean
        squares = self.squares + other.squares + apart * apart * (self.count * other.count / count)
        return Moments(count=count, mean=self.mean + apart * (other.count / count), squares=squares)


class CoMoments(Frozen):
    """What the correlation of two columns follows from: over the documents that have a number in both."""

    first: Moments
    """Of the first column."""
    second: Moments
    """Of the second column."""
    products: float = 0.0
    """Sum of the products of their distances from their means."""

    @property
    def correlation(self) -> float | None:
        """Pearson's r; None where one of the columns does not vary."""
        scale = math.sqrt(max(0.0, self.first.squares)) * math.sqrt(max(0.0, self.second.squares))
        return max(-1.0, min(1.0, self.products / scale)) if scale > 0 else None

    def merged(self, other: Self) -> "CoMoments":
        """Returns the co-moments of both sets of documents together."""
        if not self.first.count or not other.first.count:
            return self if self.first.count else other
        weight = self.first.count * other.first.count / (self.first.count + other.first.count)
        apart = (other.first.mean - self.first.mean) * (other.second.mean - self.second.mean)
        products = self.products + other.products + apart * weight
        return CoMoments(first=self.first.merged(other.first), second=self.second.merged(other.second), products=products)


class Pair(NamedTuple):
    """Two columns, the first one first by name."""

    first: str
    second: str


def moments_of(values: np.ndarray) -> Moments:
    """Returns the moments of finite numbers within ±`LARGEST`, at least one."""
    mean = float(values.mean())
    return Moments(count=len(values), mean=mean, squares=float(np.square(values - mean).sum()))


def co_moments_of(columns: dict[str, np.ndarray]) -> dict[Pair, CoMoments]:
    """Returns the co-moments of each two columns that have a number in the same document.

    Args:
        columns: name → a number per document, NaN where it has none; all of equal length.
    """
    names = sorted(columns)
    if len(names) < 2:
        return {}
    values_DC = np.stack([columns[name] for name in names], axis=1)  # D documents, C columns
    there_DC = (~np.isnan(values_DC)).astype(np.float64)
    filled_DC = np.where(there_DC > 0, values_DC, 0.0)
    centre_C = filled_DC.sum(axis=0) / np.maximum(1.0, there_DC.sum(axis=0))
    filled_DC = np.where(there_DC > 0, values_DC - centre_C, 0.0)
    count_CC = _products(there_DC, there_DC)
    sum_CC = _products(filled_DC, there_DC)  # [i, j]: column i over the documents that have column j, too
    square_CC = _products(np.square(filled_DC), there_DC)
    product_CC = _products(filled_DC, filled_DC)
    found = {}
    for i, j in zip(*np.triu_indices(len(names), 1), strict=True):
        if count := int(count_CC[i, j]):
            first = _about_mean(count, sum_CC[i, j], square_CC[i, j], centre_C[i])
            second = _about_mean(count, sum_CC[j, i], square_CC[j, i], centre_C[j])
            products = float(product_CC[i, j] - sum_CC[i, j] * sum_CC[j, i] / count)
            found[Pair(names[i], names[j])] = CoMoments(first=first, second=second, products=products)
    return found


def _products(first_DC: np.ndarray, second_DC: np.ndarray) -> np.ndarray:
    """Returns the transposed first times the second. Not by `@`, whose sums end in other digits for another number of threads."""
    found: np.ndarray = np.einsum("di,dj->ij", first_DC, second_DC, optimize=False)
    return found


def _about_mean(count: int, total: float, squares: float, centre: float) -> Moments:
    return Moments(count=count, mean=float(centre + total / count), squares=max(0.0, float(squares - total * total / count)))
