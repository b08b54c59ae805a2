"""The shadow check: some documents of a group are encoded by Hugging Face `tokenizers` as well, and must give equal ids."""

from typing import Literal

import numpy as np
import numpy.typing as npt

from schemas.errors import VerificationError
from tasks.tokenizer.corpus import Columns
from tasks.tokenizer.engine import Encoded, HuggingFaceEngine

_MAX_BYTES = 1 << 20
"""Hugging Face encodes some 5 MB per second and core: of long documents fewer are checked than asked for, but always one."""


class ShadowCheck:
    """Compares an engine's ids with the reference's, on documents spread evenly. Does nothing when the engine is the reference."""

    def __init__(self, tokenizer_json: bytes, *, documents: int, of: int, engine: Literal["gigatoken", "huggingface"]) -> None:
        """Starts a check of about `documents` of the `of` documents that will be shown, in their order."""
        self.checked = 0
        self._seen = 0
        self._bytes_left = _MAX_BYTES
        self._stride = max(1, -(-of // documents)) if documents else 0
        self._reference = HuggingFaceEngine(tokenizer_json) if documents and engine != "huggingface" else None

    def check(self, columns: Columns, encoded: Encoded, *, sizes: npt.NDArray[np.int64]) -> None:
        """Checks these documents' share. `sizes`: UTF-8 bytes of each, int64.

        Raises:
            VerificationError: the ids differ; names the first such document.
        """
        if self._reference is None:
            return
        chosen: list[int] = []
        for index in range(-self._seen % self._stride, len(sizes), self._stride):
            if self._bytes_left <= 0:
                break
            chosen.append(index)
            self._bytes_left -= int(sizes[index])
        self._seen += len(sizes)
        expected = self._reference.encode(columns.texts.take(chosen).to_pylist() if chosen else [])
        for position, index in enumerate(chosen):
            if expected.of(position) != encoded.of(index):
                finding = f"document {columns.doc_ids[index]}: {_difference(expected.of(position), encoded.of(index))}"
                mend = "set tokenization.engine: huggingface, and report the document to gigatoken"
                raise VerificationError((finding,), subject="shadow check: gigatoken gives other ids than Hugging Face tokenizers", mend=mend)
        self.checked += len(chosen)


def _difference(expected: list[int], found: list[int]) -> str:
    """Returns where two lists of ids part."""
    position = next((at for at, (left, right) in enumerate(zip(expected, found, strict=False)) if left != right), min(len(expected), len(found)))
    return f"token {position} is {found[position : position + 3]}, expected {expected[position : position + 3]} (of {len(found)} and {len(expected)})"
