"""Other columns: nulls, classes, numbers and correlations, and that parts merge to the whole, hostile names and values included."""

import math
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.validate.figures import columns as counting
from tasks.validate.figures.columns import Columns, ColumnsTally, merge_columns

RECORDS = st.lists(
    st.none()
    | st.dictionaries(
        st.sampled_from(["a", "b", "c", "label", "ä" * 90, "<script>"]),
        st.none() | st.booleans()
        | st.integers(-(2**63), 2**63) | st.floats(-1e6, 1e6) | st.sampled_from(["x", "y", "1.5", "-2e3", "²", "1_0"]) | st.just([1]),
        max_size=4,
    ),
    max_size=12,
)  # fmt: skip


def counted(*batches: list[dict[str, Any] | None]) -> Columns:
    tally = ColumnsTally()
    for records in batches:
        tally.add([orjson.dumps(record) for record in records if record], documents=len(records))
    return tally.columns()


def same(one: Columns, other: Columns) -> bool:
    """Equal but for the last digits of sums of floats."""

    def rounded(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: rounded(item) for key, item in value.items()}
        if isinstance(value, list):
            return [rounded(item) for item in value]
        return pytest.approx(value, rel=1e-6, abs=1e-3) if isinstance(value, float) else value

    a, b = one.model_dump(mode="json"), other.model_dump(mode="json")
    for dump in (a, b):  # squares of numbers of 2^63 lose what those of ordinary ones are made of
        dump["pairs"] = [[pair["first"], pair["second"], pair["moments"]["first"]["count"]] for pair in dump["pairs"]]
        for column in dump["columns"].values():
            if column["numbers"]:
                del column["numbers"]["moments"]["squares"]
    return bool(a == rounded(b))


@settings(max_examples=30)
@given(RECORDS, RECORDS, RECORDS)
def test_figures_of_parts_merge_to_those_of_the_whole(first: Any, second: Any, third: Any) -> None:
    whole = counted(first + second + third)
    assert same(counted(first, second, third), whole)
    assert same(merge_columns([counted(first), counted(second, third)]), whole)
    assert same(merge_columns([counted(third), merge_columns([counted(second), counted(first)])]), whole)


@settings(max_examples=30)
@given(RECORDS, RECORDS)
def test_bounds_on_columns_and_values_merge_too(first: Any, second: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, bound in (("MOST_COLUMNS", 3), ("MOST_PAIRED", 2), ("MOST_VALUES", 2)):
            patch.setattr(counting, name, bound)
        whole = counted(first + second)
        assert len(whole.columns) <= 3
        assert same(merge_columns([counted(first), counted(second)]), whole)
        assert same(counted(second, first), whole)


def test_moments_and_correlations_are_numpy_s() -> None:
    rng = np.random.default_rng(7)
    x = rng.normal(1e9, 3.0, 400)
    y = 2 * x + rng.normal(0, 1.0, 400)
    z = rng.normal(0, 1e-3, 400)
    records: list[dict[str, Any] | None] = [{"x": float(x[i]), "y": float(y[i]), "z": float(z[i]) if i % 3 else None} for i in range(400)]
    merged = merge_columns([counted(records[:150]), counted(records[150:151]), counted(records[151:])])
    numbers = merged.columns["x"].numbers
    assert numbers is not None
    assert numbers.moments.mean == pytest.approx(x.mean())
    assert numbers.moments.deviation == pytest.approx(x.std(), rel=1e-6)
    assert (numbers.least, numbers.most) == (x.min(), x.max())
    there = np.arange(400) % 3 > 0
    found = {(pair.first, pair.second): pair.moments.correlation for pair in merged.pairs}
    assert found[("x", "y")] == pytest.approx(np.corrcoef(x, y)[0, 1], rel=1e-6)
    assert found[("x", "z")] == pytest.approx(np.corrcoef(x[there], z[there])[0, 1], rel=1e-5)
    assert merged.columns["z"].present == 266


def test_classes_are_counted_and_given_up_where_there_are_too_many() -> None:
    figures = counted([{"label": "a", "ok": True, "id": i, "tags": ["t"], "score": i / 7} for i in range(100)])
    assert figures.columns["label"].values == {"a": 100}
    assert figures.columns["ok"].values == {"true": 100}
    assert [figures.columns[name].values for name in ("id", "tags", "score")] == [None, None, None]
    assert figures.columns["ok"].numbers is None


def test_text_that_reads_as_a_number_is_one_and_other_text_is_not() -> None:
    numbers = counted([{"n": value} for value in ("1", "-2.5", "1e3", " 4", "²", "nan", "inf", "1_0", "")]).columns["n"].numbers
    assert numbers is not None
    assert (numbers.moments.count, numbers.least, numbers.most) == (3, -2.5, 1000.0)


def test_numbers_without_a_square_are_cut_off() -> None:
    figures = counted([{"a": 1e300, "b": -1e300}, {"a": -1e300, "b": 1.0}])
    numbers = figures.columns["a"].numbers
    assert numbers is not None
    assert math.isfinite(numbers.moments.squares)
    assert figures.pairs[0].moments.correlation is not None
