"""An index of the word n-grams of held-out texts: sorted hashes, and for each the text that it is from. Pure but for `save` and `load`.

Words are those of `words_of`: lower case, without punctuation, in scripts without spaces single characters. Memory: 12 bytes for each
distinct n-gram, mapped from the file and so shared by the processes of a machine, and 2 to 4 bytes more in each process; building takes about
40 bytes for each n-gram. `MAX_NGRAMS` bounds both.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain, groupby
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt
import orjson
import xxhash

from schemas.errors import InputError
from tasks.prepare.words import words_of

Hashes = npt.NDArray[np.uint64]
Positions = npt.NDArray[np.int64]

MAX_NGRAMS = 400_000_000
"""Most n-grams of held-out texts: 4.8 GB of index, 16 GB while it is built."""

_HASHES, _OWNERS, _NAMES = "hashes.npy", "owners.npy", "names.json"
INDEX_FILES = (_HASHES, _OWNERS, _NAMES)
"""The files that `NgramIndex.save` writes. Their bytes depend on the texts, their order, and the settings alone."""

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd: no word of an n-gram is lost in the multiplication
_MIX = np.uint64(0xFF51AFD7ED558CCD)
_HALF = np.uint64(33)
_MAX_CACHED_WORDS = 1_000_000


class HeldOutText(NamedTuple):
    """A text that the model will be judged by."""

    name: str
    """What findings call it: split and `doc_id`, or file and row."""
    text: str
    """The text."""
    origin: str
    """What it is one of, for figures: a split, a file, the prompts. Texts of one origin come one after the other."""


class Owner(NamedTuple):
    """Which held-out text an n-gram is from."""

    name: str
    """Its name."""
    origin: str
    """What it is one of."""


class TextNgrams(NamedTuple):
    """The n-grams of some texts."""

    hashes: Hashes
    """One for each place where an n-gram begins, all texts one after the other."""
    texts: Positions
    """Of which text each is, as an index."""
    starts: Positions
    """At which word of that text it begins."""
    words: list[list[str]]
    """The words of each text."""


class _WordHashes(dict[str, int]):
    """Hashes of words, each computed once; the same in every process."""

    def __missing__(self, word: str) -> int:
        if len(self) >= _MAX_CACHED_WORDS:
            self.clear()
        value = self[word] = xxhash.xxh3_64_intdigest(word.encode())
        return value


_word_hashes = _WordHashes()


def ngrams_of(texts: Sequence[str], *, n: int) -> TextNgrams:
    """Returns the n-grams of `n` words of each text. A text with fewer words has none."""
    words = [words_of(text) for text in texts]
    lengths = np.fromiter(map(len, words), np.int64, len(words))
    total = int(lengths.sum())
    hashes = np.fromiter(map(_word_hashes.__getitem__, chain.from_iterable(words)), np.uint64, total)
    owner = np.repeat(np.arange(len(words)), lengths)
    if total < n:
        none = np.zeros(0, np.int64)
        return TextNgrams(hashes[:0], none, none, words)
    keys = hashes[: total - n + 1].copy()
    for shift in range(1, n):
        keys *= _MULTIPLIER
        keys += hashes[shift : shift + len(keys)]
    keys ^= keys >> _HALF  # the low bits of a sum of products depend on few bits of its parts
    keys *= _MIX
    keys ^= keys >> _HALF
    (inside,) = np.nonzero(owner[: len(keys)] == owner[n - 1 :])  # not across the end of a text
    texts_at = owner[inside]
    return TextNgrams(keys[inside], texts_at, inside - (np.cumsum(lengths) - lengths)[texts_at], words)


@dataclass(frozen=True)
class NgramIndex:
    """The n-grams of held-out texts."""

    n: int
    """Words of an n-gram."""
    hashes: Hashes
    """Distinct hashes, ascending."""
    owners: npt.NDArray[np.uint32]
    """For each the first text that holds it: an index into `names`."""
    names: tuple[str, ...]
    """Names of the texts."""
    origins: tuple[tuple[str, int], ...]
    """What they are of, and how many of them are, in their order."""
    num_short: int = 0
    """Texts with fewer than `n` words: nothing can be found of them."""

    @classmethod
    def build(cls, texts: Iterable[HeldOutText], *, n: int, max_texts: int | None = None, batch_chars: int = 4_000_000) -> Self:
        """Returns the index of `texts`, in whose order the first owner of an n-gram is found.

        Args:
            texts: streamed: only a batch of about `batch_chars` characters is held at a time.
            n: words of an n-gram.
            max_texts: n-grams in more texts than this are common text (licences, headers), not evaluation, and are left out. None: all are kept.

        Raises:
            InputError: there are more than `MAX_NGRAMS` n-grams.
        """
        names: list[str] = []
        origins: list[str] = []
        found: list[tuple[Hashes, npt.NDArray[np.uint32]]] = []
        num_ngrams, num_short = 0, 0
        for batch in _batches(texts, batch_chars=batch_chars):
            ngrams = ngrams_of([each.text for each in batch], n=n)
            num_short += sum(len(words) < n for words in ngrams.words)
            found.append(_distinct(ngrams.hashes, (ngrams.texts + len(names)).astype(np.uint32)))
            names += [each.name for each in batch]
            origins += [each.origin for each in batch]
            num_ngrams += len(found[-1][0])
            if num_ngrams > MAX_NGRAMS:
                raise _too_many(num_ngrams)
        hashes = np.concatenate([np.zeros(0, np.uint64), *(each for each, _ in found)])
        owners = np.concatenate([np.zeros(0, np.uint32), *(each for _, each in found)])
        distinct, first, counts = np.unique(hashes, return_index=True, return_counts=True)
        kept = slice(None) if max_texts is None else counts <= max_texts
        runs = tuple((origin, len(list(run))) for origin, run in groupby(origins))
        return cls(n, distinct[kept], owners[first[kept]], tuple(names), runs, num_short)

    def find(self, hashes: Hashes) -> npt.NDArray[np.bool_]:
        """Returns which of `hashes` are in the index."""
        found = np.zeros(len(hashes), bool)
        if not len(self.hashes):
            return found
        bits, shift = self._bits
        places = hashes >> shift
        (maybe,) = np.nonzero(bits[places >> np.uint64(3)] >> (places & np.uint64(7)).astype(np.uint8) & np.uint8(1))
        at = np.searchsorted(self.hashes, hashes[maybe])
        found[maybe] = self.hashes[np.minimum(at, len(self.hashes) - 1)] == hashes[maybe]
        return found

    def owner_of(self, value: np.uint64) -> Owner:
        """Returns the first held-out text that holds an n-gram of the index."""
        owner = int(self.owners[int(np.searchsorted(self.hashes, value))])
        ends = accumulate(count for _, count in self.origins)
        origin = next(origin for (origin, _), end in zip(self.origins, ends, strict=True) if owner < end)
        return Owner(self.names[owner], origin)

    def save(self, folder: Path) -> None:
        """Writes `INDEX_FILES` into an existing folder."""
        np.save(folder / _HASHES, self.hashes, allow_pickle=False)
        np.save(folder / _OWNERS, self.owners, allow_pickle=False)
        (folder / _NAMES).write_bytes(orjson.dumps({"n": self.n, "names": self.names, "origins": self.origins, "num_short": self.num_short}))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Returns what `save` wrote; the arrays stay in the files."""
        about = orjson.loads((folder / _NAMES).read_bytes())
        hashes, owners = (np.lib.format.open_memmap(folder / name, mode="r") for name in (_HASHES, _OWNERS))
        origins = tuple((origin, count) for origin, count in about["origins"])
        return cls(about["n"], hashes, owners, tuple(about["names"]), origins, about["num_short"])

    @cached_property
    def _bits(self) -> tuple[npt.NDArray[np.uint8], np.uint64]:
        """A bit for each value of the upper bits of a hash, set where the index has one: 15 of 16 strangers are told by a single look."""
        width = len(self.hashes).bit_length() + 4
        shift = np.uint64(64 - width)
        places = self.hashes >> shift
        at = (places >> np.uint64(3)).astype(np.int64)  # ascending, as the hashes are
        starts = np.flatnonzero(np.diff(at, prepend=-1))
        bits = np.zeros(1 << (width - 3), np.uint8)
        bits[at[starts]] = np.bitwise_or.reduceat(np.uint8(1) << (places & np.uint64(7)).astype(np.uint8), starts)
        return bits, shift


def _batches(texts: Iterable[HeldOutText], *, batch_chars: int) -> Iterable[list[HeldOutText]]:
    batch: list[HeldOutText] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text.text)
        if size >= batch_chars:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _distinct(hashes: Hashes, owners: npt.NDArray[np.uint32]) -> tuple[Hashes, npt.NDArray[np.uint32]]:
    """Returns each pair of hash and owner once, so that a count of a hash is a count of texts."""
    order = np.lexsort((owners, hashes))
    hashes, owners = hashes[order], owners[order]
    is_first = np.ones(len(hashes), bool)
    is_first[1:] = (hashes[1:] != hashes[:-1]) | (owners[1:] != owners[:-1])
    return hashes[is_first], owners[is_first]


def _too_many(num_ngrams: int) -> InputError:
    return InputError(
        f"the texts to compare with hold more than {num_ngrams:,} n-grams",
        why=f"an index holds at most {MAX_NGRAMS:,}, which is {MAX_NGRAMS * 12 / 1e9:.1f} GB",
        mend="hold less out (corpus.splits), or compare with fewer files (corpus.preparation.decontamination.files)",
    )
