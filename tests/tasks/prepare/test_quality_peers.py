"""Our verdicts beside those of datatrove's filters, which `peer_verdicts.py` stored."""

import json
from pathlib import Path
from typing import Any

import pytest

from schemas.preparation_config import C4Limits, QualityConfig
from tasks.prepare.quality import QualityStep
from tasks.prepare.quality_c4 import trim

PEER = json.loads((Path(__file__).parent / "peer_verdicts.json").read_text(encoding="utf-8"))
DOCUMENTS: list[dict[str, Any]] = PEER["documents"]
REASONS = {
    "": "",
    "gopher_short_doc": "gopher-word-count",
    "gopher_below_avg_threshold": "gopher-word-length",
    "gopher_above_avg_threshold": "gopher-word-length",
    "gopher_too_many_hashes": "gopher-hashes",
    "gopher_too_many_ellipsis": "gopher-ellipses",
    "gopher_too_many_bullets": "gopher-bullets",
    "gopher_too_many_end_ellipsis": "gopher-ellipsis-lines",
    "gopher_below_alpha_threshold": "gopher-letters",
    "gopher_enough_stop_words": "gopher-stop-words",
    "dup_para_frac": "gopher-repetition-paragraphs",
    "dup_para_char_frac": "gopher-repetition-paragraph-chars",
    "dup_line_frac": "gopher-repetition-lines",
    "dup_line_char_frac": "gopher-repetition-line-chars",
    **{f"top_{n}_gram": f"gopher-repetition-top-{n}-gram" for n in (2, 3, 4)},
    **{f"duplicated_{n}_n_grams": f"gopher-repetition-{n}-grams" for n in range(5, 11)},
    "line_punct_ratio": "fineweb-punctuation",
    "short_line_ratio": "fineweb-short-lines",
    "char_dup_ratio": "fineweb-duplicate-lines",
    "list_ratio": "fineweb-list",
    "too_few_sentences": "c4-sentences",
    "lorem_ipsum": "c4-lorem-ipsum",
    "curly_bracket": "c4-curly-bracket",
}


@pytest.mark.parametrize("words", ["", "/spacy"], ids=["our words", "spaCy's words"])
@pytest.mark.parametrize("family", ["gopher", "gopher_repetition", "fineweb", "c4"])
def test_verdicts_and_reasons_equal_datatroves(family: str, words: str) -> None:
    texts = [document["text"] for document in DOCUMENTS]
    ours = [outcome.reason for outcome in QualityStep(QualityConfig(**{family: True})).apply(texts)]
    theirs = [document["verdicts"][family + words]["reason"] for document in DOCUMENTS]
    differing = [
        (text[:60], mine, reason)
        for text, mine, reason in zip(texts, ours, theirs, strict=True)
        if text.strip() and mine != REASONS[reason]  # of a text without words datatrove says `empty`, or divides by zero
    ]
    assert differing == []
    assert len(set(theirs)) > 3, "the documents do not break enough rules to tell anything"


def test_what_c4_leaves_of_a_text_equals_datatroves() -> None:
    kept = [document for document in DOCUMENTS if not document["verdicts"]["c4"]["reason"]]
    assert len(kept) > 20
    for document in kept:
        wanted = document["verdicts"]["c4"]["text"] or document["text"]
        assert trim(document["text"], C4Limits()).text == wanted


def test_verdicts_do_not_depend_on_the_batch() -> None:
    config = QualityConfig(gopher=True, gopher_repetition=True, c4=True, fineweb=True)
    texts = [document["text"] for document in DOCUMENTS]
    assert QualityStep(config).apply(texts) == [outcome for text in texts for outcome in QualityStep(config).apply([text])]
