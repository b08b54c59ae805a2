"""Rows of token shards by global index, for training and evaluation. Imports numpy and the standard library; pyarrow only for the `list` layout.

A shard in the `fixed` layout is one contiguous payload of `rows x sequence_length` little-endian ids at `payload_offset`, so it is
mapped, never parsed, and all shards lie in one range of addresses: a batch is one gather, however many shards it touches. The offset is odd:
rows are gathered as bytes and viewed as ids after the copy (a direct view of unaligned ids gathers several times slower). Every shard's hash
is checked the first time that this process opens it.

Shape legend: B rows asked for, L tokens of a row (`sequence_length`).
"""

import mmap
import os
from collections import OrderedDict
from collections.abc import Callable
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

_MAX_OPEN = {"fixed": 16_384, "list": 4}
"""Most shards held open. A process may have 65,530 maps (`vm.max_map_count`); a decoded `list` shard costs its memory."""

Rows = npt.NDArray[np.uint8]
Places = npt.NDArray[np.int64]
Gather = Callable[[Places, Places], npt.NDArray[Any]]
"""Rows of shards by (which shard, which row of it)."""
_PIECE_BYTES = 128 << 10


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
        self._payloads = np.array([shard.payload_offset for shard in self.shards], dtype=np.int64)
        self._starts = np.array([0, *accumulate(shard.rows for shard in self.shards)], dtype=np.int64)
        self._width = self.sequence_length * self._dtype.itemsize
        self._verified: set[int] = set()
        self._mapped = np.zeros(len(self.shards), dtype=bool)
        self._region = MappedRegion([shard.file.size for shard in self.shards]) if self._layout == "fixed" and self.shards else None
        self._decoded: OrderedDict[int, Rows] = OrderedDict()

    def rows(self, indices: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
        """Returns the rows at global `indices` [B], in that order, as int64 ids [B, L], the type that models take. Raises as `stored` does."""
        return self._gathered(indices, np.dtype(np.int64))

    def stored(self, indices: npt.NDArray[np.integer]) -> npt.NDArray[Any]:
        """Returns the rows at global `indices` [B], in that order, as they are stored: little-endian uint16 or uint32 [B, L].

        Raises:
            IndexError: an index is negative or not below `num_sequences`.
            VerificationError: a shard's bytes are not those of the manifest.
        """
        return self._gathered(indices, self._dtype)

    def _gathered(self, indices: npt.NDArray[np.integer], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """Returns rows [B, L] of ids of `dtype`. Those to convert are gathered in pieces, which are still in the processor's cache then."""
        wanted = np.asarray(indices, dtype=np.int64).reshape(-1)
        if wanted.size and not (wanted.min() >= 0 and wanted.max() < self.num_sequences):
            raise IndexError(f"row {int(wanted.min())} … {int(wanted.max())} asked for; the split has {self.num_sequences} rows")
        positions = np.searchsorted(self._starts, wanted, side="right") - 1
        within = wanted - self._starts[positions]
        gather = self._gather_decoded if self._region is None else self._mapped_rows(self._region, positions)
        if dtype == self._dtype:
            return gather(positions, within).view(dtype).reshape(-1, self.sequence_length)
        rows = np.empty((wanted.size, self.sequence_length), dtype=dtype)
        step = max(1, _PIECE_BYTES // self._width)
        for first in range(0, wanted.size, step):
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

    def _mapped_rows(self, region: MappedRegion, positions: Places) -> Gather:
        """Opens the shards at `positions`, and returns what gathers rows of them, each one value of L x itemsize bytes [B]."""
        if not self._mapped[positions].all():
            needed = frozenset(positions.tolist())
            for position in sorted(each for each in needed if not self._mapped[each]):
                self._open(position, keep=needed)
        # a row may begin at any byte, so the array of all rows overlaps itself
        rows: npt.NDArray[Any] = np.ndarray((region.content.size - self._width + 1,), f"V{self._width}", region.content, strides=(1,))
        begins = region.begins + self._payloads
        return lambda positions, within: rows[begins[positions] + within * self._width]

    def _gather_decoded(self, positions: Places, within: Places) -> Rows:
        """Returns rows of shards that have to be decoded, as bytes [B, L x itemsize]."""
        gathered = np.empty((positions.size, self._width), dtype=np.uint8)
        for position in np.unique(positions).tolist():
            mine = positions == position
            gathered[mine] = self._open(position, keep=frozenset((position,)))[within[mine]]
        return gathered

    def _open(self, position: int, *, keep: frozenset[int]) -> Rows:
        """Opens a shard, checking it the first time; others that are not in `keep` may be closed. Returns a decoded one's rows."""
        if position in self._decoded:
            self._decoded.move_to_end(position)
            return self._decoded[position]
        shard = self.shards[position]
        content = self._content(position)
        if position not in self._verified:
            _verify(shard, content, folder=self._folder)
            self._verified.add(position)
        if self._region is not None:
            if shard.payload_offset < 0 or shard.payload_offset + shard.rows * self._width > shard.file.size:
                stated = f"the manifest says {shard.rows:,} rows from byte {shard.payload_offset:,}, the file has {shard.file.size:,} bytes"
                raise VerificationError((f"{self._folder / shard.file.path}: {stated}",), subject="token shard", mend=_MEND)
            self._mapped[position] = True
            self._close_some(self._region, keep=keep)
            return content
        rows = self._decoded[position] = _decode_lists(content, dtype=self._dtype).reshape(shard.rows, self._width)
        if len(self._decoded) > _MAX_OPEN[self._layout]:
            self._decoded.popitem(last=False)
        return rows

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


_MEND = "delete the damaged file and the artifact's record.json, then run again; intact shards are kept"


def _verify(shard: Shard, content: Rows, *, folder: Path) -> None:
    """Raises VerificationError when the bytes are not those of the manifest."""
    found = xxhash.xxh3_128(content.data).hexdigest()
    if found != shard.file.xxh3:
        finding = f"{folder / shard.file.path}: xxh3 {found}, the manifest says {shard.file.xxh3}; the file is damaged"
        raise VerificationError((finding,), subject="token shard", mend=_MEND)


def _decode_lists(content: Rows, *, dtype: np.dtype[np.unsignedinteger]) -> Rows:
    """Returns the ids of a `list` shard as flat bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    column = pq.read_table(pa.BufferReader(pa.py_buffer(content)), columns=["ids"]).column("ids").combine_chunks()
    flat: Rows = np.ascontiguousarray(column.flatten().to_numpy(), dtype=dtype).view(np.uint8)
    return flat
