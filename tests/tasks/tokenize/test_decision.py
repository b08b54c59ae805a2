"""What the `tokenizer` stage found out is not found out again, unless it may not hold any more."""

from typing import Any, NoReturn

import pytest

from schemas.artifact import ArtifactRecord
from tasks.library_versions import library_version
from tasks.tokenize.decision import Decision, decide

SITE = Any  # the fixture's class lives in conftest, which is not importable


def made_with(record: ArtifactRecord, **versions: str) -> ArtifactRecord:
    """Returns a tokenizer's record, as of these libraries."""
    return record.model_copy(update={"provenance": record.provenance.model_copy(update={"versions": versions})})


def anew(site: SITE, **wanted: str) -> Decision:
    """Returns what is decided of the site's tokenizer from its own bytes."""
    content = (site.root / site.tokenizer.key / "tokenizer.json").read_bytes()
    return decide(made_with(site.tokenizer), lambda: content, **{"end_of_text": site.end_of_text, "wanted": "auto"} | wanted)  # type: ignore[arg-type]


def unread() -> NoReturn:
    raise AssertionError("the tokenizer is loaded")


@pytest.fixture
def versions() -> dict[str, str]:
    """The libraries that are here."""
    return {name: library_version(name) for name in ("gigatoken", "tokenizers")}


@pytest.mark.parametrize("wanted", ["auto", "gigatoken"])
def test_the_record_tells(site: SITE, versions: dict[str, str], wanted: Any) -> None:
    found = decide(made_with(site.tokenizer, **versions), unread, end_of_text=site.end_of_text, wanted=wanted)
    assert (found.facts, found.choice.name) == (anew(site).facts, anew(site).choice.name)
    assert found.choice.name == "gigatoken"


@pytest.mark.parametrize("changed", ["gigatoken", "tokenizers"])
def test_other_libraries_are_asked_themselves(site: SITE, versions: dict[str, str], changed: str) -> None:
    with pytest.raises(AssertionError, match="is loaded"):
        decide(made_with(site.tokenizer, **versions | {changed: "0.0.1"}), unread, end_of_text=site.end_of_text, wanted="auto")


def test_another_engine_or_end_or_a_record_that_says_nothing_is_looked_into(site: SITE, versions: dict[str, str]) -> None:
    record = made_with(site.tokenizer, **versions)
    for known, end_of_text, wanted in (
        (record, site.end_of_text, "huggingface"),
        (record, "</s>", "auto"),
        (record.model_copy(update={"summary": {}}), site.end_of_text, "auto"),
    ):
        with pytest.raises(AssertionError, match="is loaded"):
            decide(known, unread, end_of_text=end_of_text, wanted=wanted)  # type: ignore[arg-type]
    assert anew(site, wanted="huggingface").choice.name == "huggingface"
