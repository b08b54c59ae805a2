"""What is decided of a tokenizer before anything is encoded: its ids, and which engine encodes with it.

The stage that made the tokenizer has found that out already, and its record says with which libraries. Where they are the same, it is not found
out anew: loading a tokenizer three times takes as long as encoding some 40 MB.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from schemas.artifact import ArtifactRecord
from tasks.library_versions import library_version
from tasks.tokenizer.engine import EngineChoice, TokenizerFacts, choose_engine, facts_of
from tasks.tokenizer.report import TokenizerReport

_LIBRARIES = ("gigatoken", "tokenizers")
"""Whose versions decide what a tokenizer is taken for."""


@dataclass(frozen=True)
class Decision:
    """What holds for all shards, of the tokenizer's part."""

    facts: TokenizerFacts
    choice: EngineChoice


def decide(
    record: ArtifactRecord, content: Callable[[], bytes], *, end_of_text: str, wanted: Literal["auto", "gigatoken", "huggingface"]
) -> Decision:
    """Returns what is decided of a tokenizer.

    Args:
        record: of its artifact.
        content: returns its `tokenizer.json`; called only where the record does not tell.
        end_of_text: the token between documents.
        wanted: as the recipe says.

    Raises:
        ConfigError: gigatoken is wanted and refuses it.
        InputError: it has no such token between documents.
    """
    known = recorded(record, end_of_text=end_of_text)
    if known is not None and wanted in ("auto", known.choice.name):
        return known
    tokenizer_json = content()
    return Decision(
        facts=facts_of(tokenizer_json, end_of_text=end_of_text, subject="the tokenizer"), choice=choose_engine(tokenizer_json, wanted=wanted)
    )


def recorded(record: ArtifactRecord, *, end_of_text: str) -> Decision | None:
    """Returns what the `tokenizer` stage decided; None where it is another end-of-text token, or other libraries."""
    versions, report = record.provenance.versions, record.summary
    is_same = all(versions.get(name) == library_version(name) for name in _LIBRARIES)
    if not is_same or report.get("end_of_text") != end_of_text or not TokenizerReport.model_fields.keys() <= report.keys():
        return None
    facts = TokenizerFacts(vocab_size=int(report["vocab_size"]), end_of_text_id=int(report["end_of_text_id"]))
    return Decision(facts=facts, choice=EngineChoice(name=report["engine"], reason=str(report["engine_reason"])))
