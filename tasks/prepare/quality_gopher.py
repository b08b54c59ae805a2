"""Gopher's quality rules (Rae et al. 2021, arXiv 2112.11446, appendix A.1.1) for many texts at once. Pure."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from schemas.preparation_config import GopherLimits
from tasks.prepare.word_table import Flags, WordTable

_BULLETS = ("\u2022", "-")
_ELLIPSES = ("...", "\u2026")


class Refusal(NamedTuple):
    """Why a rule refuses a document."""

    reason: str
    """The rule: a kebab-case name."""
    detail: str
    """What was found, and what is allowed."""


class _Rule(NamedTuple):
    """One rule, judged for all texts."""

    name: str
    is_broken: Flags
    detail: Callable[[int], str]


def gopher_refusals(texts: Sequence[str], table: WordTable, limits: GopherLimits) -> list[Refusal | None]:
    """Returns for each text the first rule that it breaks, or None. Where most words are characters, their length and stop words say nothing."""
    rules = _word_rules(table, limits) + _sign_rules(texts, table, limits) + _line_rules(texts, limits) + _language_rules(table, limits)
    refusals: list[Refusal | None] = [None] * len(texts)
    for rule in reversed(rules):  # the first rule writes last
        for index in np.flatnonzero(rule.is_broken).tolist():
            refusals[index] = Refusal(f"gopher-{rule.name}", rule.detail(index))
    return refusals


def _word_rules(table: WordTable, limits: GopherLimits) -> list[_Rule]:
    is_plain = table.is_plain
    words = table.count(is_plain)
    mean = table.sum(np.where(is_plain, table.lengths, 0)) / np.maximum(words, 1)
    is_spaced = ~table.is_mostly_unspaced & (words > 0)
    least, most = limits.min_mean_word_length, limits.max_mean_word_length

    def count_detail(index: int) -> str:
        return f"{words[index]:,} words, {limits.min_words:,} to {limits.max_words:,} are allowed"

    def mean_detail(index: int) -> str:
        return f"{mean[index]:.2f} characters per word, {least:g} to {most:g} are allowed"

    return [
        _Rule("word-count", (words < limits.min_words) | (words > limits.max_words), count_detail),
        _Rule("word-length", is_spaced & ((mean < least) | (mean > most)), mean_detail),
    ]


def _sign_rules(texts: Sequence[str], table: WordTable, limits: GopherLimits) -> list[_Rule]:
    words = np.maximum(table.num_words, 1)
    hashes = _counts(text.count("#") for text in texts) / words
    ellipses = _counts(sum(map(text.count, _ELLIPSES)) for text in texts) / words
    most = limits.max_symbol_share
    return [
        _Rule("hashes", hashes > most, lambda index: f"{hashes[index]:.3f} hash signs per word, at most {most:g}"),
        _Rule("ellipses", ellipses > most, lambda index: f"{ellipses[index]:.3f} ellipses per word, at most {most:g}"),
    ]


def _line_rules(texts: Sequence[str], limits: GopherLimits) -> list[_Rule]:
    lines = np.maximum(_counts(len(text.splitlines()) for text in texts), 1)
    bullets = _counts(_count_lines(text, begin=_BULLETS) for text in texts) / lines
    ellipses = _counts(_count_lines(text, end=_ELLIPSES) for text in texts) / lines
    return [
        _Rule("bullets", bullets > limits.max_bullet_lines, lambda index: f"{bullets[index]:.1%} of lines, at most {limits.max_bullet_lines:.1%}"),
        _Rule(
            "ellipsis-lines",
            ellipses > limits.max_ellipsis_lines,
            lambda index: f"{ellipses[index]:.1%} of lines, at most {limits.max_ellipsis_lines:.1%}",
        ),
    ]


def _language_rules(table: WordTable, limits: GopherLimits) -> list[_Rule]:
    letters = table.count(table.has_letter) / np.maximum(table.num_words, 1)
    least = limits.min_alphabetic_words
    stop_words = np.zeros(table.num_texts, np.int64)
    for word in dict.fromkeys(limits.stop_words):
        if word in table.vocabulary:
            stop_words += table.count(table.numbers == table.vocabulary[word]) > 0
    has_words = table.num_words > 0
    is_bare = ~table.is_mostly_unspaced & (stop_words < limits.min_stop_words)
    return [
        _Rule("letters", has_words & (letters < least), lambda index: f"{letters[index]:.1%} of words have a letter, at least {least:.1%}"),
        _Rule("stop-words", is_bare, lambda index: f"{stop_words[index]} different stop words, at least {limits.min_stop_words}"),
    ]


def _counts(values: Iterable[int]) -> npt.NDArray[np.int64]:
    return np.fromiter(values, np.int64)


def _count_lines(text: str, *, begin: tuple[str, ...] = (), end: tuple[str, ...] = ()) -> int:
    """Returns how many lines begin or end so, white space aside."""
    if not any(sign in text for sign in begin or end):
        return 0
    return sum(line.lstrip().startswith(begin) if begin else line.rstrip().endswith(end) for line in text.splitlines())
