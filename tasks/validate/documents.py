"""A document's identity, and the split that follows from it. Pure."""

from collections.abc import Sequence

import xxhash

from schemas.manifest import Split
from schemas.recipe_config import SplitConfig

_SAMPLE_SEED = 20_170_612
_FRACTION_BYTES = 8


def digest_of(data: bytes) -> bytes:
    """Returns the xxh3-128 of a text's UTF-8 bytes, 16 bytes; its hex form is the `doc_id`."""
    return xxhash.xxh3_128_digest(data)


class Splitter:
    """Gives each document its split by its content alone: adding documents moves none, and equal texts stay together."""

    def __init__(self, splits: SplitConfig) -> None:
        """Args: splits: the shares. Test takes the lowest hashes and validation those above: changing `validation` leaves the test split alone."""
        self._test = _threshold(splits.test)
        self._validation = _threshold(splits.test + splits.validation)

    def split_of(self, digest: bytes) -> Split:
        """Returns the split of a document."""
        return self.splits_of([digest])[0]

    def splits_of(self, digests: Sequence[bytes]) -> list[Split]:
        """Returns the split of each document."""
        test, validation = self._test, self._validation
        fractions = [int.from_bytes(digest[:_FRACTION_BYTES], "big") for digest in digests]
        return ["train" if fraction >= validation else "test" if fraction < test else "validation" for fraction in fractions]


def sample_key(digest: bytes) -> int:
    """Returns a number that is independent of the split; the documents with the lowest ones are the sample that people are shown."""
    return xxhash.xxh3_64_intdigest(digest, seed=_SAMPLE_SEED)


def sample_keys(digests: Sequence[bytes]) -> list[int]:
    """Returns `sample_key` of each document."""
    return [xxhash.xxh3_64_intdigest(digest, seed=_SAMPLE_SEED) for digest in digests]


def _threshold(share: float) -> int:
    return round(share * (1 << (8 * _FRACTION_BYTES)))
