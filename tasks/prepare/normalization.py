"""Texts in one Unicode form, without control characters. Pure."""

import re
import unicodedata
from collections.abc import Sequence
from typing import Literal

from schemas.preparation_config import Normalization
from tasks.prepare.steps import Outcome

Form = Literal["NFC", "NFKC"]

_FORMS: dict[Normalization, Form] = {Normalization.NFC: "NFC", Normalization.NFKC: "NFKC"}
_BREAK = re.compile("\r\n?|[\v\f\x85]")
_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]+")


class NormalizationStep:
    """Brings texts into a Unicode form, ends their lines with LF, and takes out other control characters but tabs.

    Refused is only what nothing is left of (`normalization-empty`).
    """

    name = "normalization"

    def __init__(self, form: Normalization) -> None:
        self._form = _FORMS[form]

    def apply(self, texts: Sequence[str]) -> list[Outcome]:
        """Returns each document in that form; `changed` counts those that were not."""
        return [self._outcome(text) for text in texts]

    def _outcome(self, text: str) -> Outcome:
        normal = normalized(text, self._form)
        if normal == text:
            return Outcome(text)
        if not normal or normal.isspace():
            return Outcome(None, "normalization-empty", f"{len(text):,} characters, none of which is left")
        return Outcome(normal, counts={"changed": 1})


def normalized(text: str, form: Form) -> str:
    """Returns a text in a Unicode form, without control characters other than line ends (LF) and tabs.

    Carriage returns, form feeds and their like become line ends. Controls go first: they might part a letter from its accent.
    """
    text = _CONTROL.sub("", _BREAK.sub("\n", text))
    return text if text.isascii() or unicodedata.is_normalized(form, text) else unicodedata.normalize(form, text)
