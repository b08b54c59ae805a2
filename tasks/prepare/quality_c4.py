"""C4's rules (Raffel et al. 2020, JMLR 21, section 2.2): lines are cut out, and what is left must be a text. Pure.

What the paper does not say is taken from the program that made C4 (`c4_utils.py` of tensorflow_datasets): marks of citations, words of more
than 1,000 characters, and lines about cookies and terms of use.
"""

import re
from typing import NamedTuple

from schemas.preparation_config import C4Limits
from tasks.prepare.quality_gopher import Refusal
from tasks.prepare.word_table import CHARS_PER_WORD, SENTENCE_ENDS
from tasks.prepare.words import UNSPACED

_CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
_POLICIES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
_TERMINAL = frozenset([*SENTENCE_ENDS, '"', "'", "\u201d", "\u2019", "\u300d", "\u300f"])
_UNSPACED_CHAR = re.compile(f"[{UNSPACED}]")

_CLOSING = "\"'\u201d\u2019)\\]"
_OTHER_ENDS = "".join(sorted(SENTENCE_ENDS - set(".?!")))
# Not after `e.g`, `U.S` or an initial: that full stop ends a word. In other scripts the mark itself is enough, as no space follows.
_SENTENCE_END = re.compile(rf"(?<!\.\w)(?<!\b[A-Z])[.?!]+[{_CLOSING}]*(?=\s+\S)|[{_OTHER_ENDS}]+[{_CLOSING}\u300d\u300f]*(?=\s*\S)")


class Trimmed(NamedTuple):
    """What C4's rules make of a text."""

    text: str
    """The lines that stay."""
    num_cut: int
    """Lines that were cut out; blank ones do not count."""
    refusal: Refusal | None
    """Why all of it is refused; None: it stays."""


def trim(text: str, limits: C4Limits) -> Trimmed:
    """Returns what is left of a text, or its refusal. Rules for lines come in the order of the original: a line that is cut refuses no document."""
    kept: list[str] = []
    num_cut = 0
    for raw in text.splitlines():
        line = raw.strip()
        words = line.split()
        if limits.max_word_chars is not None and any(len(word) > limits.max_word_chars for word in words):
            num_cut += 1
            continue
        if limits.drop_citations and "[" in line:
            line = _CITATION.sub("", line)
        if not _is_sentence(line, words, limits):
            num_cut += bool(words)
            continue
        lower = line.lower()
        if limits.drop_lorem_ipsum and "lorem ipsum" in lower:
            return Trimmed("", num_cut, Refusal("c4-lorem-ipsum", "a line holds 'lorem ipsum'"))
        if limits.drop_javascript and "javascript" in lower:
            num_cut += 1
            continue
        if limits.drop_curly_brackets and "{" in line:
            return Trimmed("", num_cut, Refusal("c4-curly-bracket", "a line holds '{'"))
        if limits.drop_policy_lines and any(phrase in lower for phrase in _POLICIES):
            num_cut += 1
            continue
        kept.append(line)
    return Trimmed("\n".join(kept).strip(), num_cut, _too_few_sentences(kept, limits))


def num_sentences(line: str) -> int:
    """Returns how many sentences a line holds; at least one, unless it is blank."""
    return len(_SENTENCE_END.findall(line)) + 1 if line.strip() else 0


def _is_sentence(line: str, words: list[str], limits: C4Limits) -> bool:
    """Whether a line ends like one, and has enough words. Characters of scripts without spaces make a word by twos."""
    if limits.terminal_punctuation and (not line or line[-1] not in _TERMINAL or line.endswith("...")):
        return False
    missing = limits.min_words_per_line - len(words)
    return missing <= 0 or len(_UNSPACED_CHAR.findall(line)) >= CHARS_PER_WORD * limits.min_words_per_line


def _too_few_sentences(lines: list[str], limits: C4Limits) -> Refusal | None:
    found = 0
    for line in lines:
        found += num_sentences(line)
        if found >= limits.min_sentences:
            return None
    if found >= limits.min_sentences:
        return None
    return Refusal("c4-sentences", f"{found} sentences are left, at least {limits.min_sentences}")
