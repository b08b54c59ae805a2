"""Training documents that share text with what the model will be judged by are refused: overlap of word n-grams (arXiv 2005.14165, appendix C).

Only training documents are given to this step: those held out stay. How the index is made: `NgramIndex.build`, over the held-out texts as they are
after the steps before this one.
"""

from collections.abc import Sequence

import numpy as np

from schemas.preparation_config import DecontaminationConfig
from tasks.prepare.ngram_index import NgramIndex, ngrams_of
from tasks.prepare.steps import Outcome
from tasks.prepare.words import batches_of

_SHOWN_CHARS = 200
_BATCH_CHARS = 2_000_000
"""Characters whose words are looked at at once: some 60 MB of memory."""


class DecontaminationStep:
    """Refuses documents that share more n-grams with the index than the recipe allows. Reason: `contaminated`."""

    name = "decontamination"

    def __init__(self, config: DecontaminationConfig, index: NgramIndex) -> None:
        """Args:
        config: the recipe's section; `ngram` must be what the index was built with.
        index: of the held-out texts.
        """
        assert config.ngram == index.n, f"an index of {index.n}-grams for {config.ngram}-grams"
        self._config = config
        self._index = index

    def apply(self, texts: Sequence[str]) -> list[Outcome]:
        """Returns each document as it is, or its refusal: its detail names the first shared n-gram and the held-out text that this is from."""
        return [outcome for batch in batches_of(texts, max_chars=_BATCH_CHARS) for outcome in self._apply(batch)]

    def _apply(self, texts: Sequence[str]) -> list[Outcome]:
        ngrams = ngrams_of(texts, n=self._index.n)
        (hits,) = np.nonzero(self._index.find(ngrams.hashes))
        outcomes = [Outcome(text) for text in texts]
        if not len(hits):
            return outcomes
        totals = np.bincount(ngrams.texts, minlength=len(texts))
        owners, first, counts = np.unique(ngrams.texts[hits], return_index=True, return_counts=True)
        for owner, at, count in zip(owners.tolist(), first.tolist(), counts.tolist(), strict=True):
            if count <= self._config.max_shared or count < self._config.min_shared_share * totals[owner]:
                continue
            hit = hits[at]
            start = int(ngrams.starts[hit])
            shared = " ".join(ngrams.words[owner][start : start + self._index.n])[:_SHOWN_CHARS]
            held_out = self._index.owner_of(ngrams.hashes[hit])
            detail = f"{count:,} of {totals[owner]:,} {self._index.n}-grams, the first {shared!r} of {held_out.name}"
            outcomes[owner] = Outcome(None, "contaminated", detail, counts={f"shared with {held_out.origin}": 1})
        return outcomes
