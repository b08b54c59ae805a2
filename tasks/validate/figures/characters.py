"""What text consists of: characters by class, letters by script, and signs of broken encodings. Counted from UTF-8 without decoding it.

ASCII is counted by class with a few passes of vector instructions. Every other character is known by its first two bytes: exactly up to U+07FF,
by 64 code points above (which is finer than the blocks of almost all scripts), by 4,096 beyond U+FFFF.
"""

from collections import Counter
from collections.abc import Iterable
from functools import cache
from typing import Final

import numpy as np

from schemas.frozen import Frozen

LETTERS = "letters"
CLASSES: Final = (LETTERS, "digits", "white space", "punctuation and symbols", "emoji", "private use", "controls", "other")
"""What a character is. Ideographs and syllables are letters; marks belong to the letters that they stand on, and count as other."""
_CHUNK_BYTES = 1 << 18
"""Passes over one chunk stay in the processor's cache."""
_LEAD = 0xC0
_REPLACEMENT = b"\xef\xbf\xbd"
_MOJIBAKE = (b"\xc3\x83\xc2", b"\xc3\xa2\xe2\x82\xac")
"""UTF-8 that was taken for Latin-1 and encoded again: what became of é, ü, ñ, …, and of quotation marks and dashes."""

_BLOCKS: Final = (
    (0x80, "controls", ""), (0xA0, "punctuation and symbols", ""), (0xAA, LETTERS, "Latin"), (0xAB, "punctuation and symbols", ""),
    (0xB5, LETTERS, "Greek"), (0xB6, "punctuation and symbols", ""), (0xBA, LETTERS, "Latin"), (0xBB, "punctuation and symbols", ""),
    (0xC0, LETTERS, "Latin"), (0xD7, "punctuation and symbols", ""), (0xD8, LETTERS, "Latin"), (0xF7, "punctuation and symbols", ""),
    (0xF8, LETTERS, "Latin"), (0x2B0, "other", ""), (0x370, LETTERS, "Greek"), (0x400, LETTERS, "Cyrillic"), (0x530, LETTERS, "Armenian"),
    (0x590, LETTERS, "Hebrew"), (0x600, LETTERS, "Arabic"), (0x700, LETTERS, "other scripts"), (0x750, LETTERS, "Arabic"),
    (0x780, LETTERS, "other scripts"), (0x880, LETTERS, "Arabic"), (0x900, LETTERS, "Devanagari"), (0x980, LETTERS, "Bengali"),
    (0xA00, LETTERS, "Gurmukhi"), (0xA80, LETTERS, "Gujarati"), (0xB00, LETTERS, "other scripts"), (0xB80, LETTERS, "Tamil"),
    (0xC00, LETTERS, "Telugu"), (0xC80, LETTERS, "Kannada"), (0xD00, LETTERS, "Malayalam"), (0xD80, LETTERS, "Sinhala"), (0xE00, LETTERS, "Thai"),
    (0xE80, LETTERS, "Lao"), (0xF00, LETTERS, "Tibetan"), (0x1000, LETTERS, "Myanmar"), (0x10C0, LETTERS, "Georgian"), (0x1100, LETTERS, "Hangul"),
    (0x1200, LETTERS, "Ethiopic"), (0x1380, LETTERS, "other scripts"), (0x1780, LETTERS, "Khmer"), (0x1800, LETTERS, "other scripts"),
    (0x1E00, LETTERS, "Latin"), (0x1F00, LETTERS, "Greek"), (0x2000, "punctuation and symbols", ""), (0x2600, "emoji", ""),
    (0x27C0, "punctuation and symbols", ""), (0x2C00, LETTERS, "other scripts"), (0x2E80, LETTERS, "Han"), (0x3000, "punctuation and symbols", ""),
    (0x3040, LETTERS, "Kana"), (0x3100, LETTERS, "other scripts"), (0x3140, LETTERS, "Hangul"), (0x3180, "punctuation and symbols", ""),
    (0x3400, LETTERS, "Han"), (0x4DC0, "punctuation and symbols", ""), (0x4E00, LETTERS, "Han"), (0xA000, LETTERS, "other scripts"),
    (0xA640, LETTERS, "Cyrillic"), (0xA680, LETTERS, "other scripts"), (0xA740, LETTERS, "Latin"), (0xA800, LETTERS, "other scripts"),
    (0xAC00, LETTERS, "Hangul"), (0xD800, "other", ""), (0xE000, "private use", ""), (0xF900, LETTERS, "Han"), (0xFB00, LETTERS, "Latin"),
    (0xFB40, LETTERS, "Arabic"), (0xFE00, "other", ""), (0xFE40, LETTERS, "Arabic"), (0xFF00, "punctuation and symbols", ""),
    (0xFF80, LETTERS, "Kana"), (0xFFC0, "other", ""), (0x10000, LETTERS, "other scripts"), (0x1F000, "emoji", ""), (0x20000, LETTERS, "Han"),
    (0x40000, "other", ""), (0xF0000, "private use", ""),
)  # fmt: skip
"""(first code point, class, script) of blocks in order; each reaches to the next."""


class Characters(Frozen):
    """Characters of some texts."""

    classes: dict[str, int] = {}
    """Characters by class, of `CLASSES`."""
    scripts: dict[str, int] = {}
    """Letters by script."""
    replaced: int = 0
    """U+FFFD: a character that an earlier program could not decode."""
    mojibake: int = 0
    """Places that look like UTF-8 taken for Latin-1 and encoded again (`Ã©`, `â€™`)."""

    @property
    def total(self) -> int:
        """Characters."""
        return sum(self.classes.values())


class CharacterTally:
    """Counts characters as texts come."""

    def __init__(self) -> None:
        self._kinds = np.zeros(len(_kinds()), dtype=np.int64)
        self._ascii: Counter[str] = Counter()
        self._replaced = self._mojibake = 0

    def add(self, data: np.ndarray, *, starts: np.ndarray) -> None:
        """Counts the characters of texts.

        Args:
            data: their UTF-8, one after the other; uint8.
            starts: where each begins in it; integers.
        """
        pairs = np.zeros(1 << 16, dtype=np.int64)
        for first in range(0, len(data), _CHUNK_BYTES):
            chunk = data[first : first + _CHUNK_BYTES]
            if self._add_ascii(chunk) < len(chunk):
                leads = np.flatnonzero(chunk >= _LEAD) + first  # a character's second byte may be in the next chunk
                pairs += np.bincount((data[leads].astype(np.uint16) << 8) | data[leads + 1], minlength=1 << 16)
        if pairs.any():
            self._kinds += np.bincount(_kind_of_pair(), weights=pairs, minlength=len(self._kinds)).astype(np.int64)
            self._add_problems(data, pairs, starts=starts)

    def characters(self) -> Characters:
        """Returns the counts."""
        classes, scripts = Counter(self._ascii), Counter[str]()
        for (name, script), count in zip(_kinds(), self._kinds.tolist(), strict=True):
            classes[name] += count
            if script:
                scripts[script] += count
        scripts["Latin"] += self._ascii[LETTERS]
        return Characters(classes=_without_zeros(classes), scripts=_without_zeros(scripts), replaced=self._replaced, mojibake=self._mojibake)

    def _add_ascii(self, chunk: np.ndarray) -> int:
        """Counts the characters below U+0080 and returns how many there are."""
        letters = np.count_nonzero(((chunk | 0x20) - 0x61) < 26)  # uint8 wraps: one comparison bounds both sides
        digits = np.count_nonzero((chunk - 0x30) < 10)
        breaks = np.count_nonzero((chunk - 0x09) < 5)
        spaces = np.count_nonzero(chunk == 0x20)
        controls = np.count_nonzero(chunk < 0x20) - breaks + np.count_nonzero(chunk == 0x7F)
        total = np.count_nonzero(chunk < 0x80)
        rest = total - letters - digits - breaks - spaces - controls
        found = {LETTERS: letters, "digits": digits, "white space": breaks + spaces, "controls": controls, "punctuation and symbols": rest}
        self._ascii.update({name: int(count) for name, count in found.items()})
        return int(total)

    def _add_problems(self, data: np.ndarray, pairs: np.ndarray, *, starts: np.ndarray) -> None:
        """Counts signs of broken encodings, where characters are that belong to them."""
        if pairs[0xEFBF]:
            self._replaced += data.tobytes().count(_REPLACEMENT)
        if pairs[0xC383] or pairs[0xC3A2]:
            text = data.tobytes()
            self._mojibake += sum(text.count(sign) for sign in _MOJIBAKE)
            # each sign is two characters: where a text begins with the second one, they do not belong together
            within = [start for start in np.unique(starts[(starts >= 2) & (starts < len(data))]).tolist() if data[start - 2] == _MOJIBAKE[0][0]]
            self._mojibake -= sum(text.startswith(sign, start - 2) for start in within for sign in _MOJIBAKE)


def merge_characters(parts: Iterable[Characters]) -> Characters:
    """Returns the counts of several sets of texts together."""
    present = list(parts)
    classes, scripts = Counter[str](), Counter[str]()
    for part in present:
        classes.update(part.classes)
        scripts.update(part.scripts)
    return Characters(
        classes=_without_zeros(classes),
        scripts=_without_zeros(scripts),
        replaced=sum(part.replaced for part in present),
        mojibake=sum(part.mojibake for part in present),
    )


@cache
def _kinds() -> tuple[tuple[str, str], ...]:
    """Returns the (class, script) pairs there are; the first is of pairs of bytes that no character begins with."""
    return (("other", ""), *sorted({(name, script) for _, name, script in _BLOCKS} - {("other", "")}))


@cache
def _kind_of_pair() -> np.ndarray:
    """Returns the index in `_kinds` of the character that begins with each pair of bytes; (65536,) int64."""
    lead, second = np.divmod(np.arange(1 << 16), 256)
    low = second & 0x3F
    points = np.where(lead < 0xE0, (lead & 0x1F) << 6 | low, np.where(lead < 0xF0, (lead & 0x0F) << 12 | low << 6, (lead & 0x07) << 18 | low << 12))
    kinds = {kind: index for index, kind in enumerate(_kinds())}
    starts = np.array([start for start, _, _ in _BLOCKS])
    kind_of_block = np.array([kinds[name, script] for _, name, script in _BLOCKS])
    found = kind_of_block[np.searchsorted(starts, points, side="right") - 1]
    is_character = (lead >= _LEAD) & (second >= 0x80) & (second < _LEAD) & (points >= 0x80)
    return np.where(is_character, found, 0)


def _without_zeros(counts: Counter[str]) -> dict[str, int]:
    return {name: count for name, count in sorted(counts.items()) if count}
