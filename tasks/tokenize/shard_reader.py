"""Rows of token shards by global index, for training and evaluation. Imports numpy and the standard library; pyarrow only for the `list` layout.

A shard in the `fixed` layout is one contiguous payload of `rows x sequence_length` little-endian ids at `payload_offset`, so it is
mapped, never parsed, and all shards lie in one range of addresses: a batch is one gather, however many shards it touches. The offset is odd:
rows are gathered as bytes and viewed as ids after the copy (a direct view of unaligned ids gathers several times slower). Every shard's hash
is checked the first time that this process opens it. The rows' lengths and the marks of document starts, where there are any, are
columns like the ids, and gathered like them.

Shape legend: B rows asked for, L tokens of a row (`sequence_length`).
"""

import mmap
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from cluster.storage import path_below
from schemas.errors import VerificationError
from schemas.manifest import Shard, ShardManifest, Split
from tasks.tokenize.mapped_region import MappedRegion
from tasks.tokenize.shard_file import COLUMN, LEARNED_COLUMN, LENGTHS_COLUMN, STARTS_COLUMN

_MAX_OPEN = {"fixed": 16_384, "list": 4}
"""Most shards held open. A process may have 65,530 maps (`vm.max_map_count`); a decoded `list` shard costs its memory."""

Rows = npt.NDArray[np.uint8]
Places = npt.NDArray[np.int64]
Gather = Callable[[Places, Places], npt.NDArray[Any]]
"""Rows of shards by (which shard, which row of it)."""
_PIECE_BYTES = 128 << 10


@dataclass(frozen=True)
class _Column:
    """Values that each row of the shards has."""

    width: int
    """Bytes of one."""
    offsets: Places
    """Where they begin in each shard's file."""


class ShardReader:
    """All rows of one split as one sequence: the shards in the manifest's order, one after the other."""

    def __init__(self, manifest: ShardManifest, *, folder: Path, split: Split) -> None:
        """Opens nothing yet.

        Args:
            manifest: the shards and their hashes.
            folder: the `tokenize` artifact, or a verified copy of it.
            split: the split to read.
        """
        self.sequence_length = manifest.sequence_length
        self.shards = manifest.of_split(split)
        self.num_sequences = sum(shard.rows for shard in self.shards)
        self._folder = folder
        self._layout = manifest.layout
        self._dtype = np.dtype(manifest.dtype).newbyteorder("<")
        self._starts = np.array([0, *accumulate(shard.rows for shard in self.shards)], dtype=np.int64)
        self._last_lengths = np.array([shard.last_row_tokens for shard in self.shards], dtype=np.int64)
        self._width = self.sequence_length * self._dtype.itemsize
        self._columns = _columns_of(manifest, shards=self.shards)
        self._verified: set[int] = set()
        self._mapped = np.zeros(len(self.shards), dtype=bool)
        self._region = MappedRegion([shard.file.size for shard in self.shards]) if self._layout == "fixed" and self.shards else None
        self._decoded: OrderedDict[int, Mapping[str, Rows]] = OrderedDict()

    def rows(self, indices: npt.NDArray[np.integer], *, out: npt.NDArray[np.int64] | None = None) -> npt.NDArray[np.int64]:
        """Returns the rows at global `indices` [B], in that order, as int64 ids [B, L], the type that models take. Raises as `stored` does.

        Args:
            indices: which rows.
            out: where to put them, int64 [B, L].
        """
        return self._gathered(indices, np.dtype(np.int64), out=out)

    def stored(self, indices: npt.NDArray[np.integer]) -> npt.NDArray[Any]:
        """Returns the rows at global `indices` [B], in that order, as they are stored: little-endian uint16 or uint32 [B, L].

        Raises:
            IndexError: an index is negative or not below `num_sequences`.
            VerificationError: a shard's bytes are not those of the manifest.
        """
        return self._gathered(indices, self._dtype)

    def lengths(self, indices: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
        """Returns how many tokens the rows at global `indices` [B] hold before their padding, int64 [B]. Raises as `stored` does."""
        positions, within = self._located(indices)
        if LENGTHS_COLUMN in self._columns:
            return self._gather(LENGTHS_COLUMN, positions)(positions, within).view("<i4").reshape(-1).astype(np.int64)
        is_last = within == self._starts[positions + 1] - self._starts[positions] - 1
        return np.where(is_last, self._last_lengths[positions], self.sequence_length)

    def starts(self, indices: npt.NDArray[np.integer]) -> npt.NDArray[np.bool_]:
        """Returns where documents start in the rows at global `indices` [B], bool [B, L]. Raises as `stored` does.

        Raises:
            ValueError: the shards do not record it.
        """
        if STARTS_COLUMN not in self._columns:
            raise ValueError(f"{self._folder}: the shards do not record where documents start (tokenization.boundaries)")
        return self._marks(STARTS_COLUMN, indices)

    def learned(self, indices: npt.NDArray[np.integer]) -> npt.NDArray[np.bool_]:
        """Returns which tokens of the rows at global `indices` [B] training learns, padding excepted, bool [B, L]. Raises as `stored` does."""
        if LEARNED_COLUMN not in self._columns:
            return np.ones((np.size(indices), self.sequence_length), dtype=bool)
        return self._marks(LEARNED_COLUMN, indices)

    def _marks(self, column: str, indices: npt.NDArray[np.integer]) -> npt.NDArray[np.bool_]:
        positions, within = self._located(indices)
        bits = self._gather(column, positions)(positions, within).view(np.uint8).reshape(positions.size, self._columns[column].width)
        return np.unpackbits(bits, axis=1, count=self.sequence_length, bitorder="little").view(np.bool_)

    def _located(self, indices: npt.NDArray[np.integer]) -> tuple[Places, Places]:
        """Returns (which shard, which row of it) of each of global `indices` [B]. Raises IndexError."""
        wanted = np.asarray(indices, dtype=np.int64).reshape(-1)
        if wanted.size and not (wanted.min() >= 0 and wanted.max() < self.num_sequences):
            raise IndexError(f"row {int(wanted.min())} … {int(wanted.max())} asked for; the split has {self.num_sequences} rows")
        positions = np.searchsorted(self._starts, wanted, side="right") - 1
        return positions, wanted - self._starts[positions]

    def _gathered(self, indices: npt.NDArray[np.integer], dtype: np.dtype[Any], *, out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        """Returns rows [B, L] of ids of `dtype`. Those to convert are gathered in pieces, which are still in the processor's cache then."""
        positions, within = self._located(indices)
        gather = self._gather(COLUMN, positions)
        if dtype == self._dtype:
            return gather(positions, within).view(dtype).reshape(-1, self.sequence_length)
        rows = np.empty((positions.size, self.sequence_length), dtype=dtype) if out is None else out
        step = max(1, _PIECE_BYTES // self._width)
        for first in range(0, positions.size, step):
            piece = slice(first, first + step)
            rows[piece] = gather(positions[piece], within[piece]).view(self._dtype).reshape(-1, self.sequence_length)
        return rows

    def verify_all(self) -> None:
        """Checks every shard of the split. Raises VerificationError that names all damaged files."""
        findings: list[str] = []
        for position in range(len(self.shards)):
            try:
                self._open(position, keep=frozenset((position,)))
            except VerificationError as error:
                findings.extend(error.findings)
        if findings:
            raise VerificationError(tuple(findings), subject=f"token shards in {self._folder}", mend=_MEND)

    def _gather(self, column: str, positions: Places) -> Gather:
        """Returns what gathers values of a column, after opening the shards at `positions` where they are mapped."""
        width = self._columns[column].width
        if self._region is None:
            return lambda positions, within: self._gather_decoded(column, positions, within)
        if not self._mapped[positions].all():
            needed = frozenset(positions.tolist())
            for position in sorted(each for each in needed if not self._mapped[each]):
                self._open(position, keep=needed)
        # a value may begin at any byte, so the array of all values overlaps itself
        values: npt.NDArray[Any] = np.ndarray((self._region.content.size - width + 1,), f"V{width}", self._region.content, strides=(1,))
        begins = self._region.begins + self._columns[column].offsets
        return lambda positions, within: values[begins[positions] + within * width]

    def _gather_decoded(self, column: str, positions: Places, within: Places) -> Rows:
        """Returns values of shards that have to be decoded, as bytes [B, width]."""
        gathered = np.empty((positions.size, self._columns[column].width), dtype=np.uint8)
        for position in np.unique(positions).tolist():
            mine = positions == position
            gathered[mine] = self._open(position, keep=frozenset((position,)))[column][within[mine]]
        return gathered

    def _open(self, position: int, *, keep: frozenset[int]) -> Mapping[str, Rows]:
        """Opens a shard, checking it the first time; others that are not in `keep` may be closed. Returns a decoded one's columns."""
        if position in self._decoded:
            self._decoded.move_to_end(position)
            return self._decoded[position]
        shard = self.shards[position]
        content = self._content(position)
        if position not in self._verified:
            _verify(shard, content, folder=self._folder)
            self._verified.add(position)
        if self._region is not None:
            for column in self._columns.values():
                offset = int(column.offsets[position])
                if offset < 0 or offset + shard.rows * column.width > shard.file.size:
                    stated = f"the manifest says {shard.rows:,} rows from byte {offset:,}, the file has {shard.file.size:,} bytes"
                    raise VerificationError((f"{self._folder / shard.file.path}: {stated}",), subject="token shard", mend=_MEND)
            self._mapped[position] = True
            self._close_some(self._region, keep=keep)
            return {}
        decoded = self._decoded[position] = _decode(content, columns=self._columns, dtype=self._dtype, rows=shard.rows)
        if len(self._decoded) > _MAX_OPEN[self._layout]:
            self._decoded.popitem(last=False)
        return decoded

    def _close_some(self, region: MappedRegion, *, keep: frozenset[int]) -> None:
        """Closes shards, the first ones first, while too many are open."""
        too_many = np.count_nonzero(self._mapped) - _MAX_OPEN[self._layout]
        if too_many <= 0:
            return
        for position in [other for other in np.flatnonzero(self._mapped).tolist() if other not in keep][:too_many]:
            region.unmap(position)
            self._mapped[position] = False

    def _content(self, position: int) -> Rows:
        """Returns a shard's file, mapped. A missing file, a link, or another size is a finding, not a stack trace."""
        shard = self.shards[position]
        path = path_below(self._folder, shard.file.path)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise VerificationError((f"{path}: {error.strerror}",), subject="token shard", mend=_MEND) from error
        try:
            size = os.fstat(descriptor).st_size
            if size != shard.file.size:
                raise VerificationError((f"{path}: {size:,} bytes, the manifest says {shard.file.size:,}",), subject="token shard", mend=_MEND)
            if self._region is not None:
                return self._region.map(position, descriptor)
            return np.frombuffer(mmap.mmap(descriptor, 0, prot=mmap.PROT_READ), dtype=np.uint8)
        finally:
            os.close(descriptor)


def _columns_of(manifest: ShardManifest, *, shards: Sequence[Shard]) -> dict[str, _Column]:
    """Returns the columns that the shards have."""
    length = manifest.sequence_length
    columns = {COLUMN: _Column(length * np.dtype(manifest.dtype).itemsize, np.array([shard.payload_offset for shard in shards], dtype=np.int64))}
    if manifest.packing == "best_fit":
        columns[LENGTHS_COLUMN] = _Column(4, np.array([shard.lengths_offset for shard in shards], dtype=np.int64))
    if manifest.boundaries:
        columns[STARTS_COLUMN] = _Column(-(-length // 8), np.array([shard.starts_offset for shard in shards], dtype=np.int64))
    if manifest.loss_masks:
        columns[LEARNED_COLUMN] = _Column(-(-length // 8), np.array([shard.learned_offset for shard in shards], dtype=np.int64))
    return columns


_MEND = "headrace verify lists every damaged file; --from tokenize makes the shards anew"


def _verify(shard: Shard, content: Rows, *, folder: Path) -> None:
    """Raises VerificationError when the bytes are not those of the manifest."""
    found = xxhash.xxh3_128(content.data).hexdigest()
    if found != shard.file.xxh3:
        finding = f"{folder / shard.file.path}: xxh3 {found}, the manifest says {shard.file.xxh3}; the file is damaged"
        raise VerificationError((finding,), subject="token shard", mend=_MEND)


def _decode(content: Rows, *, columns: Mapping[str, _Column], dtype: np.dtype[Any], rows: int) -> dict[str, Rows]:
    """Returns the columns of a `list` shard as bytes [rows, width]."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(pa.BufferReader(pa.py_buffer(content)), columns=list(columns))
    decoded: dict[str, Rows] = {}
    for name, column in columns.items():
        values = table.column(name).combine_chunks()
        flat = np.ascontiguousarray(values.flatten().to_numpy(), dtype=dtype) if name == COLUMN else np.frombuffer(values.buffers()[1], np.uint8)
        decoded[name] = flat.view(np.uint8)[: rows * column.width].reshape(rows, column.width)
    return decoded
