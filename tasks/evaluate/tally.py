"""Sums over predicted tokens, and the scores that follow from them. Pure numpy.

Bits per byte = (sum of -ln p over all tokens of the texts) / ln 2 / (UTF-8 bytes of the texts).
"""

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from tasks.evaluate.document import Document
from tasks.evaluate.report import Calibration, CalibrationBin, Scores, Slice


class Tally:
    """What was summed up per document and per confidence bin; its size does not grow with the tokens."""

    def __init__(self, *, num_documents: int, num_bins: int) -> None:
        """Args: num_bins: equal widths of confidence between 0 and 1."""
        self.nats = np.zeros(num_documents)
        self.tokens = np.zeros(num_documents, dtype=np.int64)
        self.correct = np.zeros(num_documents, dtype=np.int64)
        self._num_bins = num_bins
        self._bin_tokens = np.zeros(num_bins, dtype=np.int64)
        self._bin_confidence = np.zeros(num_bins)
        self._bin_correct = np.zeros(num_bins, dtype=np.int64)

    def add(
        self,
        documents: npt.NDArray[np.int64],
        *,
        nats: npt.NDArray[np.float64],
        confidence: npt.NDArray[np.float64],
        correct: npt.NDArray[np.bool_],
    ) -> None:
        """Adds predictions; all arrays have one entry per token.

        Args:
            documents: position of the token's document.
            nats: -ln p of the true token.
            confidence: probability of the first guess, in (0, 1].
            correct: whether the first guess is the true token.
        """
        count = len(self.nats)
        self.nats += np.bincount(documents, weights=nats, minlength=count)
        self.tokens += np.bincount(documents, minlength=count)
        self.correct += np.bincount(documents, weights=correct, minlength=count).astype(np.int64)
        bins = np.clip(np.ceil(confidence * self._num_bins).astype(np.int64) - 1, 0, self._num_bins - 1)
        self._bin_tokens += np.bincount(bins, minlength=self._num_bins)
        self._bin_confidence += np.bincount(bins, weights=confidence, minlength=self._num_bins)
        self._bin_correct += np.bincount(bins, weights=correct, minlength=self._num_bins).astype(np.int64)

    def calibration(self) -> Calibration:
        """Returns the bins and the expected calibration error."""
        bins = []
        for index in range(self._num_bins):
            tokens = int(self._bin_tokens[index])
            bins.append(
                CalibrationBin(
                    lower=index / self._num_bins,
                    upper=(index + 1) / self._num_bins,
                    tokens=tokens,
                    confidence=float(self._bin_confidence[index]) / tokens if tokens else 0.0,
                    accuracy=int(self._bin_correct[index]) / tokens if tokens else 0.0,
                )
            )
        total = sum(entry.tokens for entry in bins)
        error = sum(abs(entry.confidence - entry.accuracy) * entry.tokens for entry in bins) / max(1, total)
        return Calibration(expected_error=error, bins=tuple(bins))

    def scores(self, documents: Sequence[Document], *, of: Sequence[int] | None = None) -> Scores:
        """Returns the scores of the documents at the positions `of`; None: of all."""
        chosen = list(range(len(documents)) if of is None else of)
        nats, tokens = float(self.nats[chosen].sum()), int(self.tokens[chosen].sum())
        text_bytes = sum(documents[index].num_bytes for index in chosen)
        loss = nats / max(1, tokens)
        return Scores(
            documents=len(chosen),
            text_bytes=text_bytes,
            tokens=tokens,
            loss=loss,
            perplexity=math.exp(min(loss, 700.0)),  # e^709 is the largest float
            bits_per_byte=bits_per_byte(nats, text_bytes=text_bytes),
            accuracy=int(self.correct[chosen].sum()) / max(1, tokens),
        )

    def by(self, documents: Sequence[Document], *, name_of: Callable[[Document], str], order: Sequence[str]) -> tuple[Slice, ...]:
        """Returns the scores of the documents that share a name, in `order`; names without documents are left out."""
        groups: dict[str, list[int]] = {name: [] for name in order}
        for index, document in enumerate(documents):
            groups[name_of(document)].append(index)
        return tuple(Slice(name=name, scores=self.scores(documents, of=found)) for name, found in groups.items() if found)


def bits_per_byte(nats: float, *, text_bytes: int) -> float:
    """Returns nats / ln 2 / bytes."""
    return nats / math.log(2) / text_bytes


def length_bucket(num_bytes: int, *, bounds: Sequence[int]) -> str:
    """Returns the name of the bucket a document of `num_bytes` falls into; a bound belongs to the bucket below it."""
    names = length_bucket_names(bounds)
    return names[int(np.searchsorted(np.asarray(bounds), num_bytes, side="left"))]


def length_bucket_names(bounds: Sequence[int]) -> tuple[str, ...]:
    """Returns the names of all buckets, ascending: `≤ 256 B`, `257-1024 B`, …, `> 16384 B`."""
    if not bounds:
        return ("all lengths",)
    middle = [f"{low + 1}-{high} B" for low, high in itertools.pairwise(bounds)]
    return (f"≤ {bounds[0]} B", *middle, f"> {bounds[-1]} B")
