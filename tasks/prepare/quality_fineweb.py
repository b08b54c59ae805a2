"""FineWeb's own rules (Penedo et al. 2024, arXiv 2406.17557, section 3.6). Pure."""

import re

from schemas.preparation_config import FineWebLimits
from tasks.prepare.quality_gopher import Refusal
from tasks.prepare.quality_repetition import duplicate_chars
from tasks.prepare.word_table import SENTENCE_ENDS

_THAI_AND_LAO = re.compile("[\u0e00-\u0eff]")


def fineweb_refusal(text: str, num_words: int, limits: FineWebLimits) -> Refusal | None:
    """Returns the first rule that a text breaks, or None.

    Args:
        text: of the document.
        num_words: its words, signs included (`WordTable`); characters of scripts without spaces by twos.
        limits: of the recipe.
    """
    lines = [line for line in text.split("\n") if line and not line.isspace()]
    if not lines:
        return Refusal("fineweb-empty", "no line holds anything")
    punctuated = sum(line[-1] in SENTENCE_ENDS for line in lines) / len(lines)
    if punctuated < limits.min_punctuated_lines and not _is_unpunctuated(text):
        return Refusal("fineweb-punctuation", f"{punctuated:.1%} of lines end in a punctuation mark, at least {limits.min_punctuated_lines:.1%}")
    short = sum(len(line) <= limits.short_line_chars for line in lines) / len(lines)
    if short > limits.max_short_lines:
        return Refusal(
            "fineweb-short-lines", f"{short:.1%} of lines have at most {limits.short_line_chars} characters, at most {limits.max_short_lines:.1%} may"
        )
    newlines = text.count("\n")
    copied = duplicate_chars(lines) / (len(text) - newlines)
    if copied > limits.max_duplicate_line_chars:
        return Refusal("fineweb-duplicate-lines", f"{copied:.1%} of characters are in copies of lines, at most {limits.max_duplicate_line_chars:.1%}")
    share = newlines / max(num_words, 1)
    if share > limits.max_newlines_per_word:
        return Refusal("fineweb-list", f"{share:.2f} line breaks per word, at most {limits.max_newlines_per_word:g}")
    return None


def _is_unpunctuated(text: str) -> bool:
    """Whether a text is mostly Thai or Lao, whose sentences end without a mark."""
    return 2 * len(_THAI_AND_LAO.findall(text)) > len(text)
