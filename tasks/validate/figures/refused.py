"""What was quarantined: the largest clusters of duplicates, and some records of each reason for people to look at. Counted as it is written."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
import pyarrow as pa
import xxhash

from schemas.frozen import Frozen
from tasks.validate.figures.arrow import integers_of, rows_of
from tasks.validate.problem import Reason

SAMPLES_PER_REASON: Final = 5
LISTED_CLUSTERS: Final = 50
"""Clusters that a group tells of, the largest ones."""
_COUNTED_CLUSTERS: Final = 16_384
"""Clusters that are counted at once, some 5 MB; with more of them, the small ones are forgotten."""
_SHOWN_CHARS = 120
DUPLICATE_DETAIL: Final = "doc_id "
"""What the detail of a duplicate begins with; the id of its text follows."""


class RefusedSample(Frozen):
    """A quarantined record that people are shown."""

    key: int
    """The samples of a reason are the records with the lowest keys: hashes of where they are."""
    source: str
    """Its source."""
    path: str
    """Its file within the source."""
    row: int
    """Its place in the file."""
    detail: str
    """What was found."""
    excerpt: str
    """Its beginning, escaped."""


class Cluster(Frozen):
    """Records with one and the same text, of which the first was accepted."""

    removed: int
    """Copies that were quarantined."""
    excerpt: str
    """How the text begins."""


class Refused(Frozen):
    """What was quarantined."""

    clusters: dict[str, Cluster] = {}
    """`doc_id` of the text that stayed → its copies. At most `LISTED_CLUSTERS`, the largest ones."""
    unlisted: int = 0
    """A cluster may have this many more copies than is said here, and one that is not listed has no more than this."""
    samples: dict[str, tuple[RefusedSample, ...]] = {}
    """Records by reason."""


class RefusedTally:
    """Counts quarantined records as they are written."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._excerpts: dict[str, str] = {}
        self._unlisted = 0
        self._samples: dict[str, tuple[RefusedSample, ...]] = {}

    def add(self, batch: pa.RecordBatch) -> None:
        """Takes rows of `QUARANTINE_SCHEMA`, at least one."""
        reasons = batch.column("reason").dictionary_encode()
        codes = integers_of(reasons.indices)
        keys = _keys(batch)
        for code, reason in enumerate(reasons.dictionary.to_pylist()):
            rows = np.flatnonzero(codes == code)
            self._add_samples(reason, batch, rows=rows, keys=keys[rows])
            if reason == Reason.DUPLICATE:
                self._add_copies(batch.take(rows_of(rows)))

    def refused(self) -> Refused:
        """Returns what was counted."""
        return _listed(self._counts, self._excerpts, unlisted=self._unlisted, samples=self._samples)

    def _add_samples(self, reason: str, batch: pa.RecordBatch, *, rows: np.ndarray, keys: np.ndarray) -> None:
        lowest = np.argsort(keys, kind="stable")[:SAMPLES_PER_REASON]
        records = batch.take(rows_of(rows[lowest])).to_pylist()
        fresh = [
            RefusedSample(key=key, **{name: record[name] for name in ("source", "path", "row", "detail", "excerpt")})
            for key, record in zip(keys[lowest].tolist(), records, strict=True)
        ]
        self._samples[reason] = _lowest([*self._samples.get(reason, ()), *fresh])

    def _add_copies(self, batch: pa.RecordBatch) -> None:
        texts = batch.column("detail").dictionary_encode()
        _, first, counts = np.unique(integers_of(texts.indices), return_index=True, return_counts=True)
        shown = batch.column("excerpt").take(rows_of(first)).to_pylist()
        for detail, count, excerpt in zip(texts.dictionary.to_pylist(), counts.tolist(), shown, strict=True):
            doc_id = detail.removeprefix(DUPLICATE_DETAIL)
            self._counts[doc_id] += count
            self._excerpts.setdefault(doc_id, excerpt[:_SHOWN_CHARS])
        if len(self._counts) > _COUNTED_CLUSTERS:
            kept, forgotten = _largest(self._counts, _COUNTED_CLUSTERS // 4)
            self._unlisted += forgotten
            self._counts = Counter(kept)
            self._excerpts = {doc_id: self._excerpts[doc_id] for doc_id in kept}


def merge_refused(parts: Iterable[Refused]) -> Refused:
    """Returns what was quarantined in several sets of records; of equal texts the first excerpt stays."""
    counts: Counter[str] = Counter()
    excerpts: dict[str, str] = {}
    samples: dict[str, list[RefusedSample]] = {}
    unlisted = 0
    for part in parts:
        unlisted += part.unlisted
        for doc_id, cluster in part.clusters.items():
            counts[doc_id] += cluster.removed
            excerpts.setdefault(doc_id, cluster.excerpt)
        for reason, found in part.samples.items():
            samples.setdefault(reason, []).extend(found)
    return _listed(counts, excerpts, unlisted=unlisted, samples={reason: _lowest(found) for reason, found in samples.items()})


def _listed(counts: Counter[str], excerpts: dict[str, str], *, unlisted: int, samples: dict[str, tuple[RefusedSample, ...]]) -> Refused:
    kept, forgotten = _largest(counts, LISTED_CLUSTERS)
    clusters = {doc_id: Cluster(removed=count, excerpt=excerpts[doc_id]) for doc_id, count in kept.items()}
    return Refused(clusters=clusters, unlisted=unlisted + forgotten, samples=dict(sorted(samples.items())))


def _largest(counts: Counter[str], number: int) -> tuple[dict[str, int], int]:
    """Returns the largest counts, in order, and the largest of the others."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return dict(ordered[:number]), ordered[number][1] if len(ordered) > number else 0


def _lowest(samples: Sequence[RefusedSample]) -> tuple[RefusedSample, ...]:
    """Returns the samples with the lowest keys; the place decides between equal ones."""
    return tuple(sorted(samples, key=lambda sample: (sample.key, sample.path, sample.row))[:SAMPLES_PER_REASON])


def _keys(batch: pa.RecordBatch) -> np.ndarray:
    """Returns a number per record that follows from its place and is like a random one; uint64."""
    places = np.zeros(batch.num_rows, dtype=np.uint64)
    for name in ("source", "path"):
        column = batch.column(name).dictionary_encode()
        hashes = np.array([xxhash.xxh3_64_intdigest(value.encode()) for value in column.dictionary.to_pylist()], dtype=np.uint64)
        places = places * np.uint64(31) + hashes[integers_of(column.indices)]
    keys: np.ndarray = places + integers_of(batch.column("row")).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):  # splitmix64's finish
        keys = (keys ^ (keys >> np.uint64(shift))) * np.uint64(factor)
    return keys
