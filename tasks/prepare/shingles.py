"""What documents are compared by: MinHash signatures of their word shingles (Broder 1997), made by rensa. Pure.

Shingles are hashed here, so that a signature depends on the text and on rensa's algorithm alone, on any machine. Of each of its 32-bit values the
lower half is kept (b-bit minwise hashing, arXiv 0910.3349): two strangers agree in it by chance once in 65,536.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import rensa
import xxhash

from schemas.preparation_config import DuplicatesConfig
from tasks.prepare.ngram_index import ngrams_of

Signatures = npt.NDArray[np.uint16]
"""One row per document, one column per permutation."""

_SEED = 19_970_611
_WANTED_RECALL = 0.95


def signatures_of(texts: Sequence[str], *, config: DuplicatesConfig) -> tuple[Signatures, npt.NDArray[np.bool_]]:
    """Returns the signatures of `texts` [texts, permutations], and which of them have words at all: a text without any is like no other.

    A text with fewer words than a shingle has one shingle, all of it.
    """
    ngrams = ngrams_of(texts, n=config.shingle)
    counts = np.bincount(ngrams.texts, minlength=len(texts)).astype(np.int64)
    has_words = np.fromiter((bool(words) for words in ngrams.words), dtype=np.bool_, count=len(texts))
    hashes, short = ngrams.hashes, np.flatnonzero((counts == 0) & has_words)
    if len(short):
        whole = [xxhash.xxh3_64_intdigest(" ".join(ngrams.words[index]).encode()) for index in short]
        hashes = np.insert(hashes, (np.cumsum(counts) - counts)[short], np.array(whole, dtype=np.uint64))
        counts[short] = 1
    offsets = np.concatenate([np.zeros(1, dtype=np.uint64), np.cumsum(counts).astype(np.uint64)])
    matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(hashes, offsets, config.permutations, _SEED)
    whole_values = np.array(matrix.to_rows(), dtype=np.uint32).reshape(len(texts), config.permutations)
    return (whole_values & np.uint32(0xFFFF)).astype(np.uint16), has_words


def rows_per_band(config: DuplicatesConfig) -> int:
    """Returns how many values of a signature make a band: the most with which a pair at the threshold shares one in 95 of 100 cases.

    Such a pair agrees in each value with probability `threshold`; candidates are compared in whole afterwards, so more bands cost only time.
    """
    fitting = (
        rows for rows in range(config.permutations, 0, -1) if 1.0 - (1.0 - config.threshold**rows) ** (config.permutations // rows) >= _WANTED_RECALL
    )
    return next(fitting, 1)


def band_keys(signatures: Signatures, *, rows: int) -> npt.NDArray[np.uint64]:
    """Returns a key for each band of each signature [bands, texts]: equal bands have equal keys."""
    bands = signatures.shape[1] // rows
    parts = signatures[:, : bands * rows].reshape(len(signatures), bands, rows).astype(np.uint64)
    keys = np.zeros(parts.shape[:2], dtype=np.uint64)
    for column in range(rows):
        keys = (keys ^ parts[:, :, column]) * np.uint64(0x9E3779B97F4A7C15)
        keys ^= keys >> np.uint64(29)
    return np.ascontiguousarray(keys.T)
