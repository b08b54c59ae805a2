"""Great Expectations, for real: suites, a checkpoint, Data Docs; and what a reader of the docs must not be exposed to."""

import logging
from pathlib import Path
from typing import Any

import pytest

from schemas.corpus_config import RulesConfig
from tasks.validate import judge as judging
from tasks.validate.checks import PreviousCorpus, Verdict
from tasks.validate.judge import judge, sample_page
from tasks.validate.sample import SampleDocument
from tasks.validate.stats import CorpusStats, Lengths, SourceStats, merge_stats

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


def make_stats(*, accepted: int = 90, quarantined: int = 0) -> CorpusStats:
    lengths = (
        Lengths(documents=accepted, text_bytes=900, chars=900, min_chars=5, max_chars=50, by_length=(0, 0, 0, accepted)) if accepted else Lengths()
    )
    reasons = {"invalid JSON": quarantined} if quarantined else {}
    source = SourceStats(source="prose", files=1, raw_bytes=1000, read=accepted + quarantined, reasons=reasons, accepted={"train": lengths})
    return CorpusStats(sources=(source,), total=merge_stats((source,), source="total"))


def make_sample(**changes: Any) -> SampleDocument:
    fields = {"key": 1, "doc_id": "0" * 32, "source": "prose", "path": "a.jsonl", "row": 1, "split": "train", "chars": 9, "excerpt": "some text"}
    return SampleDocument.model_validate(fields | changes)


@pytest.mark.slow
def test_a_good_corpus_passes_and_the_docs_show_every_suite(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    judging.preload().join()
    judgement = judge(make_stats(), name="corpus-7f3a", rules=RulesConfig(), previous=None, sample=[make_sample()], docs_dir=tmp_path / "docs")
    assert (judgement.verdict, judgement.findings) == (Verdict.PASS, ())
    assert judgement.num_checks == 12
    site = tmp_path / "docs"
    pages = {path.relative_to(site).as_posix() for path in site.rglob("*.html")}
    assert {"index.html", "sample.html", "expectations/corpus.html", "expectations/sources.html", "expectations/sample.html"} <= pages
    results = [path for path in site.rglob("*.html") if "validations" in path.parts]
    assert len(results) == 3
    assert any("accepted + quarantined = read" in path.read_text() for path in results)
    assert sum(path.stat().st_size for path in site.rglob("*") if path.is_file()) < 1_000_000
    assert capfd.readouterr() == ("", "")  # no progress bars, no remarks
    assert not [record for record in caplog.records if record.name.startswith("great_expectations")]


@pytest.mark.slow
def test_a_bad_corpus_fails_with_the_rule_what_was_found_and_the_mend(tmp_path: Path) -> None:
    rules = RulesConfig(max_record_drift=0.5, min_documents=10)
    previous = PreviousCorpus(key="validate/before-0", read=1000)
    judgement = judge(
        make_stats(accepted=5, quarantined=5), name="corpus-7f3a", rules=rules, previous=previous, sample=[], docs_dir=tmp_path / "docs"
    )
    assert judgement.verdict is Verdict.FAIL
    found = {finding.text: finding.mend for finding in judgement.findings}
    assert [text.rpartition(": ")[2] for text in found] == ["5", "0.5", "0.99"]
    assert any("corpus.rules.min_documents" in text for text in found)
    assert any("corpus.rules.max_quarantined_share" in mend for mend in found.values())
    assert any("validate/before-0" in mend for mend in found.values())
    assert "Failed" in next((tmp_path / "docs/validations/corpus").rglob("*.html")).read_text()


@pytest.mark.slow
def test_quarantine_alone_does_not_fail_and_a_corpus_of_nothing_does(tmp_path: Path) -> None:
    judged = judge(make_stats(quarantined=9), name="corpus-7f3a", rules=RulesConfig(), previous=None, sample=[make_sample()], docs_dir=tmp_path / "a")
    assert judged.verdict is Verdict.PASS_WITH_QUARANTINE
    nothing = judge(make_stats(accepted=0, quarantined=1), name="corpus-7f3a", rules=RulesConfig(), previous=None, sample=[], docs_dir=tmp_path / "b")
    assert nothing.verdict is Verdict.FAIL


def test_text_of_the_corpus_cannot_run_in_a_readers_browser() -> None:
    page = sample_page([make_sample(excerpt="<script>alert(1)</script>", path="<img src=x onerror=alert(2)>.txt")])
    assert "<script" not in page
    assert "<img" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
