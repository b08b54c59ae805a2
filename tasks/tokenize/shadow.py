"""The shadow check: some documents of a group are encoded by Hugging Face `tokenizers` as well, and must give equal ids."""

import numpy as np
import numpy.typing as npt

from schemas.errors import VerificationError
from tasks.tokenizer.corpus import Columns
from tasks.tokenizer.engine import Encoded, HuggingFaceEngine

_OF_CORPUS_BYTES = 256 << 10
_OF_TEXT = 2048
"""Hugging Face encodes a hundredth as fast as gigatoken. What a sample tells depends on its size, not on its share: a quarter of a mebibyte of a
corpus, some 60,000 tokens, and of a large one a part that costs a twentieth of the encoding itself."""


class ShadowCheck:
    """Compares an engine's ids with the reference's, on documents spread evenly. Does nothing when the engine is the reference."""

    def __init__(self, reference: HuggingFaceEngine | None, *, documents: int, of: int, most_bytes: int) -> None:
        """Starts a check of a group.

        Args:
            reference: None: nothing is checked.
            documents: how many are checked, about.
            of: how many will be shown, in their order.
            most_bytes: of their text that is checked, as much of it in every part of the group. Of long documents fewer are checked than asked
                for, but always one.
        """
        self.checked = 0
        self._seen = self._spent = 0
        self._of, self._most_bytes = max(of, 1), most_bytes
        self._stride = max(1, -(-of // documents)) if documents else 0
        self._reference = reference if documents else None

    def check(self, columns: Columns, encoded: Encoded, *, sizes: npt.NDArray[np.int64]) -> None:
        """Checks these documents' share. `sizes`: UTF-8 bytes of each, int64.

        Raises:
            VerificationError: the ids differ; names the first such document.
        """
        if self._reference is None:
            return
        chosen: list[int] = []
        for index in range(-self._seen % self._stride, len(sizes), self._stride):
            if self._spent + sizes[index] <= self._most_bytes * (self._seen + index + self._stride) // self._of:
                chosen.append(index)
                self._spent += int(sizes[index])
        if not chosen and not self.checked and sizes.size:  # all in turn are too long
            chosen.append(int(sizes.argmin()))
            self._spent += int(sizes[chosen[0]])
        self._seen += len(sizes)
        expected = self._reference.encode([columns.texts[index].as_py() for index in chosen])
        for position, index in enumerate(chosen):
            if expected.of(position) != encoded.of(index):
                finding = f"document {columns.doc_ids[index]}: {_difference(expected.of(position), encoded.of(index))}"
                mend = "set tokenization.engine: huggingface, and report the document to gigatoken"
                raise VerificationError((finding,), subject="shadow check: gigatoken gives other ids than Hugging Face tokenizers", mend=mend)
        self.checked += len(chosen)


def shadow_bytes(*, group_bytes: int, corpus_bytes: int) -> int:
    """Returns how many bytes of a group's text are checked: the group's share of 256 KiB, or a 2048th of it where that is more."""
    return max(_OF_CORPUS_BYTES * group_bytes // max(corpus_bytes, 1), group_bytes // _OF_TEXT, 1)


def _difference(expected: list[int], found: list[int]) -> str:
    """Returns where two lists of ids part."""
    position = next((at for at, (left, right) in enumerate(zip(expected, found, strict=False)) if left != right), min(len(expected), len(found)))
    return f"token {position} is {found[position : position + 3]}, expected {expected[position : position + 3]} (of {len(found)} and {len(expected)})"
