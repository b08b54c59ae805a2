"""The whole way on real text: raw files with planted problems, the stage, Great Expectations, and the page that it leaves."""

import json
import random
import sysconfig
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from cluster.layout import REPORT_NAME
from schemas.artifact import ArtifactRecord
from schemas.config import RunConfig
from schemas.errors import DataVerdictError
from schemas.stage import Stage
from tasks.validate.build import build
from tasks.validate.stats import CorpusStats
from tests.fakes.in_process_work import commit

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]
Recipe = Callable[..., RunConfig]


class Tables(HTMLParser):
    """The tables of a page by their names, as rows of text; and its list items."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.items: list[str] = []
        self._rows: list[list[str]] = []
        self._text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self._rows = self.tables.setdefault(dict(attrs).get("aria-label") or "", [])
        elif tag == "tr":
            self._rows.append([])
        if tag in ("td", "th", "li"):
            self._text = ""

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._rows[-1].append(self._text)
        elif tag == "li":
            self.items.append(" ".join(self._text.split()))

    def handle_data(self, data: str) -> None:
        self._text += data


def library_texts(number: int) -> list[str]:
    """The standard library's modules."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:number]
    return [file.read_text(encoding="utf-8") for file in files]


def write(path: Path, records: Sequence[dict[str, Any] | str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((record if isinstance(record, str) else json.dumps(record)) + "\n" for record in records), encoding="utf-8")


def snippets(texts: Sequence[str], number: int, *, seed: int) -> list[dict[str, Any]]:
    """Pieces of real text, with columns: two that say the same, one of another scale, a rare class, nulls."""
    rng, records = random.Random(seed), []
    for index in range(number):
        text = rng.choice(texts)
        start, score = rng.randrange(max(1, len(text) - 600)), rng.random()
        columns = {"score": score, "quality": 2 * score + rng.random() / 1000, "views": rng.randrange(10_000_000), "note": "x" if index % 3 else None}
        records.append(
            {"text": f"{index} {text[start : start + rng.randrange(200, 600)]}", "label": "rare" if index % 50 == 0 else "usual"} | columns
        )
    return records


def made(work: Any) -> tuple[str, CorpusStats]:
    """The page and the figures of a finished corpus, whose record is committed so that the next one finds it."""
    record: ArtifactRecord = commit(work.root, Stage.VALIDATE, build(work), key=work.key)
    work.storage.create_exclusive(f"{work.key}/record.json", record.sealed().to_bytes())
    stats = CorpusStats.model_validate_json((work.output_dir / "stats.json").read_bytes())
    return (work.output_dir / REPORT_NAME).read_text(encoding="utf-8"), stats


def test_the_page_says_what_stats_say_and_finds_what_was_planted(tmp_path: Path, recipe: Recipe, work_on: Callable[..., Any]) -> None:
    texts = library_texts(60)
    raw = tmp_path / "raw"
    write(raw / "web.jsonl", snippets(texts, 700, seed=1))
    write(raw / "old.jsonl", [{"text": f"{index} {texts[index % 60][:4000]}"} for index in range(300)])
    sources = {name: {"path": str(raw / f"{name}.jsonl"), "name": name} for name in ("web", "old", "small")}
    splits = {"validation": 0.05, "test": 0.05}
    first_page, _ = made(work_on(recipe(sources["web"], sources["old"], splits=splits), key="validate/test-aaaaaaaaaaaa"))
    assert "There is no earlier corpus of this name to compare with." in first_page

    copies = [{"text": "<script>alert('copied')</script> a licence that is everywhere"}] * 600
    hostile = ['{"text": "<script>alert(1)</script>'] * 20
    write(raw / "web.jsonl", [*snippets(texts, 1600, seed=2), *copies, *hostile])
    write(raw / "small.jsonl", [{"text": f"数据质量是人们要看的东西，第{index}条。"} for index in range(30)])
    work = work_on(recipe(sources["web"], sources["small"], splits=splits, group_bytes=400_000), key="validate/test-bbbbbbbbbbbb")
    page, stats = made(work)
    read = Tables(page)

    counts = {row[0]: row[1:] for row in read.tables["Records and documents by source"]}
    for source in (*stats.sources, stats.total):
        documents = [f"{source.accepted[split].documents:,}" for split in ("train", "validation", "test")]
        assert counts[source.source][2:] == [f"{source.read:,}", f"{source.num_accepted:,}", f"{source.num_quarantined:,}", *documents]
    assert stats.total.read == 2250
    assert {row[0]: row[1] for row in read.tables["Reasons by source"][1:]}["web"] == "599"
    quantiles = {row[0]: row[1:] for row in read.tables["Characters per document: quantiles (right to 3 %) by source and split"]}
    train = stats.sources[0].accepted["train"]
    assert (quantiles["web, train"][0], quantiles["web, train"][1], quantiles["web, train"][7]) == (
        f"{train.documents:,}",
        f"{train.min_chars:,}",
        f"{train.max_chars:,}",
    )
    assert stats.figures is not None
    assert stats.figures.whole.lengths.total == stats.total.num_accepted
    assert stats.figures.whole.characters.total == stats.total.lengths.chars
    assert {cluster.removed for cluster in stats.figures.refused.clusters.values()} == {599}
    correlations = read.tables["Correlation of columns (Pearson's r), over documents that have both"]
    assert correlations[1 + correlations[0][1:].index("quality")][1 + correlations[0][1:].index("score")] == "+1.00"

    findings = [item for item in read.items if "Remedy:" in item]
    for words in (
        ("imbalance: web is 99", "training.mixture.weights"),
        ("web: 27.0% of its records (599) are copies", "corpus.preparation.duplicates.near"),
        ("one text is there 600 times", "corpus.sources[].exclude"),
        ("mixed scales: the standard deviation of column 'views'", "standardise"),
        ("columns 'quality' and 'score' say nearly the same", "keep one of them"),
        ("class imbalance in column 'label'", "training.mixture.weights"),
        ("column 'note' is null or missing", "corpus.rules.required_columns"),
        ("drift: 2,250 records, +125%", "corpus.rules.max_record_drift"),
        ("drift: new sources against validate/test-aaaaaaaaaaaa: small", "corpus.sources"),
        ("drift: vanished sources against validate/test-aaaaaaaaaaaa: old", "corpus.sources"),
        ("drift: document lengths are distributed otherwise", "corpus.rules.min_chars"),
    ):
        assert [finding for finding in findings if all(word in finding for word in words)], (words, findings)
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert any(note.startswith("data report: ") and note.endswith(REPORT_NAME) for note in work.notes)


def test_a_corpus_that_fails_has_a_page_too(tmp_path: Path, recipe: Recipe, work_on: Callable[..., Any]) -> None:
    write(tmp_path / "a.jsonl", ["broken"] * 50 + [{"text": text[:500]} for text in library_texts(5)])
    work = work_on(recipe(str(tmp_path / "a.jsonl")))
    for _ in range(2):  # the second time as after a restart
        with pytest.raises(DataVerdictError) as caught:
            build(work)
    assert str(work.output_dir / REPORT_NAME) in caught.value.mend
    page = (work.output_dir / REPORT_NAME).read_text(encoding="utf-8")
    assert "Verdict: fail" in page
    assert "corpus: at most 0.1 of the records quarantined" in page
