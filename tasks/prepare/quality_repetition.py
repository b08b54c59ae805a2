"""Gopher's rules against repetition (Rae et al. 2021, arXiv 2112.11446, table A1) for many texts at once. Pure.

The n-gram rules are screened first: sorted hashes of all n-grams give, for every text, a bound that its share cannot exceed. Only where the
bound exceeds the limit the text is looked at word by word, so that no verdict depends on a hash.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from schemas.preparation_config import RepetitionLimits
from tasks.prepare.quality_gopher import Refusal
from tasks.prepare.word_table import CHARS_PER_WORD, Flags, Numbers, WordTable

_PARAGRAPHS = re.compile(r"\n{2,}")
_TOP_SIZES = (2, 3, 4)
_DUPLICATE_SIZES = (5, 6, 7, 8, 9, 10)

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_MIX = np.uint64(0xFF51AFD7ED558CCD)


def repetition_refusals(texts: Sequence[str], table: WordTable, limits: RepetitionLimits) -> list[Refusal | None]:
    """Returns for each text the first rule that it breaks, or None. In scripts without spaces an n-gram is of 2 n characters."""
    refusals = [_line_refusal(text, limits) for text in texts]
    is_unspaced = table.is_mostly_unspaced
    for flag in (False, True):
        left = [index for index, refusal in enumerate(refusals) if refusal is None and is_unspaced[index] == flag]
        if left:
            judge = _NgramJudge(tuple(len(texts[index]) for index in left), CHARS_PER_WORD if flag else 1, 0 if flag else 1, limits)
            for index, refusal in zip(left, judge.refusals(table.select(left)), strict=True):
                refusals[index] = refusal
    return refusals


def duplicate_chars(parts: Sequence[str]) -> int:
    """Returns the characters of all parts that are copies of an earlier one."""
    if len(set(parts)) == len(parts):
        return 0
    return sum(map(len, parts)) - sum(map(len, set(parts)))


def top_ngram_chars(words: Sequence[str], n: int, *, gap: int = 1) -> int:
    """Returns the characters of the most frequent n-gram, of equally frequent ones the first, times its frequency; `gap`: between two words."""
    (best, count), *_ = Counter(zip(*(words[start:] for start in range(n)), strict=False)).most_common(1) or [((), 0)]
    return count * (sum(map(len, best)) + gap * (n - 1))


def duplicate_ngram_chars(words: Sequence[str], n: int, places: Iterable[int] | None = None) -> int:
    """Returns the characters of n-grams that occurred before, counting none twice: after a copy, the next n-gram looked at begins behind it.

    Args:
        words: of a text.
        n: words of an n-gram.
        places: where n-grams begin that may occur more than once, ascending. Default: everywhere.
    """
    seen: set[tuple[str, ...]] = set()
    chars = end = 0
    for place in range(len(words) - n + 1) if places is None else places:
        if place < end:
            continue
        ngram = tuple(words[place : place + n])
        if ngram in seen:
            chars += sum(map(len, ngram))
            end = place + n
        else:
            seen.add(ngram)
    return chars


def _line_refusal(text: str, limits: RepetitionLimits) -> Refusal | None:
    paragraphs = _PARAGRAPHS.split(text.strip()) if "\n\n" in text else [text]
    lines = [line for line in text.split("\n") if line] + [""] * (text.startswith("\n") + text.endswith("\n"))  # as `\n+` would split it
    for name, parts, most, most_chars in (
        ("paragraph", paragraphs, limits.max_duplicate_paragraphs, limits.max_duplicate_paragraph_chars),
        ("line", lines, limits.max_duplicate_lines, limits.max_duplicate_line_chars),
    ):
        copies = len(parts) - len(set(parts))
        if not copies:
            continue
        if copies / len(parts) > most:
            return Refusal(f"gopher-repetition-{name}s", f"{copies / len(parts):.1%} of {name}s are copies, at most {most:.1%}")
        share = duplicate_chars(parts) / len(text)
        if share > most_chars:
            return Refusal(f"gopher-repetition-{name}-chars", f"{share:.1%} of characters are in copies of {name}s, at most {most_chars:.1%}")
    return None


@dataclass(frozen=True)
class _NgramJudge:
    """The n-gram rules for texts of one kind."""

    num_chars: tuple[int, ...]
    """Characters of each text."""
    factor: int
    """Words of the table per word of the rules."""
    gap: int
    """Characters between two words."""
    limits: RepetitionLimits

    def refusals(self, table: WordTable) -> list[Refusal | None]:
        """Returns for each text of the table the first rule that it breaks, or None."""
        suspects, places = self._suspects(table)
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(table.num_words)])
        refusals: list[Refusal | None] = [None] * table.num_texts
        for index in np.flatnonzero(np.logical_or.reduce(list(suspects.values()))).tolist():
            start, end = starts[index], starts[index + 1]
            repeated = {size: all_places[slice(*np.searchsorted(all_places, (start, end)))] - start for size, all_places in places.items()}
            broken = {size: repeated.get(size) for size, flags in suspects.items() if flags[index]}
            refusals[index] = self._exact(table.texts[index], self.num_chars[index], broken)
        return refusals

    def _suspects(self, table: WordTable) -> tuple[dict[int, Flags], dict[int, Numbers]]:
        """Returns for each size of the rules which texts may break them, by a bound on their characters; and where repeated n-grams begin."""
        chars = np.array(self.num_chars)
        ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(table.lengths)])
        suspects = {size: np.zeros(table.num_texts, bool) for size in (*_TOP_SIZES, *_DUPLICATE_SIZES)}
        for size, most in zip(_TOP_SIZES, self.limits.max_top_ngram_chars, strict=True):
            suspects[size] |= self._longest(table, ends, size) > most * chars
        places: dict[int, Numbers] = {}
        for repeats in _repeats(table, max(_DUPLICATE_SIZES) * self.factor):
            size, rest = divmod(repeats.n, self.factor)
            if rest:
                continue
            if size in _TOP_SIZES:
                bound = np.zeros(table.num_texts, np.int64)
                first = repeats.places[~repeats.is_copy]
                np.maximum.at(bound, table.owners[first], repeats.counts * (ends[first + repeats.n] - ends[first] + self.gap * (repeats.n - 1)))
                suspects[size] |= bound > self.limits.max_top_ngram_chars[_TOP_SIZES.index(size)] * chars
            elif size in _DUPLICATE_SIZES:
                places[size] = np.sort(repeats.places)
                covered = _covered_chars(table, repeats, ends)
                suspects[size] |= covered > self.limits.max_duplicate_ngram_chars[_DUPLICATE_SIZES.index(size)] * chars
        return suspects, places

    def _longest(self, table: WordTable, ends: Numbers, size: int) -> Numbers:
        """Returns the characters of the longest n-gram of each text."""
        n = size * self.factor
        longest = np.zeros(table.num_texts, np.int64)
        owners = table.owners
        if len(owners) >= n:
            chars = np.where(owners[n - 1 :] == owners[: len(owners) - n + 1], ends[n:] - ends[:-n] + self.gap * (n - 1), 0)
            starts = np.flatnonzero(np.diff(owners[: len(chars)], prepend=-1))
            longest[owners[starts]] = np.maximum.reduceat(chars, starts)
        return longest

    def _exact(self, words: Sequence[str], chars: int, suspects: Mapping[int, Numbers | None]) -> Refusal | None:
        for size, most in zip(_TOP_SIZES, self.limits.max_top_ngram_chars, strict=True):
            share = top_ngram_chars(words, size * self.factor, gap=self.gap) / chars if size in suspects else 0.0
            if share > most:
                return Refusal(f"gopher-repetition-top-{size}-gram", f"{share:.1%} of characters are in the most frequent one, at most {most:.1%}")
        for size, most in zip(_DUPLICATE_SIZES, self.limits.max_duplicate_ngram_chars, strict=True):
            places = suspects.get(size)
            if places is None:
                continue
            share = duplicate_ngram_chars(words, size * self.factor, places.tolist()) / chars
            if share > most:
                return Refusal(f"gopher-repetition-{size}-grams", f"{share:.1%} of characters are in repeated ones, at most {most:.1%}")
        return None


@dataclass(frozen=True)
class _Repeats:
    """The n-grams that a text holds more than once, equal ones of one text together."""

    n: int
    """Words of an n-gram."""
    places: Numbers
    """Where they begin."""
    is_copy: Flags
    """Whether each equals the one before it."""

    @property
    def counts(self) -> Numbers:
        """How many equal ones each set has."""
        return np.diff(np.flatnonzero(~self.is_copy), append=len(self.places))


def _repeats(table: WordTable, largest: int) -> Iterator[_Repeats]:
    """Yields the repeated n-grams for n = 2 … `largest`, until there are none.

    Sorts keys whose upper bits are of a hash and whose lower bits are the place. Different n-grams with equal upper bits only raise bounds. Where an
    n-gram is repeated the shorter one with which it begins is as well, so each size looks only at what the one before left. The hash of a word holds
    which text it is of, so what reaches over the end of one is never repeated.
    """
    words = (table.numbers.astype(np.uint64) << np.uint64(32)) + table.owners.astype(np.uint64) + np.uint64(1)
    words *= _MIX
    words ^= words >> np.uint64(29)
    mask = np.uint64((1 << len(words).bit_length()) - 1)
    places, keys = np.arange(len(words)), words
    key_at = np.empty_like(words)
    for n in range(2, largest + 1):
        fits = places + n <= len(words)
        places, keys = places[fits], keys[fits] * _MULTIPLIER
        keys += words[places + (n - 1)]
        key_at[places] = keys
        mixed = (keys ^ (keys >> np.uint64(32))) * _MIX
        mixed = (mixed & ~mask) | places.astype(np.uint64)
        mixed.sort()
        is_copy = np.zeros(len(mixed) + 1, bool)
        is_copy[1:-1] = (mixed[1:] ^ mixed[:-1]) <= mask
        is_repeated = is_copy[:-1] | is_copy[1:]
        places = (mixed[is_repeated] & mask).astype(np.int64)
        keys = key_at[places]
        if not len(places):
            return
        yield _Repeats(n, places, is_copy[:-1][is_repeated])


def _covered_chars(table: WordTable, repeats: _Repeats, ends: Numbers) -> Numbers:
    """Returns for each text the characters of words in copies of n-grams: a bound on `duplicate_ngram_chars`.

    Args:
        table: the words.
        repeats: of one size.
        ends: the characters before each word.
    """
    copies = np.sort(repeats.places[repeats.is_copy])
    starts = np.maximum(
        copies, np.concatenate([np.zeros(1, np.int64), copies[:-1] + repeats.n])[: len(copies)]
    )  # what an earlier copy covers counts once
    return np.bincount(table.owners[copies], weights=ends[copies + repeats.n] - ends[starts], minlength=table.num_texts).astype(np.int64)
