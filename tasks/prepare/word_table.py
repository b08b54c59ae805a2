"""The words of many texts as arrays, for rules that count words. Pure.

A word here is about what the published rules' programs count, punctuation included: a run of letters, digits and marks, in which `.`, `@` and a
comma before a digit may stand (`3.14`, `1,000`, `os.path`), after white space with the dashes or the slash before it (`--help`, `/etc`); an
ending that an apostrophe joins (`'t` of `don't`); a URL; a run of dots or of dashes; any other sign; and in scripts without spaces a character.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Self

import numpy as np
import numpy.typing as npt

from tasks.prepare.words import UNSPACED

Flags = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.int64]

SENTENCE_ENDS = frozenset(
    "!.?\u0589\u061d\u061e\u061f\u06d4\u0700\u0701\u0702\u07f9\u0837\u0839\u083d\u083e\u0964\u0965\u104a\u104b\u1362\u1367\u1368\u166e\u1735\u1736"
    "\u17d4\u17d5\u1803\u1809\u1944\u1945\u1aa8\u1aa9\u1aaa\u1aab\u1b5a\u1b5b\u1b5e\u1b5f\u1c3b\u1c3c\u1c7e\u1c7f\u203c\u203d\u2047\u2048\u2049\u2e2e"
    "\u2e3c\u2e53\u2e54\u3002\ua4ff\ua60e\ua60f\ua6f3\ua6f7\ua876\ua877\ua8ce\ua8cf\ua92f\ua9c8\ua9c9\uaa5d\uaa5e\uaa5f\uaaf0\uaaf1\uabeb\ufe52\ufe56"
    "\ufe57\uff01\uff0e\uff1f\uff61"
)
"""Characters with the Unicode property Sentence_Terminal (basic plane)."""

CHARS_PER_WORD = 2
"""Characters that make a word where most characters are of scripts without spaces: about what Chinese and Japanese words have."""


def _is_sign(char: str) -> bool:
    return char != "_" and (unicodedata.category(char)[0] in "PS" or unicodedata.category(char) == "Cc") and not char.isspace()


def _is_letter(char: str) -> bool:
    return char.isalpha() or unicodedata.category(char)[0] == "M"


_SIGNS = "".join(map(re.escape, filter(_is_sign, map(chr, range(0x10000))))) + "\U0001f000-\U0001faff"
_INNER = rf"[^\s{_SIGNS}{UNSPACED}]"  # inside of a word. Not \w, which leaves out the vowel signs of many scripts
_RUN = rf"{_INNER}+(?:(?:[.@]|,(?=\d)){_INNER}+)*"
_WORD = re.compile(rf"{_INNER}+://\S+|{_RUN}|(?<!\S)(?:--?|/){_RUN}|[{UNSPACED}]|(?<={_INNER})['\u2019]{_INNER}+|\.\.+|--+|[{_SIGNS}]")
_UNSPACED_CHAR = re.compile(f"[{UNSPACED}]")
_SIGN = re.compile(f"[{_SIGNS}]+")


class _Vocabulary(dict[str, int]):
    """Numbers words in the order in which they are first asked for."""

    def __missing__(self, word: str) -> int:
        number = self[word] = len(self)
        return number


@dataclass(frozen=True)
class WordTable:
    """The words of some texts."""

    texts: tuple[list[str], ...]
    """The words of each text."""
    vocabulary: dict[str, int]
    """Number of each different word."""
    numbers: Numbers
    """Number of each word, all texts one after the other."""
    owners: Numbers
    """Of which text each word is."""

    @classmethod
    def of(cls, texts: Sequence[str]) -> Self:
        """Returns the words of `texts`."""
        words = tuple(map(_WORD.findall, texts))
        vocabulary = _Vocabulary()
        counts = [len(each) for each in words]
        numbers = np.fromiter(map(vocabulary.__getitem__, chain.from_iterable(words)), np.int64, sum(counts))
        return cls(words, vocabulary, numbers, np.repeat(np.arange(len(words)), counts))

    def select(self, kept: Sequence[int]) -> Self:
        """Returns the table of the texts at `kept`, ascending."""
        position = np.full(len(self.texts), -1)
        position[list(kept)] = np.arange(len(kept))
        owners = position[self.owners]
        inside = owners >= 0
        return type(self)(tuple(self.texts[index] for index in kept), self.vocabulary, self.numbers[inside], owners[inside])

    @property
    def num_texts(self) -> int:
        """How many texts there are."""
        return len(self.texts)

    @cached_property
    def num_words(self) -> Numbers:
        """Words of each text."""
        return np.bincount(self.owners, minlength=self.num_texts)

    @cached_property
    def lengths(self) -> Numbers:
        """Characters of each word."""
        return np.fromiter(map(len, self.vocabulary), np.int64, len(self.vocabulary))[self.numbers]

    @cached_property
    def is_plain(self) -> Flags:
        """Whether each word holds anything but signs."""
        return self._flags(word for word in self.vocabulary if not _SIGN.fullmatch(word))

    @cached_property
    def has_letter(self) -> Flags:
        """Whether each word holds a letter; of scripts without spaces the vowel signs count, as they are words by themselves."""
        return self._flags(word for word in self.vocabulary if word.isalpha() or any(map(_is_letter, word)))

    @cached_property
    def is_unspaced(self) -> Flags:
        """Whether each word is a character of a script without spaces."""
        return self._flags(filter(_UNSPACED_CHAR.match, self.vocabulary))

    @cached_property
    def is_mostly_unspaced(self) -> Flags:
        """Whether of each text most plain words are characters of scripts without spaces."""
        return 2 * self.count(self.is_unspaced) > self.count(self.is_plain)

    def count(self, flags: Flags) -> Numbers:
        """Returns for how many words of each text `flags` holds."""
        return np.bincount(self.owners[flags], minlength=self.num_texts)

    def sum(self, values: Numbers) -> Numbers:
        """Returns the sums over the words of each text. Sums are exact: they stay far below 2**53."""
        return np.bincount(self.owners, weights=values, minlength=self.num_texts).astype(np.int64)

    def _flags(self, words: Iterable[str]) -> Flags:
        flags = np.zeros(len(self.vocabulary), bool)
        flags[[self.vocabulary[word] for word in words]] = True
        return flags[self.numbers]
