"""Puts the report into the artifact's folder, whatever the verdict. It is no part of the content hash, like the Data Docs beside it."""

import logging
from typing import TYPE_CHECKING, Final

import xxhash
from pydantic import ValidationError

from cluster.layout import REPORT_NAME
from schemas.artifact import FileEntry
from tasks.validate.checks import PreviousCorpus
from tasks.validate.report.drift import drift_of
from tasks.validate.report.page import Page, corpus_page, render
from tasks.validate.stats import CorpusStats

if TYPE_CHECKING:
    from tasks.validate.judge import Judgement
    from tasks.work import Work

logger = logging.getLogger(__name__)
_FOLDER: Final = REPORT_NAME.partition("/")[0]


def publish_report(work: "Work", stats: CorpusStats, *, judgement: "Judgement", previous: PreviousCorpus | None) -> FileEntry:
    """Publishes the page of an accepted corpus and returns its entry.

    Args:
        work: the stage in the making.
        stats: the corpus' figures.
        judgement: what Great Expectations found.
        previous: the corpus of this name before this one, if there is one.
    """
    before, why_not = (None, "") if previous is None else _stats_of(work, previous)
    page = corpus_page(
        stats,
        key=work.key,
        verdict=judgement.verdict,
        num_checks=judgement.num_checks,
        failed=[(f"{finding.suite}: {finding.text}", finding.mend) for finding in judgement.findings],
        drift=None if before is None or previous is None else drift_of(stats, previous=before, key=previous.key),
        why_no_drift=why_not,
    )
    return publish_page(work, page)


def publish_page(work: "Work", page: Page) -> FileEntry:
    """Publishes a page as the artifact's report, in place of one that an unfinished start left, and returns its entry."""
    data = render(page).encode()
    work.storage.delete(f"{work.key}/{_FOLDER}")
    work.storage.create_exclusive(f"{work.key}/{REPORT_NAME}", data)
    work.note(f"data report: {work.storage.url}/{work.key}/{REPORT_NAME}")
    return FileEntry(path=REPORT_NAME, size=len(data), xxh3=xxhash.xxh3_128(data).hexdigest())


def _stats_of(work: "Work", previous: PreviousCorpus) -> tuple[CorpusStats | None, str]:
    """Returns the figures of an earlier corpus, or why there are none: its damage, or its age, must not stop this one."""
    key = f"{previous.key}/stats.json"
    if not work.storage.exists(key):
        return None, f"{key} is no longer there: there is nothing to compare with."
    try:
        return CorpusStats.model_validate_json(work.storage.read(key)), ""
    except ValidationError as error:
        logger.warning("%s cannot be read, so the report shows no drift: %s", key, error)
        return None, f"{key} cannot be read by this version: there is nothing to compare with."
