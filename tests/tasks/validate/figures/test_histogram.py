"""Bins, quantiles and their merging, against numpy on the values themselves."""

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tasks.validate.figures.histogram import Histogram, bins_of, counts_of, edges_of, merge_histograms

VALUES = st.lists(st.floats(min_value=-1e15, max_value=1e15, allow_subnormal=False), min_size=1, max_size=60)


def histogram_of(values: list[float]) -> Histogram:
    return Histogram(counts=dict(sorted(counts_of(np.array(values)).items())))


@settings(max_examples=30)
@given(VALUES)
def test_every_value_is_in_its_bin(values: list[float]) -> None:
    for value, index in zip(values, bins_of(np.array(values)).tolist(), strict=True):
        low, high = edges_of(index)
        assert low <= value <= high or abs(value) < 2.0**-64


@settings(max_examples=30)
@given(VALUES, VALUES)
def test_bins_of_parts_merge_to_those_of_the_whole(first: list[float], second: list[float]) -> None:
    whole = histogram_of(first + second)
    assert merge_histograms([histogram_of(first), histogram_of(second)]) == whole
    assert whole.total == len(first) + len(second)


@settings(max_examples=30)
@example(values=[64], share=0.0)
@given(st.lists(st.integers(min_value=0, max_value=10**9), min_size=1, max_size=200), st.floats(min_value=0, max_value=1))
def test_quantiles_are_right_to_three_percent(values: list[int], share: float) -> None:
    found = histogram_of([float(value) for value in values]).quantile(share)
    wanted = sorted(values)[min(len(values) - 1, int(share * len(values)))]
    assert found is not None
    assert abs(found - wanted) <= 0.03 * wanted
    if wanted < 64:
        assert found == wanted


def test_boxes_and_octaves() -> None:
    histogram = histogram_of([float(value) for value in range(1, 65)])
    box = histogram.box()
    assert box is not None
    assert (box.p5, box.p25, box.median, box.p75, box.p95) == (4, 17, 33, 49, 61)
    assert histogram.octaves() == {1: 1, 2: 2, 3: 4, 4: 8, 5: 16, 6: 32, 7: 1}
    assert Histogram().box() is None
    assert histogram_of([0.0, -3.0, 0.25]).octaves() == {0: 3}


def test_what_is_too_small_or_too_large_counts_as_the_extreme() -> None:
    assert bins_of(np.array([1e-300, -1e-300, 1e90, -1e90])).tolist() == [1, -1, 129 * 32, -129 * 32]
