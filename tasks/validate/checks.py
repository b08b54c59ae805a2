"""What the figures of a corpus must satisfy, as data: the table that is judged and the bounds of its columns. Pure.

`judge.py` turns these into a Great Expectations suite; nothing here knows that library.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from schemas.corpus_config import RulesConfig
from tasks.validate.problem import Reason
from tasks.validate.stats import CorpusStats, SourceStats

Row = Mapping[str, str | int | float | None]


class Verdict(StrEnum):
    """What the data were found to be."""

    PASS = "pass"  # noqa: S105  # not a password
    PASS_WITH_QUARANTINE = "pass with quarantine"  # noqa: S105
    FAIL = "fail"


@dataclass(frozen=True)
class Check:
    """A column of the table must stay within bounds."""

    column: str
    """Column of `corpus_row`."""
    text: str
    """The rule, for people."""
    minimum: float | None = None
    """Least value allowed."""
    maximum: float | None = None
    """Greatest value allowed."""
    is_unique: bool = False
    """Instead of bounds: no value may come twice."""
    mend: str = ""
    """What a user can do when it is broken."""


@dataclass(frozen=True)
class PreviousCorpus:
    """The accepted corpus of the same name before this one."""

    key: str
    """Its artifact."""
    read: int
    """Records read for it."""


def corpus_row(stats: SourceStats, *, previous: PreviousCorpus | None = None) -> Row:
    """Returns one row of the table: the figures of a source or of the whole, with the shares that are judged."""
    duplicates = stats.reasons.get(Reason.DUPLICATE.value, 0)
    lengths = stats.lengths
    row: dict[str, str | int | float | None] = {
        "source": stats.source,
        "files": stats.files,
        "raw_bytes": stats.raw_bytes,
        "read": stats.read,
        "accepted": stats.num_accepted,
        "quarantined": stats.num_quarantined,
        "duplicates": duplicates,
        "unaccounted": stats.read - stats.num_accepted - stats.num_quarantined,
        "quarantined_share": _share(stats.num_quarantined - duplicates, stats.read),
        "unreadable_share": _share(stats.unreadable_bytes, stats.raw_bytes),
        "text_bytes": lengths.text_bytes,
        "min_chars": lengths.min_chars,
        "max_chars": lengths.max_chars,
        **{f"documents_{split}": split_lengths.documents for split, split_lengths in stats.accepted.items()},
    }
    if previous is not None:
        row["record_drift"] = _share(abs(stats.read - previous.read), previous.read)
    return row


def corpus_table(stats: CorpusStats, *, previous: PreviousCorpus | None) -> tuple[Row, ...]:
    """Returns the one-row table of the whole corpus."""
    return (corpus_row(stats.total, previous=previous),)


def source_table(stats: CorpusStats) -> tuple[Row, ...]:
    """Returns one row per source."""
    return tuple(corpus_row(source) for source in stats.sources)


def corpus_checks(rules: RulesConfig, *, previous: PreviousCorpus | None) -> tuple[Check, ...]:
    """Returns what decides the verdict."""
    checks = [
        Check("unaccounted", "accepted + quarantined = read", minimum=0, maximum=0),
        Check(
            "accepted",
            f"at least {rules.min_documents} accepted documents (corpus.rules.min_documents)",
            minimum=rules.min_documents,
            mend="add sources, or look at the reasons in the quarantine",
        ),
        Check(
            "quarantined_share",
            f"at most {rules.max_quarantined_share} of the records quarantined, duplicates aside (corpus.rules.max_quarantined_share)",
            maximum=rules.max_quarantined_share,
            mend="look at the reasons in the quarantine; mend the files (where it says invalid UTF-8: name their corpus.encoding), "
            "or raise corpus.rules.max_quarantined_share",
        ),
        Check(
            "unreadable_share",
            f"at most {rules.max_quarantined_share} of the raw bytes in files of which nothing could be read (corpus.rules.max_quarantined_share)",
            maximum=rules.max_quarantined_share,
            mend="restore the files that the quarantine names as damaged, or leave them out with `exclude`; of those of unknown encoding, name it",
        ),
        *_length_checks(rules),
    ]
    if rules.max_record_drift is not None and previous is not None:
        checks.append(
            Check(
                "record_drift",
                f"records changed by at most {rules.max_record_drift} of the previous corpus' {previous.read} (corpus.rules.max_record_drift)",
                maximum=rules.max_record_drift,
                mend=f"compare with {previous.key}; if the change is meant, raise corpus.rules.max_record_drift",
            )
        )
    return tuple(checks)


def source_checks(rules: RulesConfig) -> tuple[Check, ...]:
    """Returns what holds for every source."""
    return (
        Check("source", "each source once", is_unique=True),
        Check("unaccounted", "accepted + quarantined = read, in each source", minimum=0, maximum=0),
        *_length_checks(rules),
    )


def sample_checks(rules: RulesConfig) -> tuple[Check, ...]:
    """Returns what holds for the accepted documents that people are shown."""
    return (
        Check("key", "each document once", is_unique=True),
        Check("chars", f"{rules.min_chars} to {rules.max_chars} characters", minimum=rules.min_chars, maximum=rules.max_chars),
    )


def _length_checks(rules: RulesConfig) -> tuple[Check, ...]:
    return (
        Check("min_chars", f"shortest accepted document: at least {rules.min_chars} characters (corpus.rules.min_chars)", minimum=rules.min_chars),
        Check("max_chars", f"longest accepted document: at most {rules.max_chars} characters (corpus.rules.max_chars)", maximum=rules.max_chars),
    )


def verdict_of(*, is_successful: bool, quarantined: int) -> Verdict:
    """Returns the verdict from the checks' outcome and the number of quarantined records."""
    if not is_successful:
        return Verdict.FAIL
    return Verdict.PASS_WITH_QUARANTINE if quarantined else Verdict.PASS


def values_of(table: Sequence[Row], *, column: str) -> str:
    """Returns the values of a column, for messages."""
    return ", ".join(f"{row[column]:.4g}" if isinstance(row[column], float) else str(row[column]) for row in table)


def _share(part: int, whole: int) -> float:
    """Returns part / whole; of nothing, 0 when the part is nothing too, else 1."""
    if whole == 0:
        return 0.0 if part == 0 else 1.0
    return part / whole
