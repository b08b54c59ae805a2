"""The shadow check: some documents of a group are encoded by Hugging Face `tokenizers` as well, and must give equal ids."""

import numpy as np
import numpy.typing as npt

from schemas.errors import VerificationError
from tasks.tokenizer.corpus import Columns
from tasks.tokenizer.engine import Encoded, Engine, HuggingFaceEngine

_OF_CORPUS_BYTES = 256 << 10
_OF_TEXT = 2048
"""Hugging Face encodes a hundredth as fast as gigatoken. What a sample tells depends on its size, not on its share: a quarter of a mebibyte of a
corpus, some 60,000 tokens, and of a large one a part that costs a twentieth of the encoding itself."""
_LONGEST = 256 << 10
"""Bytes of a document that is checked as a whole. `tokenizers` takes a hundred bytes of memory for each of its text."""


class ShadowCheck:
    """Compares an engine's ids with the reference's, on documents spread evenly. Does nothing when the engine is the reference."""

    def __init__(self, reference: HuggingFaceEngine | None, *, engine: Engine, documents: int, of: int, most_bytes: int) -> None:
        """Starts a check of a group.

        Args:
            reference: None: nothing is checked.
            engine: what is checked.
            documents: how many are checked, about.
            of: how many will be shown, in their order.
            most_bytes: of their text that is checked, as much of it in every part of the group. Of long documents fewer are checked than asked
                for, but always one, or its beginning.
        """
        self.checked = 0
        self._seen = self._spent = 0
        self._of, self._most_bytes = max(of, 1), most_bytes
        self._stride = max(1, -(-of // documents)) if documents else 0
        self._reference = reference if documents else None
        self._engine = engine

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
        self._seen += len(sizes)
        if not chosen and not self.checked and sizes.size:  # all in turn are too long
            chosen.append(int(sizes.argmin()))
            self._spent += min(int(sizes[chosen[0]]), _LONGEST)
            if sizes[chosen[0]] > _LONGEST:
                self._check_beginning(columns, chosen[0])
                return
        expected = self._reference.encode([columns.texts[index].as_py() for index in chosen])
        for position, index in enumerate(chosen):
            if expected.of(position) != encoded.of(index):
                raise _disagreement(f"document {columns.doc_ids[index]}", expected.of(position), encoded.of(index))
        self.checked += len(chosen)

    def _check_beginning(self, columns: Columns, index: int) -> None:
        """Checks the beginning of a long document, which both engines encode for it."""
        assert self._reference is not None
        beginning = [columns.texts[index].as_buffer().slice(0, _LONGEST).to_pybytes().decode(errors="ignore")]  # the last letter may be cut
        expected, found = self._reference.encode(beginning).of(0), self._engine.encode(beginning).of(0)
        if expected != found:
            raise _disagreement(f"the beginning of document {columns.doc_ids[index]}", expected, found)
        self.checked += 1


def shadow_bytes(*, group_bytes: int, corpus_bytes: int) -> int:
    """Returns how many bytes of a group's text are checked: the group's share of 256 KiB, or a 2048th of it where that is more."""
    return max(_OF_CORPUS_BYTES * group_bytes // max(corpus_bytes, 1), group_bytes // _OF_TEXT, 1)


def _disagreement(what: str, expected: list[int], found: list[int]) -> VerificationError:
    mend = "set tokenization.engine: huggingface, and report the document to gigatoken"
    subject = "shadow check: gigatoken gives other ids than Hugging Face tokenizers"
    return VerificationError((f"{what}: {_difference(expected, found)}",), subject=subject, mend=mend)


def _difference(expected: list[int], found: list[int]) -> str:
    """Returns where two lists of ids part."""
    position = next((at for at, (left, right) in enumerate(zip(expected, found, strict=False)) if left != right), min(len(expected), len(found)))
    return f"token {position} is {found[position : position + 3]}, expected {expected[position : position + 3]} (of {len(found)} and {len(expected)})"
