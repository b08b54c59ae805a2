"""Documents in other languages than those that the recipe keeps are refused. CLD2 identifies them; its tables are inside of its package.

CLD2 gives shares of a text by language, so a page in two languages is one that holds both, not one that is uncertain.
"""

import re
from collections.abc import Sequence
from functools import lru_cache

import pycld2

from schemas.preparation_config import LanguageConfig
from tasks.prepare.steps import Outcome

LOOKED_AT_CHARS = 2_000
"""Characters from the beginning of a document that are looked at: more of them change a verdict seldom, and cost time."""

# What CLD2 refuses as "invalid UTF-8": control characters, surrogates and code points that stand for no character.
_UNREADABLE = re.compile(
    "[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]|["
    + "".join(chr((plane << 16) + low) for plane in range(1, 17) for low in (0xFFFE, 0xFFFF))
    + "]"
)
_CURRENT = {"iw": "he", "jw": "jv", "nb": "no"}
"""CLD2's codes that ISO 639-1 has replaced, and Norwegian Bokmal, which CLD2 calls Norwegian."""


class LanguageStep:
    """Refuses documents of which too small a share is in the languages that are kept.

    Reasons: `language-other`, and `language-unknown` where nothing was recognised.
    """

    name = "language"

    def __init__(self, config: LanguageConfig) -> None:
        self._keep = frozenset(map(_current, config.keep))
        self._min_share = config.min_score

    def apply(self, texts: Sequence[str]) -> list[Outcome]:
        """Returns each document as it is, or its refusal, whose detail has the languages found and their shares."""
        return [self._outcome(text) for text in texts]

    def _outcome(self, text: str) -> Outcome:
        shares = language_shares(text)
        if sum(share for code, share in shares.items() if code in self._keep) >= self._min_share and shares:
            return Outcome(text)
        found = ", ".join(f"{code} {share:.0%}" for code, share in shares.items()) or "nothing recognised"
        detail = f"{found}; at least {self._min_share:.0%} must be {', '.join(sorted(self._keep))}"
        return Outcome(None, "language-other" if shares else "language-unknown", detail)


def language_shares(text: str) -> dict[str, float]:
    """Returns the languages of a text and their shares of what was recognised, the largest first; at most three, none: nothing was recognised.

    CLD2 leaves out what it is not sure of, which in clean Russian can be a third, so shares are not of the whole text.
    """
    head = _UNREADABLE.sub(" ", text[:LOOKED_AT_CHARS])
    _, _, found = pycld2.detect(head.encode(), bestEffort=True)
    percents: dict[str, int] = {}
    for _, code, percent, _ in found:
        if code != "un" and percent:
            percents[_current(code)] = percents.get(_current(code), 0) + percent
    total = sum(percents.values())
    return {code: percent / total for code, percent in percents.items()}


@lru_cache
def _current(code: str) -> str:
    """Returns the code by which we call a language: without script (`zh-Hant`)."""
    base = code.partition("-")[0]
    return _CURRENT.get(base, base)
