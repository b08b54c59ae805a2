"""Rates of an array on one node."""

import pytest

from cluster.throughput import WINDOW_S, Throughput


def test_nothing_is_known_before_the_second_look() -> None:
    rate = Throughput()
    assert (rate.bytes_per_s, rate.files_per_s) == (0.0, 0.0)
    rate.see(5.0, 1.0, now=0.0)
    assert (rate.bytes_per_s, rate.files_per_s) == (0.0, 0.0)


def test_the_rate_is_that_of_the_last_minutes() -> None:
    rate = Throughput()
    for second in range(600):
        rate.see(1000.0 * second, 2.0 * second, now=float(second))
    assert (rate.bytes_per_s, rate.files_per_s) == (pytest.approx(1000.0), pytest.approx(2.0))
    for second in range(600, 600 + round(WINDOW_S) + 1):
        rate.see(600_000.0, 1200.0, now=float(second))
    assert rate.bytes_per_s == pytest.approx(0.0, abs=10.0), "it stands still"


def test_an_item_that_begins_anew_is_no_negative_rate() -> None:
    rate = Throughput()
    rate.see(1000.0, 1.0, now=0.0)
    rate.see(0.0, 0.0, now=1.0)
    assert (rate.bytes_per_s, rate.files_per_s) == (0.0, 0.0)
