"""Axes and numbers."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.validate.report.view import Axis, bars_of, octave_ticks, of_bytes, of_share, short

VALUES = st.lists(st.floats(-1e12, 1e12), min_size=1, max_size=10)


@settings(max_examples=60)
@given(VALUES, st.sampled_from([1.0, 1e-3]))
def test_positions_keep_the_order_and_stay_on_the_plot(values: list[float], unit: float) -> None:
    axis = Axis(values, unit=unit)
    places = [axis.at(value) for value in sorted(values)]
    assert places == sorted(places)
    assert all(0 <= place <= 100 for place in places)
    ticks = axis.ticks()
    assert len(ticks) <= 6
    assert [tick.at for tick in ticks] == sorted(tick.at for tick in ticks)


def test_equal_steps_are_equal_factors() -> None:
    axis = Axis([1, 1e6])
    steps = [axis.at(10.0 ** (power + 1)) - axis.at(10.0**power) for power in range(1, 6)]
    assert steps == pytest.approx([steps[-1]] * 5, abs=0.1)
    assert [tick.text for tick in axis.ticks()] == ["1", "100", "10k", "1M"]
    assert Axis([5.0]).at(5.0) == 50


def test_numbers_for_people() -> None:
    assert [short(value) for value in (0, 0.001, 50, 1000, 12_345, 2e6, 3e9, -4e6, 1e13)] == [
        "0", "0.001", "50", "1000", "12.35k", "2M", "3G", "-4M", "1e+13",
    ]  # fmt: skip
    assert [of_bytes(size) for size in (12, 1200, 3.4e6, 5e12)] == ["12 B", "1.2 kB", "3.4 MB", "5.0 TB"]
    assert [of_share(share) for share in (0, 0.5, 0.0123, 0.0001, 1e-7)] == ["0.0%", "50.0%", "1.2%", "0.010%", "1e-07"]
    assert [tick.text for tick in octave_ticks(0, 11)] == ["0", "4", "32", "256"]


def test_the_longest_bar_is_as_wide_as_the_plot() -> None:
    assert [bar.width for bar in bars_of("", [("a", 2, ""), ("b", 8, ""), ("c", 0, "")]).bars] == [25, 100, 0]
    assert [bar.width for bar in bars_of("", [("a", 0, "")]).bars] == [0]
