"""Publishing the page: beside the artifact, again after a restart, and whatever became of the corpus before."""

from collections.abc import Callable
from typing import Any

import pytest

from cluster.layout import REPORT_NAME
from cluster.storage import hash_file
from schemas.config import RunConfig
from schemas.errors import VerificationError
from tasks.validate.build import previous_corpus
from tasks.validate.checks import PreviousCorpus, Verdict
from tasks.validate.judge import Finding, Judgement
from tasks.validate.report.publish import publish_report
from tests.tasks.validate.report.conftest import even, stats_of

BEFORE = "validate/test-aaaaaaaaaaaa"
FAILED = Judgement(Verdict.FAIL, 9, (Finding("corpus", "too many <records> refused", "look at them"),))


@pytest.fixture
def work(recipe: Callable[..., RunConfig], work_on: Callable[..., Any]) -> Any:
    return work_on(recipe("nowhere"))


def published(work: Any, *, previous: PreviousCorpus | None) -> str:
    entry = publish_report(work, stats_of({"web": even(120)}), judgement=FAILED, previous=previous)
    path = work.output_dir / REPORT_NAME
    assert (entry.path, entry.size, entry.xxh3) == (REPORT_NAME, path.stat().st_size, hash_file(path))
    page: str = path.read_text(encoding="utf-8")
    return page


def test_the_page_has_the_verdict_and_replaces_that_of_an_earlier_start(work: Any) -> None:
    first = published(work, previous=None)
    assert "Verdict: fail" in first
    assert "corpus: too many &lt;records&gt; refused" in first
    assert published(work, previous=None) == first
    assert work.notes[-1] == f"data report: {work.storage.url}/{work.key}/{REPORT_NAME}"


def test_the_corpus_before_is_compared_with_where_its_figures_can_be_read(work: Any) -> None:
    previous = PreviousCorpus(key=BEFORE, read=60)
    assert f"{BEFORE}/stats.json is no longer there" in published(work, previous=previous)
    work.storage.create_exclusive(f"{BEFORE}/stats.json", b'{"of": "another version"}')
    assert f"{BEFORE}/stats.json cannot be read by this version" in published(work, previous=previous)
    work.storage.delete(f"{BEFORE}/stats.json")
    work.storage.create_exclusive(f"{BEFORE}/stats.json", stats_of({"web": even(60)}).model_dump_json().encode())
    assert "drift: 120 records, +100% against the 60 of validate/test-aaaaaaaaaaaa" in published(work, previous=previous)


def test_a_damaged_record_stops_only_where_a_bound_depends_on_it(work: Any) -> None:
    work.storage.create_exclusive(f"{BEFORE}/record.json", b"{}")
    assert previous_corpus(work.storage, name="test", key=work.key, passes_over_damage=True) is None
    with pytest.raises(VerificationError, match=BEFORE):
        previous_corpus(work.storage, name="test", key=work.key)
