"""A document's identity, and the split that follows from it. Pure."""

from collections.abc import Iterable

import numpy as np
import xxhash
from numpy.typing import NDArray

from schemas.corpus_config import SplitConfig
from schemas.manifest import SPLITS, Split

_DIGEST_BYTES = 16
_FRACTION_BYTES = 8


def digest_of(data: bytes) -> bytes:
    """Returns the xxh3-128 of a text's UTF-8 bytes, 16 bytes; its hex form is the `doc_id`."""
    return xxhash.xxh3_128_digest(data)


def digests_of(data: Iterable[bytes]) -> NDArray[np.uint8]:
    """Returns `digest_of` each text, [documents, 16]."""
    return np.frombuffer(b"".join(map(xxhash.xxh3_128_digest, data)), dtype=np.uint8).reshape(-1, _DIGEST_BYTES)


class Splitter:
    """Gives each document its split by its content alone: adding documents moves none, and equal texts stay together."""

    def __init__(self, splits: SplitConfig) -> None:
        """Args: splits: the shares. Test takes the lowest hashes and validation those above: changing `validation` leaves the test split alone."""
        self._test = _threshold(splits.test)
        self._validation = _threshold(splits.test + splits.validation)

    def split_of(self, digest: bytes) -> Split:
        """Returns the split of a document."""
        fraction = int.from_bytes(digest[:_FRACTION_BYTES], "big")
        return "train" if fraction >= self._validation else "test" if fraction < self._test else "validation"

    def members_of(self, digests: NDArray[np.uint8]) -> dict[Split, NDArray[np.bool_]]:
        """Returns for each split which documents are in it, [documents]. `digests`: of each, [documents, 16]."""
        fractions = digests[:, :_FRACTION_BYTES].copy().view(">u8")[:, 0]
        is_test, is_train = fractions < np.uint64(self._test), fractions >= np.uint64(self._validation)
        members: dict[Split, NDArray[np.bool_]] = {"train": is_train, "test": is_test & ~is_train, "validation": ~(is_test | is_train)}
        return {split: members[split] for split in SPLITS}


def sample_key(digest: bytes) -> int:
    """Returns a number that is independent of the split; the documents with the lowest ones are the sample that people are shown."""
    return int.from_bytes(digest[_FRACTION_BYTES:], "big")


def sample_keys(digests: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Returns `sample_key` of each document, [documents]. `digests`: of each, [documents, 16]."""
    return digests[:, _FRACTION_BYTES:].copy().view(">u8")[:, 0].astype(np.uint64)


def _threshold(share: float) -> int:
    return round(share * (1 << (8 * _FRACTION_BYTES)))
