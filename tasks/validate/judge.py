"""Great Expectations judges the exact figures. The only module that imports it, lazily: the import alone costs 3 to 7 seconds.

Three suites in one checkpoint: the whole corpus (decides the verdict), each source, and a seeded sample of accepted documents.
Data Docs are built into a folder, without the 4 MB of fonts and tutorial images that the library ships.
"""

import gc
import html
import logging
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.corpus_config import RulesConfig
from tasks.validate.checks import (
    Check,
    PreviousCorpus,
    Row,
    Verdict,
    corpus_checks,
    corpus_table,
    sample_checks,
    source_checks,
    source_table,
    values_of,
    verdict_of,
)
from tasks.validate.sample import SampleDocument
from tasks.validate.stats import CorpusStats

_SITE_NAME = "headrace"
SAMPLE_PAGE = "sample.html"
_STYLE = (
    "body{font-family:sans-serif;margin:2em} td,th{text-align:left;vertical-align:top;padding:.3em .8em} "
    "code{white-space:pre-wrap;word-break:break-all}"
)
_KEPT_SUFFIXES = (".html", ".css", ".ico", ".svg")


@dataclass(frozen=True)
class Finding:
    """A check that failed."""

    suite: str
    """`corpus`, `sources` or `sample`."""
    text: str
    """The rule and what was found."""
    mend: str
    """What a user can do. May be empty."""


@dataclass(frozen=True)
class Judgement:
    """What Great Expectations found."""

    verdict: Verdict
    """The outcome."""
    num_checks: int
    """Expectations that were evaluated."""
    findings: tuple[Finding, ...]
    """Those that failed."""


@dataclass(frozen=True)
class _Suite:
    """A table and what it must satisfy."""

    name: str
    table: Sequence[Row]
    checks: tuple[Check, ...]


def preload() -> threading.Thread:
    """Starts importing Great Expectations in the background, while jobs run elsewhere, and returns the thread. `judge` waits for it by itself."""
    thread = threading.Thread(target=_import, name="import great_expectations", daemon=True)
    thread.start()
    return thread


def judge(
    stats: CorpusStats, *, name: str, rules: RulesConfig, previous: PreviousCorpus | None, sample: Sequence[SampleDocument], docs_dir: Path
) -> Judgement:
    """Judges a corpus and builds its Data Docs.

    Args:
        stats: exact figures.
        name: what the docs call the corpus.
        rules: the bounds.
        previous: what the number of records is compared with, if anything.
        sample: accepted documents to show.
        docs_dir: a folder for the site; created, must be empty.
    """
    suites = [
        _Suite("corpus", corpus_table(stats, previous=previous), corpus_checks(rules, previous=previous)),
        _Suite("sources", source_table(stats), source_checks(rules)),
    ]
    if sample:
        suites.append(_Suite("sample", [document.model_dump(mode="json") for document in sample], sample_checks(rules)))
    with tempfile.TemporaryDirectory(prefix="headrace-judge-") as scratch:
        tables_dir, site_dir = Path(scratch, "tables"), Path(scratch, "site")
        tables_dir.mkdir()
        findings = _findings_of(_run_checkpoint(suites, name=name, tables_dir=tables_dir, site_dir=site_dir), suites)
        _keep_site(site_dir, docs_dir)
    num_checks = sum(len(suite.checks) for suite in suites)
    (docs_dir / SAMPLE_PAGE).write_text(sample_page(sample), encoding="utf-8")
    verdict = verdict_of(is_successful=not findings, quarantined=stats.total.num_quarantined)
    return Judgement(verdict=verdict, num_checks=num_checks, findings=findings)


def sample_page(sample: Sequence[SampleDocument]) -> str:
    """Returns an HTML page of accepted documents. Everything that comes from the data is escaped."""
    head = "<tr><th>source</th><th>file</th><th>row</th><th>split</th><th>characters</th><th>begins with</th></tr>"
    rows = "\n".join(
        "<tr>"
        + "".join(f"<td>{html.escape(str(value))}</td>" for value in (item.source, item.path, item.row, item.split, f"{item.chars:,}"))
        + f"<td><code>{html.escape(item.excerpt)}</code></td></tr>"
        for item in sample
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Sample of accepted documents</title><style>{_STYLE}</style></head>'
        f'<body><h1>Sample of accepted documents</h1><p><a href="index.html">Data Docs</a></p><table>{head}\n{rows}</table></body></html>\n'
    )


def _run_checkpoint(suites: Sequence[_Suite], *, name: str, tables_dir: Path, site_dir: Path) -> Any:
    """Returns the result of one checkpoint over all suites, having built the site. Tables are files: a checkpoint takes one data frame at most."""
    gx = _import()
    import pandas as pd
    from great_expectations.core.run_identifier import RunIdentifier

    context = gx.get_context(mode="ephemeral", project_config=_context_config())
    source = context.data_sources.add_pandas_filesystem("tables", base_directory=tables_dir)
    definitions = []
    for suite in suites:
        pd.DataFrame(suite.table).to_parquet(tables_dir / f"{suite.name}.parquet")
        batch = source.add_parquet_asset(suite.name).add_batch_definition_path("all", path=f"{suite.name}.parquet")
        expectations = context.suites.add(gx.ExpectationSuite(name=suite.name, expectations=[_expectation(check) for check in suite.checks]))
        definitions.append(context.validation_definitions.add(gx.ValidationDefinition(name=suite.name, data=batch, suite=expectations)))
    checkpoint = gx.Checkpoint(name="corpus", validation_definitions=definitions, actions=[], result_format="BASIC")
    result = context.checkpoints.add(checkpoint).run(run_id=RunIdentifier(run_name=name))
    _build_site(context, site_dir)
    return result


def _build_site(context: Any, site_dir: Path) -> None:
    """Builds Data Docs once: the action that does it for a checkpoint builds the site anew for each suite."""
    from great_expectations.render.renderer.site_builder import SiteBuilder

    site = SiteBuilder(
        context,
        store_backend={"class_name": "TupleFilesystemStoreBackend", "base_directory": str(site_dir)},
        site_name=_SITE_NAME,
        site_index_builder={"class_name": "DefaultSiteIndexBuilder", "show_cta_footer": False},
        show_how_to_buttons=False,
        runtime_environment={"root_directory": context.root_directory},
    )
    for section in site.site_section_builders.values():
        section.view_class.env = site.site_index_builder.view_class.env  # equal in GX 1.24: what one has compiled serves all
    site.build()


def _expectation(check: Check) -> Any:
    kinds = _import().expectations
    if check.is_unique:
        return kinds.ExpectColumnValuesToBeUnique(column=check.column, description=check.text)
    return kinds.ExpectColumnValuesToBeBetween(column=check.column, min_value=check.minimum, max_value=check.maximum, description=check.text)


def _findings_of(result: Any, suites: Sequence[_Suite]) -> tuple[Finding, ...]:
    """Returns the checks that failed, in the order of the suites. An expectation that could not be evaluated has failed."""
    outcomes = {str(run.suite_name): run.results for run in result.run_results.values()}
    findings = []
    for suite in suites:
        results = outcomes[suite.name]
        assert len(results) == len(suite.checks), f"{suite.name}: {len(results)} of {len(suite.checks)} expectations were evaluated"
        failed = {outcome.expectation_config.description for outcome in results if not outcome.success}
        findings += [
            Finding(suite=suite.name, text=f"{check.text}: {values_of(suite.table, column=check.column)}", mend=check.mend)
            for check in suite.checks
            if check.text in failed
        ]
    assert bool(findings) != bool(result.success), "the checkpoint's success and its expectations disagree"
    return tuple(findings)


def _context_config() -> Any:
    """Returns a Data Context that lives in memory, shows no progress bars and sends nothing."""
    from great_expectations.data_context.types.base import DataContextConfig, InMemoryStoreBackendDefaults

    return DataContextConfig(
        store_backend_defaults=InMemoryStoreBackendDefaults(),
        data_docs_sites={},
        progress_bars={"globally": False},
        analytics_enabled=False,
    )


def _keep_site(built: Path, docs_dir: Path) -> None:
    """Copies the pages, styles and icons of a built site."""
    for path in sorted(built.rglob("*")):
        if path.suffix in _KEPT_SUFFIXES:
            target = docs_dir / path.relative_to(built)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


def _import() -> Any:
    """Returns the library, imported without telemetry and told to keep its remarks to itself."""
    is_new = "great_expectations" not in sys.modules
    os.environ["GX_ANALYTICS_ENABLED"] = "false"  # 1.24 sends nothing any more; other versions may
    logging.getLogger("great_expectations").setLevel(logging.WARNING)
    import great_expectations
    import great_expectations.expectations

    if is_new:
        gc.freeze()  # half a million objects that stay: looking through them for garbage again and again was a quarter of a judgement
    return great_expectations
