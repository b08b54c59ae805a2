"""The page as a whole: from figures to one self-contained HTML file. Pure but for reading its template.

Documents are hostile input: the template is rendered with autoescape on, nothing is marked as safe, and the page forbids scripts and every
request (Content-Security-Policy). Equal figures give equal bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from tasks.validate.checks import Verdict
from tasks.validate.report.column_sections import columns_section
from tasks.validate.report.drift import Drift
from tasks.validate.report.finding import ReportFinding
from tasks.validate.report.findings import findings_of
from tasks.validate.report.record_sections import drift_section, duplicates_section, quarantine_section
from tasks.validate.report.sections import characters_section, counts_section, lengths_section, sources_section
from tasks.validate.report.view import Section, of_bytes
from tasks.validate.stats import CorpusStats

MOST_FINDINGS: Final = 100
"""Findings that a page lists, those that matter most: nobody reads more, and a corpus of thousands of sources may have as many."""
_FOLDER: Final = Path(__file__).parent


@dataclass(frozen=True)
class Fact:
    """A number at the top of the page."""

    name: str
    text: str


@dataclass(frozen=True)
class Page:
    """What the template draws."""

    title: str
    """What the page is about."""
    key: str
    """The artifact."""
    headline: str
    """The outcome, for people."""
    tone: str
    """`good`, `warn` or `bad`."""
    summary: str
    """What was judged."""
    facts: tuple[Fact, ...]
    """Numbers at the top."""
    findings: tuple[ReportFinding, ...]
    """What there is to say, what matters most first."""
    sections: tuple[Section, ...]
    """The rest."""
    links: tuple[tuple[str, str], ...] = ()
    """(text, relative address) of what lies beside the page."""


_TONES: Final = {Verdict.PASS: "good", Verdict.PASS_WITH_QUARANTINE: "warn", Verdict.FAIL: "bad"}


def corpus_page(
    stats: CorpusStats,
    *,
    key: str,
    verdict: Verdict,
    num_checks: int,
    failed: Sequence[tuple[str, str]] = (),
    drift: Drift | None = None,
    why_no_drift: str = "",
) -> Page:
    """Returns the report of a corpus.

    Args:
        stats: its figures.
        key: its artifact.
        verdict: what Great Expectations said.
        num_checks: expectations that were evaluated.
        failed: those that failed: what was found, and what mends it.
        drift: how it differs from the previous corpus, if there is one.
        why_no_drift: why there is nothing to compare with.
    """
    total = stats.total
    known = [characters_section(stats, stats.figures), columns_section(stats.figures)] if stats.figures is not None else []
    return Page(
        title="Data report",
        key=key,
        headline=f"Verdict: {verdict.value}",
        tone=_TONES[verdict],
        summary=f"{num_checks - len(failed)} of {num_checks} checks passed; {total.read:,} records read, "
        f"{total.num_accepted:,} accepted, {total.num_quarantined:,} quarantined.",
        facts=(
            Fact("documents", f"{total.num_accepted:,}"),
            Fact("text", of_bytes(total.lengths.text_bytes)),
            Fact("characters", f"{total.lengths.chars:,}"),
            Fact("quarantined", f"{total.num_quarantined:,}"),
            Fact("sources", f"{len(stats.sources):,}"),
            Fact("files", f"{total.files:,}"),
        ),
        findings=findings_of(stats, failed=failed, drift=drift),
        sections=(
            counts_section(stats),
            sources_section(stats),
            lengths_section(stats),
            *known,
            duplicates_section(stats),
            quarantine_section(stats),
            drift_section(drift, why_not=why_no_drift),
        ),
        links=(
            ("Great Expectations' pages", "../docs/index.html"),
            ("sample of accepted documents", "../docs/sample.html"),
            ("figures", "../stats.json"),
        ),
    )


def render(page: Page) -> str:
    """Returns the page as HTML."""
    return _template().render(page=page, most_findings=MOST_FINDINGS)


@cache
def _template() -> Template:
    environment = Environment(loader=FileSystemLoader(_FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("page.html")
