"""Personal data and secrets are replaced by a placeholder of their kind: `<email>`, `<ip>`, `<phone>`, `<credit-card>`, `<iban>`, `<secret>`."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from schemas.preparation_config import PiiConfig, PiiKind
from tasks.prepare.pii_patterns import PATTERNS, Pattern
from tasks.prepare.steps import Outcome

_MAX_ROUNDS = 4
"""Masking may part what looked like one long number; seldom is there anything left to do in a second round. Bounded, so time stays linear."""

_LONGEST = 1024
"""More characters than anything with borders takes."""


class PiiStep:
    """Masks the kinds that the recipe names, and counts them. It refuses nothing."""

    name = "pii"

    def __init__(self, config: PiiConfig) -> None:
        self._kinds = [kind for kind in PATTERNS if kind in config.mask]

    def apply(self, texts: Sequence[str]) -> list[Outcome]:
        """Returns each document with its placeholders, and how many there are of each kind."""
        return [self._masked(text) for text in texts]

    def _masked(self, text: str) -> Outcome:
        counts: Counter[str] = Counter()
        for _ in range(_MAX_ROUNDS):
            before = counts.total()
            for kind in self._kinds:
                text, found = mask(text, kind)
                counts[kind.value] += found
            if counts.total() == before:
                break
        return Outcome(text, counts={kind: count for kind, count in counts.items() if count}) if counts.total() else Outcome(text)


class Masked(NamedTuple):
    """A text in which one kind is masked."""

    text: str
    """The text."""
    num_masked: int
    """How many placeholders were put into it."""


def mask(text: str, kind: PiiKind) -> Masked:
    """Returns the text with what is of `kind` replaced by `<kind>`."""
    count = 0
    for pattern in PATTERNS[kind]:
        if pattern.hint in text:
            text, found = _replace(text, pattern, f"<{kind.value}>")
            count += found
    return Masked(text, count)


def _replace(text: str, pattern: Pattern, placeholder: str) -> Masked:
    parts: list[str] = []
    end = 0
    match = pattern.regex.search(text)
    while match is not None:
        after = match.start() + 1  # what only looks like it may hide the beginning of a real one
        if pattern.is_real(match.group()):
            parts += [text[end : match.start()], placeholder]
            end = match.end()
            while length := _length_beside(text, end, pattern):
                parts += ["", placeholder]
                end += length
            after = end
        match = pattern.regex.search(text, after)
    return Masked("".join([*parts, text[end:]]), len(parts) // 2) if parts else Masked(text, 0)


def _length_beside(text: str, at: int, pattern: Pattern) -> int:
    """Returns the length of what begins right behind a placeholder, which is a border where what it stands for was none (`pii_patterns`);
    0: nothing does.
    """
    match = pattern.regex.match(f">{text[at : at + _LONGEST]}", 1)
    return match.end() - 1 if match is not None and pattern.is_real(match.group()) else 0
