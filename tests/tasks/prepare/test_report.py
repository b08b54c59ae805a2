"""The page about a prepared corpus: what its figures say, and findings where a step or a source loses much."""

from tasks.prepare.report import preparation_page
from tasks.prepare.stats import DuplicateStats, LargeCluster, PreparationStats, StepStats
from tasks.validate.report.page import render
from tasks.validate.stats import Lengths, SourceStats, merge_stats


def stats_of(*, refused: int) -> PreparationStats:
    """One source of 100 documents, so many of which were refused."""
    kept = 100 - refused
    lengths = Lengths(documents=kept, text_bytes=500 * kept, chars=500 * kept, min_chars=500, max_chars=500, by_length=(0,) * 9 + (kept,))
    reasons = {"language-other": refused} if refused else {}
    source = SourceStats(source="<b>web</b>", read=100, reasons=reasons, accepted={"train": lengths})
    steps = (StepStats(name="language", read=100, refused=reasons), StepStats(name="pii", read=kept, changed=7, counts={"email": 9}))
    largest = (LargeCluster(documents=4, kept="0" * 32, split="train", group=0),)
    duplicates = DuplicateStats(compared=kept, clusters=1, largest=largest)
    return PreparationStats(sources=(source,), total=merge_stats((source,), source="total"), steps=steps, duplicates=duplicates)


def test_the_page_says_what_each_step_did() -> None:
    page = preparation_page(stats_of(refused=20), key="prepare/test-0")
    html = render(page)
    assert page.findings == ()
    assert (page.headline, page.tone) == ("80 of 100 documents stay", "good")
    for cell in (">language<", ">20<", ">email 9<", "language-other 20", ">000000000000…<", "&lt;b&gt;web&lt;/b&gt;"):
        assert cell in html
    assert "<b>web" not in html


def test_a_step_and_a_source_that_lose_much_are_findings_with_remedies() -> None:
    page = preparation_page(stats_of(refused=60), key="prepare/test-0")
    assert [finding.keys[0] for finding in page.findings] == ["corpus.preparation.language", "training.mixture.weights"]
    assert "60%" in page.findings[0].text
    assert "most of them (60) by language-other" in page.findings[1].text


def test_a_corpus_of_which_nothing_is_left_has_a_page() -> None:
    assert "0 of 100 documents stay" in render(preparation_page(stats_of(refused=100), key="prepare/test-0"))
