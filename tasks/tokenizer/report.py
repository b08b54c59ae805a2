"""How well a tokenizer fits text it was not trained on, and the gate over it."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from schemas.frozen import Frozen
from schemas.manifest import Split
from schemas.tokens_config import TokenizerConfig
from tasks.tokenizer.corpus import Batch
from tasks.tokenizer.engine import Encoded, Engine, EngineChoice, HuggingFaceEngine, TokenizerFacts, open_engine

SAMPLE_BYTES = 2_000_000
"""Text that the report is measured on, at most about."""

_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(f"[{_UNSPACED}]|[^\\W{_UNSPACED}]+|[^\\w\\s{_UNSPACED}]+")
"""A word: a run of letters and digits, or of other signs, so that code is not one long word a line; in scripts without spaces (Chinese,
Japanese, Thai, Lao, Burmese, Khmer) a character."""


class TokenizerReport(Frozen):
    """`report.json` of a `tokenizer` artifact."""

    schema_version: int = 1
    """Version of this type."""
    kind: Literal["trained", "existing"]
    """Trained on the corpus, or taken as given."""
    trainer: Literal["gigatoken", "huggingface", "none"]
    """What trained it."""
    trained_on_documents: int
    """Documents it was trained on."""
    trained_on_bytes: int
    """UTF-8 bytes it was trained on."""
    vocab_size: int
    """Ids are below this."""
    requested_vocab_size: int
    """Ids asked for: `tokenizer.vocab_size`; `vocab_size` for an existing tokenizer."""
    end_of_text: str
    """The token between documents."""
    end_of_text_id: int
    """Its id."""
    engine: Literal["gigatoken", "huggingface"]
    """The fastest engine that encodes with it."""
    engine_reason: str
    """Why that one."""
    split: Split
    """The split it was measured on."""
    documents: int
    """Documents measured."""
    text_bytes: int
    """Their UTF-8 bytes."""
    tokens: int
    """Their tokens."""
    words: int
    """Their words: runs of letters and digits, or of other signs; in scripts without spaces, characters."""
    bytes_per_token: float
    """Compression."""
    tokens_per_word: float
    """Fertility."""
    round_trip_share: float
    """Share of documents that come back letter by letter when their ids are decoded."""
    round_trip_failure: str
    """`doc_id` of the first document that does not come back; empty when all do."""
    vocab_used: int
    """Different ids that occur."""
    vocab_used_share: float
    """`vocab_used / vocab_size`."""


class Trained(Frozen):
    """Where a tokenizer came from."""

    kind: Literal["trained", "existing"]
    """Trained on the corpus, or taken as given."""
    trainer: Literal["gigatoken", "huggingface", "none"] = "none"
    """What trained it."""
    documents: int = 0
    """Documents it was trained on."""
    text_bytes: int = 0
    """UTF-8 bytes it was trained on."""
    requested_vocab_size: int
    """Ids asked for."""


def measure(
    tokenizer_json: bytes, batches: Iterable[Batch], *, split: Split, facts: TokenizerFacts, choice: EngineChoice, origin: Trained, end_of_text: str
) -> TokenizerReport:
    """Returns the report over the documents of `batches`."""
    engine: Engine = open_engine(choice.name, tokenizer_json)
    tally = _Tally(decoder=HuggingFaceEngine(tokenizer_json), used=np.zeros(facts.vocab_size, dtype=bool))
    for batch in batches:
        tally.add(batch, engine.encode(batch.texts))
    return TokenizerReport(
        kind=origin.kind,
        trainer=origin.trainer,
        trained_on_documents=origin.documents,
        trained_on_bytes=origin.text_bytes,
        vocab_size=facts.vocab_size,
        requested_vocab_size=origin.requested_vocab_size,
        end_of_text=end_of_text,
        end_of_text_id=facts.end_of_text_id,
        engine=choice.name,
        engine_reason=choice.reason,
        split=split,
        documents=tally.documents,
        text_bytes=tally.text_bytes,
        tokens=tally.tokens,
        words=tally.words,
        bytes_per_token=_ratio(tally.text_bytes, tally.tokens),
        tokens_per_word=_ratio(tally.tokens, tally.words),
        round_trip_share=_ratio(tally.returned, tally.documents),
        round_trip_failure=tally.failure,
        vocab_used=int(tally.used.sum()),
        vocab_used_share=_ratio(int(tally.used.sum()), facts.vocab_size),
    )


@dataclass
class _Tally:
    """Counts over the documents seen so far."""

    decoder: HuggingFaceEngine
    used: npt.NDArray[np.bool_]
    documents: int = 0
    text_bytes: int = 0
    tokens: int = 0
    words: int = 0
    returned: int = 0
    failure: str = ""

    def add(self, batch: Batch, encoded: Encoded) -> None:
        self.used[encoded.ids] = True
        self.documents += len(batch.texts)
        self.text_bytes += batch.num_bytes
        self.tokens += int(encoded.ids.size)
        for index, text in enumerate(batch.texts):
            self.words += len(_WORD.findall(text))
            returned = self.decoder.decode(encoded.of(index)) == text
            self.returned += returned
            if not returned and not self.failure:
                self.failure = batch.doc_ids[index]


def objections(report: TokenizerReport, *, config: TokenizerConfig) -> tuple[str, ...]:
    """Returns what the gate has against the tokenizer; empty when it passes.

    An existing tokenizer may be lossy by design (it lowers case, or composes accents): that is noted, not refused.
    """
    found: list[str] = []
    if report.bytes_per_token < config.min_bytes_per_token:
        found.append(f"bytes per token {report.bytes_per_token:.3f} < tokenizer.min_bytes_per_token {config.min_bytes_per_token}")
    if report.tokens_per_word > config.max_tokens_per_word:
        found.append(f"tokens per word {report.tokens_per_word:.3f} > tokenizer.max_tokens_per_word {config.max_tokens_per_word}")
    if report.kind == "trained" and report.round_trip_share < 1.0:
        found.append(f"round trip {report.round_trip_share:.4%} < 100 %: document {report.round_trip_failure} does not come back")
    return tuple(found)


def remarks(report: TokenizerReport) -> tuple[str, ...]:
    """Returns what a person should know although the gate lets it pass."""
    found: list[str] = []
    if report.vocab_size < report.requested_vocab_size:
        found.append(
            f"the training text has only enough frequent pairs for {report.vocab_size:,} of the {report.requested_vocab_size:,} ids asked for "
            "(tokenizer.vocab_size); going on with those"
        )
    if report.kind == "existing" and report.round_trip_share < 1.0:
        found.append(
            f"the existing tokenizer is lossy: {1 - report.round_trip_share:.2%} of the documents do not come back as they were "
            f"(first: {report.round_trip_failure}); bits per byte will look better than they are"
        )
    if report.engine == "huggingface":
        found.append(f"tokenizing will be slow: {report.engine_reason}")
    return tuple(found)


def _ratio(numerator: int, denominator: int) -> float:
    return round(numerator / denominator, 6) if denominator else 0.0
