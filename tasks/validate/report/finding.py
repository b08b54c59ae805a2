"""What the report says about a corpus: one sentence of what was found, one of what mends it."""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

_KEY: Final = re.compile(r"((?:corpus|tokenizer|tokenization|training)\.[a-z_.\[\]]*[a-z_\]])")


class Severity(StrEnum):
    """How much a finding matters. The value is what people read."""

    FAILED = "failed"
    """A check of the verdict: nothing after `validate` may use the corpus."""
    WARNING = "warning"
    """Likely to make a worse model, or a misleading evaluation."""
    NOTE = "note"
    """Worth knowing."""


class Topic(StrEnum):
    """The section of the report that shows what a finding is about. The value is its anchor."""

    COUNTS = "counts"
    SOURCES = "sources"
    LENGTHS = "lengths"
    CHARACTERS = "characters"
    COLUMNS = "columns"
    DUPLICATES = "duplicates"
    QUARANTINE = "quarantine"
    DRIFT = "drift"


@dataclass(frozen=True)
class ReportFinding:
    """One finding."""

    severity: Severity
    """How much it matters."""
    topic: Topic
    """Where it is shown."""
    text: str
    """What was found, with the numbers."""
    mend: str
    """What to do about it, naming the keys of the recipe."""
    keys: tuple[str, ...] = ()
    """Keys of the recipe that the remedy is about."""

    @property
    def mend_parts(self) -> list[str]:
        """The remedy in pieces: text, a key, text, a key, …, text."""
        return _KEY.split(self.mend)
