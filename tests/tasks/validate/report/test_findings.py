"""Planted problems are found, each with its remedy, and a sound corpus raises none."""

import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel

from schemas.config import RunConfig
from tasks.validate.problem import Reason
from tasks.validate.report import column_findings, findings
from tasks.validate.report.drift import drift_of
from tasks.validate.report.finding import ReportFinding, Severity
from tasks.validate.report.findings import REMEDIES, findings_of
from tasks.validate.stats import CorpusStats
from tests.tasks.validate.report.conftest import Documents, even, stats_of


def found(stats: CorpusStats, word: str, **options: Any) -> ReportFinding:
    """The one finding whose text contains a word."""
    matching = [finding for finding in findings_of(stats, **options) if word in finding.text]
    assert len(matching) == 1, [finding.text for finding in findings_of(stats, **options)]
    return matching[0]


def with_columns(*records: dict[str, Any]) -> Documents:
    return {"web": [(f"{index} " + "some text " * 40, record) for index, record in enumerate(records)]}


def test_a_sound_corpus_has_no_findings() -> None:
    assert findings_of(stats_of({"a": even(600), "b": even(500)})) == ()


PLANTED: dict[str, tuple[str, Callable[[], CorpusStats], str, Severity]] = {
    "imbalance": ("imbalance", lambda: stats_of({"big": even(990), "small": even(20)}), "training.mixture.weights", Severity.WARNING),
    "empty source": ("not one of its", lambda: stats_of({"a": even(600), "b": []}), "corpus.sources[].text_column", Severity.WARNING),
    "few held out": ("the test split has", lambda: stats_of({"a": even(600)[:900]}), "corpus.splits.test", Severity.WARNING),
    "duplicates": (
        "are copies of others",
        lambda: stats_of({"a": even(600)}, refused={"a": {Reason.DUPLICATE: 300}}),
        "corpus.preparation.duplicates.near",
        Severity.WARNING,
    ),
    "kept copies": (
        "copies were kept",
        lambda: stats_of({"a": even(300) * 4}, keeps_duplicates=True),
        "corpus.rules.drop_duplicates",
        Severity.WARNING,
    ),
    "bad encoding": (
        "quarantined: invalid UTF-8",
        lambda: stats_of({"a": even(600)}, refused={"a": {Reason.INVALID_UTF8: 90}}),
        "corpus.encoding",
        Severity.WARNING,
    ),
    "too short": (
        "quarantined: too short",
        lambda: stats_of({"a": even(600)}, refused={"a": {Reason.TOO_SHORT: 9}}),
        "corpus.rules.min_chars",
        Severity.NOTE,
    ),
    "scale of lengths": ("scale:", lambda: stats_of({"a": even(1100), "b": even(600, length=20_000)}), "tokenization.packing", Severity.NOTE),
    "short": ("half of the documents have", lambda: stats_of({"a": even(1100, length=20)}), "training.document_attention", Severity.NOTE),
    "mojibake": ("read as Latin-1", lambda: stats_of({"a": even(1100, word="KÃ¤se ")}), "corpus.encoding", Severity.WARNING),
    "replaced": ("U+FFFD", lambda: stats_of({"a": even(1100, word="K\ufffdse ")}), "corpus.rules.min_printable_share", Severity.WARNING),
    "private use": ("private use", lambda: stats_of({"a": even(1100, word="some text \ue000 ")}), "corpus.rules.min_printable_share", Severity.NOTE),
    "scripts": ("several scripts", lambda: stats_of({"a": even(600), "b": even(500, word="水轮转动")}), "tokenizer.vocab_size", Severity.NOTE),
    "nulls": (
        "null or missing",
        lambda: stats_of(with_columns(*({"n": None if i % 2 else i, "m": i} for i in range(1100)))),
        "corpus.rules.required_columns",
        Severity.NOTE,
    ),
    "mixed scales": (
        "mixed scales",
        lambda: stats_of(with_columns(*({"a": (i * 7919 % 1009) / 1009, "b": (i * 104729 % 1009) * 1e5} for i in range(1100)))),
        "corpus.rules.required_columns",
        Severity.WARNING,
    ),
    "correlation": (
        "say nearly the same",
        lambda: stats_of(with_columns(*({"a": i, "b": -3 * i + i % 5} for i in range(1100)))),
        "corpus.rules.required_columns",
        Severity.WARNING,
    ),
    "class imbalance": (
        "class imbalance",
        lambda: stats_of(with_columns(*({"label": "rare" if i % 100 == 0 else "common"} for i in range(1100)))),
        "training.mixture.weights",
        Severity.WARNING,
    ),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_what_was_planted_is_found_with_its_remedy(planted: str) -> None:
    word, stats, key, severity = PLANTED[planted]
    finding = found(stats(), word)
    assert key in finding.keys
    assert key in finding.mend
    assert finding.severity is severity


def test_drift_is_found_and_none_against_itself() -> None:
    previous = stats_of({"web": even(1100), "old": even(600)})
    assert findings_of(previous, drift=drift_of(previous, previous=previous, key="validate/a")) == findings_of(previous)
    now = stats_of({"web": even(600, length=6000, word="水轮转动"), "new": even(600)})
    drift = drift_of(now, previous=previous, key="validate/before-0")
    texts = {finding.text for finding in findings_of(now, drift=drift) if finding.text.startswith("drift: ")}
    for word in ("1,200 records, -29%", "new sources", "vanished sources", "lengths are distributed otherwise", "scripts are mixed otherwise"):
        assert any(word in text for text in texts), texts


def test_failed_checks_come_first_with_the_verdict_s_remedy() -> None:
    found = findings_of(stats_of({"big": even(990), "small": even(20)}), failed=[("corpus: too few", "add sources")])
    assert (found[0].severity, found[0].text, found[0].mend) == (Severity.FAILED, "corpus: too few", "add sources")
    order = [list(Severity).index(finding.severity) for finding in found]
    assert order == sorted(order)


def test_every_reason_but_duplicates_has_a_remedy() -> None:
    assert set(REMEDIES) == set(Reason) - {Reason.DUPLICATE}


def field_of(model: type[BaseModel], path: str) -> bool:
    """Whether a recipe has a key."""
    name, _, rest = path.partition(".")
    field = model.model_fields.get(name.removesuffix("[]"))
    if field is None:
        return False
    inner = [kind for kind in types_in(field.annotation) if isinstance(kind, type) and issubclass(kind, BaseModel)]
    return not rest or any(field_of(kind, rest) for kind in inner)


def types_in(annotation: Any) -> list[Any]:
    parts = getattr(annotation, "__args__", ())
    return [annotation, *(each for part in parts for each in types_in(part))]


def test_every_key_that_a_remedy_names_is_one_of_the_recipe() -> None:
    text = "".join(inspect.getsource(module) for module in (findings, column_findings))
    keys = set(re.findall(r"\b((?:corpus|training|tokenizer|tokenization)\.[a-z_.\[\]]*[a-z_])", text))
    assert len(keys) > 15
    assert [key for key in sorted(keys) if not key.startswith("corpus.splits.") and not field_of(RunConfig, key)] == []
    assert not field_of(RunConfig, "corpus.rules.min_char")
