"""Indexes of drift, against what they are defined as."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.validate.report.drift import divergence, drift_of, population_stability, split_drift
from tests.tasks.validate.report.conftest import even, stats_of

COUNTS = st.lists(st.integers(0, 1000), min_size=1, max_size=8).filter(any).map(tuple)


@settings(max_examples=60)
@given(COUNTS, COUNTS)
def test_indexes_are_zero_for_equal_shares_and_positive_otherwise(before: tuple[int, ...], now: tuple[int, ...]) -> None:
    named = [{str(index): count for index, count in enumerate(counts)} for counts in (before, now)]
    assert population_stability(before, before) == pytest.approx(0, abs=1e-12)
    assert population_stability(before, now) >= 0
    assert 0 <= divergence(*named) <= 1 + 1e-9
    assert divergence(*named) == pytest.approx(divergence(*reversed(named)))
    assert divergence(named[0], {name: 3 * count for name, count in named[0].items()}) == pytest.approx(0, abs=1e-9)


def test_indexes_of_known_cases() -> None:
    assert divergence({"Latin": 10}, {"Han": 3}) == pytest.approx(1.0)
    wanted = (0.5 - 0.25) * math.log(0.5 / 0.25) + (0.5 - 0.75) * math.log(0.5 / 0.75)
    assert population_stability((2_500_000, 7_500_000), (5_000_000, 5_000_000)) == pytest.approx(wanted, rel=1e-5)


def test_a_corpus_is_compared_with_the_one_before_it() -> None:
    previous = stats_of({"web": even(200), "old": even(30)})
    drift = drift_of(stats_of({"web": even(220, length=3000), "new": even(10, word="水轮转动")}), previous=previous, key="validate/a")
    assert (drift.new_sources, drift.lost_sources) == (("new",), ("old",))
    assert [(change.name, change.before, change.now) for change in drift.sources] == [("web", 200, 220), ("new", 0, 10), ("old", 30, 0)]
    assert drift.counts[0].share == 0.0
    assert drift.length_psi is not None
    assert drift.length_psi > 1
    assert drift.script_divergence is not None
    same = drift_of(previous, previous=previous, key="validate/a")
    assert (same.length_psi, same.script_divergence) == (pytest.approx(0), pytest.approx(0))


def test_few_documents_and_unknown_figures_give_no_index() -> None:
    few = stats_of({"web": even(20)})
    drift = drift_of(few, previous=few.model_copy(update={"figures": None}), key="validate/a")
    assert (drift.length_psi, drift.script_divergence) == (None, None)
    assert split_drift(few.total) is None
