"""The page: what is on it, that it is one file that asks for nothing, and that documents cannot speak through it."""

from html.parser import HTMLParser
from pathlib import Path

import pytest

from tasks.validate.checks import Verdict
from tasks.validate.problem import Reason
from tasks.validate.report.drift import drift_of
from tasks.validate.report.page import MOST_FINDINGS, corpus_page, render
from tasks.validate.stats import CorpusStats
from tests.tasks.validate.report.conftest import even, stats_of

GOLDEN = Path(__file__).resolve().parents[3] / "golden" / "data_report.txt"
HOSTILE = "<script>alert('x')</script><img src=x onerror=alert(1)>\"'&"
_VOID = {"meta", "line", "rect", "br", "img", "link", "input"}


class Outline(HTMLParser):
    """Reads a page: its outline for people who hear it, its tags, and what they refer to."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.labels: list[str] = []
        self._open: list[str] = []
        self._text = ""
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append(tag)
        self.ids += [given["id"] or ""] if "id" in given else []
        self.references += [given[name] or "" for name in ("href", "src", "action", "data") if name in given]
        assert not [name for name in given if name.startswith("on")]
        if tag in ("table", "svg") and "aria-label" in given:
            self.labels.append(given["aria-label"] or "")
        if tag not in _VOID:
            self._open.append(tag)
        self._text = ""

    def handle_endtag(self, tag: str) -> None:
        if tag in _VOID:
            return
        assert self._open.pop() == tag
        marks = {"h1": "# ", "h2": "## ", "figcaption": "  plot: ", "caption": "  bars: ", "summary": "    behind it: ", "thead": ""}
        if tag in marks and self._text.strip():
            self.lines.append(marks[tag] + self._text.strip())
        elif tag == "p" and self._text.strip() and self._open[-1:] == ["div"]:
            self.lines.append("  table: " + self._text.strip())
        self._text = ""

    def handle_data(self, data: str) -> None:
        self._text += data


def page_of(stats: CorpusStats, **options: object) -> str:
    return render(corpus_page(stats, key="validate/test-000000000000", verdict=Verdict.PASS_WITH_QUARANTINE, num_checks=9, **options))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def stats() -> CorpusStats:
    documents = {
        "web": [
            (f"{index} {HOSTILE} " + "water " * 30, {"label": HOSTILE if index % 9 else "b", HOSTILE: index, "n": index / 3}) for index in range(60)
        ],
        "中文": even(40, word="水轮转动"),
    }
    return stats_of(documents, refused={"web": {Reason.DUPLICATE: 9, Reason.INVALID_JSON: 3}})


def test_the_outline_is_the_golden_one(stats: CorpusStats) -> None:
    outline = Outline(page_of(stats, drift=drift_of(stats, previous=stats, key="validate/test-before")))
    found = "\n".join(outline.lines) + "\n"
    assert found == GOLDEN.read_text(encoding="utf-8"), found


def test_documents_cannot_speak_through_the_page(stats: CorpusStats) -> None:
    html = page_of(stats, failed=[(HOSTILE, HOSTILE)])
    outline = Outline(html)
    assert {"script", "img", "iframe", "object", "form", "link"}.isdisjoint(outline.tags)
    assert "<script" not in html
    assert html.count("&lt;script&gt;") >= 5
    assert "default-src &#39;none&#39;" in html or "default-src 'none'" in html


def test_the_page_asks_for_nothing_and_its_links_lead_somewhere(stats: CorpusStats) -> None:
    html = page_of(stats)
    outline = Outline(html)
    assert len(outline.ids) == len(set(outline.ids))
    assert {reference for reference in outline.references if not reference.startswith("#")} == {
        "../docs/index.html",
        "../docs/sample.html",
        "../stats.json",
    }
    assert [reference for reference in outline.references if reference.startswith("#") and reference[1:] not in outline.ids] == []
    assert "http" not in html.replace("http-equiv", "")
    assert "url(" not in html
    assert len(html.encode()) < 200_000


def test_every_plot_has_a_table_behind_it(stats: CorpusStats) -> None:
    html = page_of(stats)
    outline = Outline(html)
    plots = [line.removeprefix("  plot: ") for line in outline.lines if line.startswith("  plot: ")]
    assert len(plots) >= 5
    assert [plot for plot in plots if plot not in outline.labels] == []
    assert html.count("<figure") == html.count("<details>") == len(plots)


def test_equal_figures_give_equal_bytes(stats: CorpusStats) -> None:
    again = CorpusStats.model_validate_json(stats.model_dump_json())
    assert page_of(again) == page_of(stats)


@pytest.mark.parametrize("verdict", Verdict)
def test_nothing_at_all_has_a_page_too(verdict: Verdict) -> None:
    html = render(corpus_page(stats_of({"web": []}), key="validate/a", verdict=verdict, num_checks=1, failed=[("too few", "")]))
    assert f"Verdict: {verdict.value}" in html
    assert "No document was accepted." in html
    old = stats_of({"web": even(30)}).model_copy(update={"figures": None})
    assert "Languages and characters" not in render(corpus_page(old, key="validate/a", verdict=verdict, num_checks=1))


def test_many_sources_are_all_in_tables_and_the_largest_in_plots() -> None:
    stats = stats_of({f"s{index:03d}": even(3, length=100 + index) for index in range(60)})
    html = page_of(stats)
    assert all(f">s{index:03d}<" in html for index in range(60))
    assert "s059: characters per document" in html
    assert "s000: characters per document" not in html
    assert html.count('<li class="') == 1
    many = corpus_page(stats, key="validate/a", verdict=Verdict.FAIL, num_checks=900, failed=[(f"check {index}", "") for index in range(150)])
    assert render(many).count('<li class="') == MOST_FINDINGS
    assert f"{len(many.findings) - MOST_FINDINGS} more are left out" in render(many)
    assert len(html.encode()) < 1_000_000
