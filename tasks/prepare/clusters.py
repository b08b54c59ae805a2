"""Which documents are the same as others, or nearly: one pass over the signatures of all groups.

Two documents with an equal content hash are the same. Two that share a band of their signatures are compared in whole, and are nearly the same when
the share of equal values, which estimates the Jaccard similarity of their shingles, reaches the threshold. What is the same as a third is one set
with it (connected components). Of a set one document stays: one of the test split before one of the validation split before one to train on, then
the one with the smallest `doc_id`. So no training document stays that was found to resemble a held-out one, and nothing depends on the order of
files or workers.

Memory: 16 bytes for each document, 256 MB for sorting, and pages of files in scratch space (about 0.4 KB for each document at 128 permutations).
"""

import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from schemas.artifact import FileEntry
from schemas.frozen import Frozen
from schemas.manifest import SPLITS, Split
from schemas.preparation_config import DuplicatesConfig
from tasks.prepare.joining import Components, Indices
from tasks.prepare.rows import DUPLICATES_NAME
from tasks.prepare.signature_file import read_signatures
from tasks.prepare.stats import DuplicateStats, LargeCluster
from tasks.recorded_file import verified_path
from tasks.validate.corpus_files import TableFile, Temporary

EXACT, NEAR = "duplicate", "near-duplicate"
"""Reasons of refusal."""
DUPLICATES_SCHEMA = pa.schema(
    [
        pa.field(name, pa.int64() if name in ("group", "position") else pa.string(), nullable=False)
        for name in ("group", "split", "position", "reason", "detail")
    ]
)
"""A document to remove: where it is (`position` within its group's file of that split), and why."""

_PART_KEYS = 8_000_000
_PAIRS_AT_ONCE = 100_000
_SHOWN_CLUSTERS = 10
_ROW_BYTES = 200
_Number = TypeVar("_Number", np.uint64, np.uint16)
_KEPT_FIRST: tuple[Split, ...] = ("test", "validation", "train")


class GroupDocuments(Frozen):
    """The documents of one group that are compared."""

    group: int
    """The group."""
    documents: dict[Split, int]
    """How many there are by split, in the order of `SPLITS`."""
    signatures: FileEntry
    """Their signatures."""


class ClusterOutput(Frozen):
    """What the comparison tells the stage (`output` of its item record)."""

    file: FileEntry | None
    """The documents to remove; null without any."""
    groups: dict[int, int]
    """Documents to remove, by group."""
    listed: dict[int, str] = {}
    """By group, the hash of what is listed for it."""
    stats: DuplicateStats
    """Figures."""


def find_duplicates(
    groups: Sequence[GroupDocuments], *, config: DuplicatesConfig, output_dir: Path, temporary: Temporary, scratch_dir: Path
) -> ClusterOutput:
    """Finds every document that is to be removed, and publishes the list.

    Args:
        groups: all groups that have documents, in order.
        config: the recipe's section.
        output_dir: the artifact's folder.
        temporary: gives paths for unfinished files.
        scratch_dir: where signatures are laid out; nothing is left there.

    Raises:
        VerificationError: a file of signatures is missing or damaged.
    """
    folder = scratch_dir / "duplicates"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        table = _Table.load(groups, config=config, output_dir=output_dir, folder=folder)
        components = Components(table.count)
        for left, right in table.pairs():
            components.join(left, right)
        return _publish(table, components, output_dir=output_dir, temporary=temporary)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class _Table:
    """All documents, numbered in the order of groups, splits and positions."""

    config: DuplicatesConfig
    segments: tuple[tuple[int, Split], ...]
    """(group, split) of each run of documents."""
    starts: Indices
    """First document of each segment, and the end."""
    digests: npt.NDArray[np.uint64]
    """Content hashes [documents, 2]."""
    signatures: npt.NDArray[np.uint16] | None
    """[documents, permutations], mapped."""
    keys: tuple[npt.NDArray[np.uint64], ...]
    """Keys of each band [documents], mapped; 0 for documents without words."""

    @classmethod
    def load(cls, groups: Sequence[GroupDocuments], *, config: DuplicatesConfig, output_dir: Path, folder: Path) -> "_Table":
        """Lays out the signatures of all groups below `folder`, where each can be found by number."""
        from tasks.prepare.shingles import band_keys, rows_per_band

        segments = tuple((each.group, split) for each in groups for split in SPLITS if each.documents.get(split))
        counts = [each.documents[split] for each in groups for split in SPLITS if each.documents.get(split)]
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.array(counts, dtype=np.int64))])
        count, rows = int(starts[-1]), rows_per_band(config)
        digests = _mapped(folder / "digests", np.uint64, (count, 2))
        signatures = _mapped(folder / "signatures", np.uint16, (count, config.permutations)) if config.near else None
        keys = tuple(_mapped(folder / f"keys-{band}", np.uint64, (count,)) for band in range(config.permutations // rows if config.near else 0))
        done = 0
        for each in groups:
            path = verified_path(output_dir, each.signatures, subject="signatures")
            for part, values, has_words in read_signatures(path, permutations=config.permutations):
                here = slice(done, done + len(part))
                digests[here] = part
                if signatures is not None:
                    assert values is not None, f"{path} was made without signatures"
                    signatures[here] = values
                    for band, found in zip(keys, band_keys(values, rows=rows), strict=True):
                        band[here] = np.where(has_words, np.maximum(found, 1), 0)
                done += len(part)
        assert done == count, f"{done} signatures for {count} documents"
        return cls(config, segments, starts, digests, signatures, keys)

    @property
    def count(self) -> int:
        """Documents."""
        return int(self.starts[-1])

    def pairs(self) -> Iterator[tuple[Indices, Indices]]:
        """Yields pairs of documents that are the same, or nearly. Of many that share a band, each is compared with the first."""
        for left, right in _sharing(np.maximum(self.digests[:, 0], 1)):
            same = (self.digests[left] == self.digests[right]).all(axis=1)
            yield left[same], right[same]
        for keys in self.keys:
            for left, right in _sharing(keys):
                near = self.similarity(left, right) >= self.config.threshold
                yield left[near], right[near]

    def similarity(self, left: Indices, right: Indices) -> npt.NDArray[np.float64]:
        """Returns the estimated similarity of each pair."""
        assert self.signatures is not None
        similar: npt.NDArray[np.float64] = (self.signatures[left] == self.signatures[right]).mean(axis=1)
        return similar

    def ranks(self, documents: Indices) -> npt.NDArray[np.int64]:
        """Returns the place of each document's split among those that stay first."""
        by_segment = np.array([_KEPT_FIRST.index(split) for _, split in self.segments], dtype=np.int64)
        return by_segment[self.segment_of(documents)]

    def segment_of(self, documents: Indices) -> Indices:
        """Returns the segment of each document."""
        return (np.searchsorted(self.starts, documents, side="right") - 1).astype(np.int64)

    def doc_id(self, document: int) -> str:
        """Returns the content hash of a document as it is written elsewhere."""
        return "".join(f"{int(half):016x}" for half in self.digests[document])


def _mapped(path: Path, dtype: type[_Number], shape: tuple[int, ...]) -> npt.NDArray[_Number]:
    """Returns a new array in a file; one without elements in memory, where there is nothing to map."""
    return np.memmap(path, dtype=dtype, mode="w+", shape=shape) if shape[0] else np.zeros(shape, dtype=dtype)


def _sharing(keys: npt.NDArray[np.uint64]) -> Iterator[tuple[Indices, Indices]]:
    """Yields (first, other) for all documents that share a key with an earlier one; key 0 is nobody's. Sorts a part of the keys at a time."""
    parts = -(-len(keys) // _PART_KEYS)
    for part in range(parts):
        (own,) = np.nonzero((keys % np.uint64(parts) == part) & (keys > 0)) if parts > 1 else np.nonzero(keys)
        order = own[np.argsort(keys[own], kind="stable")]
        ordered = keys[order]
        repeats = np.flatnonzero(ordered[1:] == ordered[:-1]) + 1
        is_first = np.ones(len(order), dtype=np.bool_)
        is_first[repeats] = False
        firsts = np.flatnonzero(is_first)
        heads = order[firsts[np.searchsorted(firsts, repeats, side="right") - 1]]
        others = order[repeats]
        for at in range(0, len(others), _PAIRS_AT_ONCE):
            yield heads[at : at + _PAIRS_AT_ONCE], others[at : at + _PAIRS_AT_ONCE]


def _publish(table: _Table, components: Components, *, output_dir: Path, temporary: Temporary) -> ClusterOutput:
    """Decides who stays, and writes down the others in their order."""
    members = components.shared()
    labels = components.labels[members]
    order = np.lexsort((members, table.digests[members, 1], table.digests[members, 0], table.ranks(members), labels))
    members, labels = members[order], labels[order]
    first = np.flatnonzero(np.concatenate([np.ones(min(1, len(labels)), np.bool_), labels[1:] != labels[:-1]]))
    sizes = np.diff(np.append(first, len(labels)))
    kept = np.repeat(members[first], sizes)
    removed = np.flatnonzero(members != kept)
    removed = removed[np.argsort(members[removed], kind="stable")]
    groups, reasons = Counter[int](), Counter[str]()
    listed: defaultdict[int, xxhash.xxh3_128] = defaultdict(xxhash.xxh3_128)
    for_held_out = 0
    file = TableFile(DUPLICATES_NAME, output_dir=output_dir, temporary=temporary, schema=DUPLICATES_SCHEMA)
    try:
        for at in range(0, len(removed), _PAIRS_AT_ONCE):
            part = removed[at : at + _PAIRS_AT_ONCE]
            for row, stays_held_out in _rows(table, members[part], kept[part]):
                groups[row[0]] += 1
                listed[row[0]].update(repr(row[1:]).encode())
                reasons[row[3].decode()] += 1
                for_held_out += row[1] == b"train" and stays_held_out
                file.add(row, size=_ROW_BYTES)
        entry = file.publish()
    finally:
        file.discard()
    stats = DuplicateStats(
        compared=table.count,
        clusters=len(first),
        refused=dict(sorted(reasons.items())),
        refused_for_held_out=for_held_out,
        largest=_largest(table, members[first], sizes),
    )
    hashes = {group: digest.hexdigest() for group, digest in sorted(listed.items())}
    return ClusterOutput(file=entry, groups=dict(sorted(groups.items())), listed=hashes, stats=stats)


def _rows(table: _Table, removed: Indices, kept: Indices) -> Iterator[tuple[tuple[int, bytes, int, bytes, bytes], bool]]:
    """Yields the row of each removed document, and whether a held-out one stays for it."""
    equal = (table.digests[removed] == table.digests[kept]).all(axis=1)
    similar = table.similarity(removed, kept) if table.signatures is not None else np.ones(len(removed))
    segments, others = table.segment_of(removed), table.segment_of(kept)
    positions = removed - table.starts[segments]
    for index, (segment, other) in enumerate(zip(segments.tolist(), others.tolist(), strict=True)):
        group, split = table.segments[segment]
        stays = table.segments[other][1]
        detail = f"doc_id {table.doc_id(int(kept[index]))} stays in {stays}" + ("" if equal[index] else f", similarity {similar[index]:.2f}")
        reason = EXACT if equal[index] else NEAR
        yield (group, split.encode(), int(positions[index]), reason.encode(), detail.encode()), stays != "train"


def _largest(table: _Table, kept: Indices, sizes: Indices) -> tuple[LargeCluster, ...]:
    """Returns the largest sets; of equal ones those whose document that stays comes first."""
    shown = np.lexsort((kept, -sizes))[:_SHOWN_CLUSTERS]
    found = []
    for index in shown.tolist():
        document = int(kept[index])
        group, split = table.segments[int(table.segment_of(np.array([document]))[0])]
        found.append(LargeCluster(documents=int(sizes[index]), kept=table.doc_id(document), split=split, group=group))
    return tuple(found)
