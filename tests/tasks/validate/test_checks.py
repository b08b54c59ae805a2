"""What decides a verdict, without the library that evaluates it."""

from typing import Any

import pytest

from schemas.corpus_config import RulesConfig
from tasks.validate.checks import Check, PreviousCorpus, Verdict, corpus_checks, corpus_row, source_table, verdict_of
from tasks.validate.stats import CorpusStats, Lengths, SourceStats, merge_stats

PREVIOUS = PreviousCorpus(key="validate/tested-0", read=100)


def make_stats(*, accepted: int = 90, reasons: dict[str, int] | None = None, unreadable_bytes: int = 0, raw_bytes: int = 1000) -> SourceStats:
    reasons = reasons or {}
    lengths = (
        Lengths(documents=accepted, text_bytes=10 * accepted, chars=10 * accepted, min_chars=5, max_chars=50, by_length=(0, 0, 0, accepted))
        if accepted
        else Lengths()
    )
    return SourceStats(
        source="s",
        files=1,
        raw_bytes=raw_bytes,
        unreadable_bytes=unreadable_bytes,
        read=accepted + sum(reasons.values()),
        reasons=reasons,
        accepted={"train": lengths},
    )


def broken(stats: SourceStats, *, previous: PreviousCorpus | None = None, **rules: Any) -> list[str]:
    config = RulesConfig.model_validate(rules)
    row = corpus_row(stats, previous=previous)

    def holds(check: Check) -> bool:
        value = row[check.column]
        if value is None:
            return True
        assert isinstance(value, int | float)
        return (check.minimum is None or value >= check.minimum) and (check.maximum is None or value <= check.maximum)

    return [check.column for check in corpus_checks(config, previous=previous) if not holds(check)]


@pytest.mark.parametrize(
    ("stats", "rules", "expected"),
    [
        (make_stats(), {}, []),
        (make_stats(reasons={"invalid JSON": 10}), {}, []),
        (make_stats(reasons={"invalid JSON": 11}), {}, ["quarantined_share"]),
        (make_stats(reasons={"duplicate": 900}), {}, []),
        (make_stats(accepted=0, reasons={"duplicate": 1}), {}, ["accepted"]),
        (make_stats(accepted=0, reasons={"invalid JSON": 1}), {}, ["accepted", "quarantined_share"]),
        (make_stats(accepted=9), {"min_documents": 10}, ["accepted"]),
        (make_stats(unreadable_bytes=101), {}, ["unreadable_share"]),
        (make_stats(unreadable_bytes=101), {"max_quarantined_share": 0.2}, []),
        (make_stats(), {"max_chars": 49}, ["max_chars"]),
        (make_stats(), {"min_chars": 6}, ["min_chars"]),
    ],
)
def test_the_bounds_of_the_recipe_decide(stats: SourceStats, rules: dict[str, Any], expected: list[str]) -> None:
    assert broken(stats, **rules) == expected


@pytest.mark.parametrize(
    ("read", "max_drift", "fails"), [(100, 0.0, False), (120, 0.2, False), (121, 0.2, True), (79, 0.2, True), (1000, None, False)]
)
def test_drift_is_judged_against_the_previous_corpus_when_the_recipe_asks_for_it(read: int, max_drift: float | None, fails: bool) -> None:
    assert broken(make_stats(accepted=read), previous=PREVIOUS, max_record_drift=max_drift) == (["record_drift"] if fails else [])


def test_without_a_previous_corpus_drift_is_not_judged() -> None:
    assert "record_drift" not in [check.column for check in corpus_checks(RulesConfig(max_record_drift=0.1), previous=None)]


@pytest.mark.parametrize(
    ("is_successful", "quarantined", "verdict"),
    [(True, 0, Verdict.PASS), (True, 3, Verdict.PASS_WITH_QUARANTINE), (False, 0, Verdict.FAIL), (False, 3, Verdict.FAIL)],
)
def test_verdicts(is_successful: bool, quarantined: int, verdict: Verdict) -> None:
    assert verdict_of(is_successful=is_successful, quarantined=quarantined) is verdict


def test_a_record_that_is_unaccounted_for_shows_in_the_table() -> None:
    stats = make_stats(accepted=5).model_copy(update={"read": 6})
    assert corpus_row(stats)["unaccounted"] == 1
    assert broken(stats) == ["unaccounted"]
    table = source_table(CorpusStats(sources=(stats,), total=stats))
    assert [row["unaccounted"] for row in table] == [1]


def test_merged_figures_are_those_of_the_whole() -> None:
    merged = merge_stats(
        [make_stats(accepted=3), make_stats(accepted=0, reasons={"duplicate": 2}), make_stats(accepted=4, reasons={"duplicate": 1})], source="total"
    )
    assert (merged.read, merged.num_accepted, merged.reasons, merged.files) == (10, 7, {"duplicate": 3}, 3)
    assert (merged.lengths.min_chars, merged.lengths.max_chars, merged.lengths.by_length) == (5, 50, (0, 0, 0, 7))
