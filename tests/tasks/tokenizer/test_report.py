"""The report counts what it says it counts, and the gate holds it against the recipe's limits."""

import pytest

from schemas.tokens_config import TokenizerConfig
from tasks.tokenizer.bpe import train_bpe
from tasks.tokenizer.corpus import Batch
from tasks.tokenizer.engine import EngineChoice, HuggingFaceEngine, facts_of
from tasks.tokenizer.report import TokenizerReport, Trained, measure, objections, remarks

CONFIG = TokenizerConfig(vocab_size=300)


def report_on(texts: list[str], measured: list[str]) -> TokenizerReport:
    content = train_bpe(texts, config=CONFIG).tokenizer_json
    batch = Batch(doc_ids=[f"d{number}" for number in range(len(measured))], texts=measured, sizes=[len(text.encode()) for text in measured])
    return measure(
        content,
        [batch],
        split="validation",
        facts=facts_of(content, end_of_text="<|endoftext|>", subject="it"),
        choice=EngineChoice("gigatoken", "asked for"),
        origin=Trained(kind="trained", trainer="gigatoken", documents=1, text_bytes=1, requested_vocab_size=300),
        end_of_text="<|endoftext|>",
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("the mill race", 3),
        ("self.assert_equal(a, b)", 8),  # self . assert_equal ( a , b )
        ("水车 turns", 3),
        ("ไทย", 3),
        ("don't", 3),
        (" \n\t", 0),
        ("naïve 123 --flag", 4),
    ],
)
def test_words_are_runs_of_letters_or_signs_and_characters_of_unspaced_scripts(texts: list[str], text: str, words: int) -> None:
    assert report_on(texts, [text]).words == words


def test_figures_are_those_of_the_reference_encoder(texts: list[str]) -> None:
    report = report_on(texts, texts[:20])
    engine = HuggingFaceEngine(train_bpe(texts, config=CONFIG).tokenizer_json)
    ids = engine.encode(texts[:20]).ids
    assert (report.tokens, report.vocab_used) == (ids.size, len(set(ids.tolist())))
    assert report.bytes_per_token == pytest.approx(report.text_bytes / ids.size, abs=1e-6)
    assert report.vocab_used_share == pytest.approx(report.vocab_used / 300, abs=1e-6)
    assert (report.round_trip_share, report.round_trip_failure) == (1.0, "")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bytes_per_token": 1.49}, "min_bytes_per_token"),
        ({"tokens_per_word": 6.01}, "max_tokens_per_word"),
        ({"round_trip_share": 0.999, "round_trip_failure": "d7"}, "document d7 does not come back"),
    ],
)
def test_each_limit_objects_on_its_own(texts: list[str], change: dict[str, object], message: str) -> None:
    good = report_on(texts, texts).model_copy(update={"bytes_per_token": 1.5, "tokens_per_word": 6.0})
    assert objections(good, config=CONFIG) == ()
    (found,) = objections(good.model_copy(update=change), config=CONFIG)
    assert message in found


def test_a_lossy_existing_tokenizer_is_remarked_and_not_objected_to(texts: list[str]) -> None:
    lossy = report_on(texts, texts).model_copy(
        update={"kind": "existing", "round_trip_share": 0.5, "round_trip_failure": "d1", "bytes_per_token": 2.0}
    )
    assert objections(lossy, config=CONFIG) == ()
    assert any("lossy" in remark and "d1" in remark for remark in remarks(lossy))
