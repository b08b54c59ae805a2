"""Token shards to Megatron's indexed data sets (`PREFIX.bin`, `PREFIX.idx`) and back.

Memory is bounded by a shard, some million tokens, and the lengths of all documents.
The layout, as Megatron-LM's `megatron/core/datasets/indexed_dataset.py` reads it: `.bin` holds the ids of all sequences, one after the other;
`.idx` begins with `MMIDIDX` and two zero bytes, the version (uint64, 1), the code of the ids' type (uint8), the numbers of sequences and of bounds
(uint64 each), and goes on with the sequences' lengths (int32), their byte offsets (int64), and the document bounds (int64: the first sequence
of each document, and the number of sequences). All little-endian. Megatron packs rows by itself, so what travels is documents.

Export cuts the stream of every group after each end-of-text token: one sequence per document, the token included, as
`preprocess_data.py --append-eod` writes it. Import packs documents as `tokenize` does. Exported and imported again at the same sequence
length, documents and ids are equal; rows are, too, when the corpus is one group, and not cut by source.
"""

import logging
import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cluster.storage import TEMPORARY_PREFIX, AlreadyExistsError, file_entry, link_exclusive, make_folder, publish_file, write_durably
from schemas.artifact import content_hash_of
from schemas.canonical import canonical_json
from schemas.errors import InputError
from schemas.manifest import Shard, ShardManifest, Split
from tasks.tokenize.packing import PackedShard, Packer, id_dtype
from tasks.tokenize.shard_file import write_shard
from tasks.tokenize.shard_reader import ShardReader
from tasks.tokenizer.engine import Encoded, facts_of
from tasks.tokenizer.existing import TOKENIZER_NAME

logger = logging.getLogger(__name__)

_MAGIC = b"MMIDIDX\0\0"
_HEADER = struct.Struct("<9sQBQQ")
_VERSION = 1
_TYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
"""Type codes that can be ids; 6 and 7 are floating point."""
_CODES = {"uint16": 8, "uint32": 4}
"""Megatron has no uint32; ids stay below 2**31."""
_TOKENS_AT_A_TIME = 4 << 20


@dataclass(frozen=True)
class IndexedDataset:
    """What an indexed data set holds."""

    documents: int
    tokens: int


# ---- export ---------------------------------------------------------------------------------------------------------------


def export_split(folder: Path, *, split: Split, prefix: Path) -> IndexedDataset:
    """Writes one split of the token shards in `folder` as `prefix.bin` and `prefix.idx`, the index last.

    Raises:
        InputError: the folder holds no shards of the split, or the files exist.
        VerificationError: a shard is damaged; no file appears.
    """
    manifest = open_manifest(folder)
    if manifest.packing != "concatenate":
        why = "packing put documents in another order, and cut long ones into sequences that are no neighbours"
        raise InputError(f"{folder}: rows of tokenization.packing: {manifest.packing} are no documents", why=why, mend="tokenize with concatenate")
    if manifest.loss_masks:
        why = "Megatron's data sets have no place for them, and it would train on everything that is said"
        raise InputError(f"{folder}: the shards say which tokens are learned", why=why, mend="use tasks.train.torch_dataset, which heeds them")
    if not manifest.of_split(split):
        raise InputError(f"{folder}: the {split} split has no shard", mend="name another split")
    data, index = prefix.with_name(prefix.name + ".bin"), prefix.with_name(prefix.name + ".idx")
    _refuse_existing(data, index)
    make_folder(prefix.parent)
    temporary = [path.with_name(f"{TEMPORARY_PREFIX}{path.name}") for path in (data, index)]
    try:
        lengths = _write_data(temporary[0], manifest, folder=folder, split=split)
        with temporary[1].open("wb") as file:
            _write_index(file, lengths, itemsize=np.dtype(manifest.dtype).itemsize, code=_CODES[manifest.dtype])
        for path, final in zip(temporary, (data, index), strict=True):
            publish_file(path, final)
    finally:
        for path in temporary:
            path.unlink(missing_ok=True)
    return IndexedDataset(documents=lengths.size, tokens=int(lengths.sum()))


def _write_data(path: Path, manifest: ShardManifest, *, folder: Path, split: Split) -> npt.NDArray[np.int64]:
    """Writes the ids of a split without padding, and returns the documents' lengths."""
    ends: list[npt.NDArray[np.int64]] = []
    written = 0
    with path.open("wb") as file:
        for stream in _streams(manifest, folder=folder, split=split):
            for ids in stream:
                file.write(ids.tobytes())
                ends.append(np.flatnonzero(ids == manifest.end_of_text_id) + written + 1)
                written += ids.size
            if not ends[-1].size or ends[-1][-1] != written:  # packing does not cross groups, so neither does a document
                ends.append(np.array([written]))
    bounds = np.concatenate([np.zeros(1, dtype=np.int64), *ends])
    lengths: npt.NDArray[np.int64] = bounds[1:] - bounds[:-1]
    return lengths


def _streams(manifest: ShardManifest, *, folder: Path, split: Split) -> Iterator[Iterator[npt.NDArray[Any]]]:
    """Yields the ids of each group, in pieces, without padding."""
    reader = ShardReader(manifest, folder=folder, split=split)
    shards = manifest.of_split(split)
    starts = np.cumsum([0, *(shard.rows for shard in shards)]).tolist()
    for group in dict.fromkeys(shard.group for shard in shards):
        yield (
            ids for shard, start in zip(shards, starts[:-1], strict=True) if shard.group == group for ids in _shard_ids(reader, shard, start=start)
        )


def _shard_ids(reader: ShardReader, shard: Shard, *, start: int) -> Iterator[npt.NDArray[Any]]:
    rows_at_a_time = max(1, _TOKENS_AT_A_TIME // reader.sequence_length)
    left = shard.tokens
    for first in range(0, shard.rows, rows_at_a_time):
        last = min(first + rows_at_a_time, shard.rows)
        ids = reader.stored(np.arange(start + first, start + last)).reshape(-1)[:left]
        left -= ids.size
        yield ids


def _write_index(file: Any, lengths: npt.NDArray[np.int64], *, itemsize: int, code: int) -> None:
    count = lengths.size
    file.write(_HEADER.pack(_MAGIC, _VERSION, code, count, count + 1))
    file.write(lengths.astype("<i4").tobytes())
    file.write(((np.cumsum(lengths) - lengths) * itemsize).astype("<i8").tobytes())
    file.write(np.arange(count + 1, dtype="<i8").tobytes())


# ---- import ---------------------------------------------------------------------------------------------------------------


def import_dataset(
    prefix: Path,
    *,
    tokenizer: Path,
    end_of_text: str,
    folder: Path,
    split: Split = "train",
    sequence_length: int = 1024,
    sequences_per_shard: int = 8192,
) -> ShardManifest:
    """Makes token shards of `prefix.bin` and `prefix.idx`, and their manifest, last, in the new folder `folder`.

    Args:
        prefix: path without `.bin` and `.idx`.
        tokenizer: the `tokenizer.json` that made the ids, or the folder that holds it.
        end_of_text: its token between documents; put after documents that do not end with it.
        folder: for `shards/` and `manifest.json`; must not hold a manifest yet. Unfinished, it is filled again by the next call.
        split: what the documents are for.
        sequence_length: tokens of a row.
        sequences_per_shard: rows of a full shard.

    Raises:
        InputError: the data set or the tokenizer cannot be read, or does not fit the other.
    """
    manifest_path = folder / "manifest.json"
    _refuse_existing(manifest_path)
    tokenizer = tokenizer / TOKENIZER_NAME if tokenizer.is_dir() else tokenizer
    facts = facts_of(_content(tokenizer), end_of_text=end_of_text, subject=str(tokenizer), key="--end-of-text")
    documents = _Documents.open(prefix)
    about = {
        "layout": "fixed",
        "dtype": id_dtype(facts.vocab_size).name,
        "sequence_length": sequence_length,
        "vocab_size": facts.vocab_size,
        "end_of_text_id": facts.end_of_text_id,
        "tokenizer_hash": content_hash_of((file_entry(tokenizer, relative_to=tokenizer.parent),)),
    }
    packer = Packer(
        sequence_length=sequence_length, rows_per_shard=sequences_per_shard, vocab_size=facts.vocab_size, end_of_text_id=facts.end_of_text_id
    )
    make_folder(folder / "shards")
    shards: list[Shard] = []
    for packed in _packed(documents, packer, end_of_text_id=facts.end_of_text_id):
        shards.append(_publish(folder, packed, split=split, position=len(shards), about=about))
    manifest = ShardManifest.model_validate({**about, "engine": "imported", "shards": shards})
    temporary = manifest_path.with_name(f"{TEMPORARY_PREFIX}{manifest_path.name}")
    try:
        write_durably(temporary, canonical_json(manifest))
        link_exclusive(temporary, manifest_path)
    finally:
        temporary.unlink(missing_ok=True)
    return manifest


@dataclass(frozen=True)
class _Documents:
    """The documents of an indexed data set: ids, mapped, and where each document ends."""

    ids: npt.NDArray[Any]
    bounds: npt.NDArray[np.int64]
    """Document i has the ids `bounds[i]:bounds[i + 1]`."""

    @classmethod
    def open(cls, prefix: Path) -> "_Documents":
        """Maps a data set and checks it. Raises InputError."""
        path = prefix.with_name(prefix.name + ".idx")
        index = _content(path)
        if len(index) < _HEADER.size or not index.startswith(_MAGIC):
            raise InputError(f"{path}: not the index of a Megatron data set", why="it begins otherwise", mend="give the path without .bin and .idx")
        _, version, code, num_sequences, num_bounds = _HEADER.unpack_from(index)
        if version != _VERSION or code not in _TYPES:
            raise InputError(
                f"{path}: version {version}, type {code}", why=f"version {_VERSION} and whole numbers can be read: types {sorted(_TYPES)}"
            )
        if len(index) < _HEADER.size + 12 * num_sequences + 8 * num_bounds:
            raise InputError(f"{path}: {len(index):,} bytes, too few for {num_sequences:,} sequences", why="it is truncated", mend="copy it again")
        lengths = np.frombuffer(index, dtype="<i4", count=num_sequences, offset=_HEADER.size).astype(np.int64)
        offsets = np.frombuffer(index, dtype="<i8", count=num_sequences, offset=_HEADER.size + 4 * num_sequences)
        bounds = np.frombuffer(index, dtype="<i8", count=num_bounds, offset=_HEADER.size + 12 * num_sequences)
        ids = _mapped(prefix.with_name(prefix.name + ".bin"), dtype=np.dtype(_TYPES[code]))
        ends = np.concatenate([[0], np.cumsum(lengths)])
        is_whole = np.array_equal(offsets, ends[:-1] * ids.itemsize) and ends[-1] == ids.size
        if not is_whole or not num_bounds or bounds[0] != 0 or bounds[-1] != num_sequences or np.any(np.diff(bounds) < 0):
            why = "sequences must follow each other without gaps, and every one must belong to a document"
            raise InputError(f"{path} and its .bin do not fit each other", why=why, mend="copy both again, or merge them anew with Megatron's tools")
        return cls(ids=ids, bounds=ends[bounds])


def _packed(documents: _Documents, packer: Packer, *, end_of_text_id: int) -> Iterator[PackedShard]:
    """Yields shards of the documents, each with one end-of-text token at its end."""
    bounds, first = documents.bounds, 0
    while first < bounds.size - 1:
        last = max(first + 1, int(np.searchsorted(bounds, bounds[first] + _TOKENS_AT_A_TIME, side="right")) - 1)
        ids = documents.ids[bounds[first] : bounds[last]].astype(np.uint32)
        ends = bounds[first : last + 1] - bounds[first]
        has_end = (np.diff(ends) > 0) & (ids[np.maximum(ends[1:], 1) - 1] == end_of_text_id)
        is_kept = np.ones(ids.size, dtype=bool)
        is_kept[ends[1:][has_end] - 1] = False
        offsets = ends - np.concatenate([[0], np.cumsum(has_end)])
        yield from packer.add(Encoded(ids=ids[is_kept], offsets=offsets), sizes=np.zeros(last - first, dtype=np.int64))
        first = last
    yield from packer.finish()


def _publish(folder: Path, packed: PackedShard, *, split: Split, position: int, about: dict[str, Any]) -> Shard:
    name = f"shards/{split}-g0000-{position:05d}.parquet"
    final = folder / name
    temporary = final.with_name(f"{TEMPORARY_PREFIX}{final.name}")
    rows = int(packed.rows.shape[0])
    counts = {"rows": rows, "tokens": packed.tokens, "last_row_tokens": packed.last_row_tokens}
    try:
        written = write_shard(temporary, packed.rows, layout="fixed", facts={**about, "split": split, "group": 0, "position": position, **counts})
        entry = publish_file(temporary, final, xxh3=written.xxh3)
    except AlreadyExistsError as error:
        raise InputError(f"{final} exists with other bytes", why="shards are never replaced", mend="give a new folder") from error
    finally:
        temporary.unlink(missing_ok=True)
    file = entry.model_copy(update={"path": name})
    return Shard(group=0, split=split, file=file, payload_offset=written.payload_offset, text_bytes=0, **counts)


# ---- files ----------------------------------------------------------------------------------------------------------------


def open_manifest(folder: Path) -> ShardManifest:
    """Returns the manifest of token shards in `folder`. Raises InputError when there is none."""
    try:
        return ShardManifest.model_validate_json(_content(folder / "manifest.json"))
    except ValueError as error:
        mend = "give the folder of a `tokenize` artifact, below the storage root"
        raise InputError(f"{folder / 'manifest.json'}: not a manifest of token shards", why=str(error).splitlines()[0], mend=mend) from error


def _refuse_existing(*paths: Path) -> None:
    found = [str(path) for path in paths if path.exists()]
    if found:
        raise InputError(f"{', '.join(found)} exists", why="nothing is replaced", mend="remove it, or give another name")


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}", mend="check the path") from error


def _mapped(path: Path, *, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Returns a file's ids, mapped. Raises InputError when it cannot be read, or ends within an id."""
    try:
        size = path.stat().st_size
        if size % dtype.itemsize:
            raise InputError(f"{path}: {size:,} bytes are not a whole number of ids of {dtype.itemsize} bytes", mend="copy it again")
        if not size:
            return np.empty(0, dtype=dtype)
        with path.open("rb") as file:
            return np.frombuffer(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ), dtype=dtype)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}", mend="check the path") from error
