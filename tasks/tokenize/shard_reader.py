"""Rows of token shards by global index, for training and evaluation. Imports numpy and the standard library; pyarrow only for the `list` layout.

A shard in the `fixed` layout is one contiguous payload of `rows x sequence_length` little-endian ids at `payload_offset`, so it is
mapped, never parsed. The offset is odd: rows are gathered as bytes and viewed as ids after the copy (a direct view of unaligned ids gathers
several times slower). Every shard's hash is checked the first time that this process opens it.

Shape legend: B rows asked for, L tokens of a row (`sequence_length`).
"""

import mmap
import os
from collections import OrderedDict
from itertools import accumulate
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from cluster.storage import path_below
from schemas.errors import VerificationError
from schemas.manifest import Shard, ShardManifest, Split

_MAX_OPEN = {"fixed": 256, "list": 4}
"""Most shards held open. A map costs a file descriptor, of which a process may have as few as 1,024; a decoded `list` shard costs its memory."""

Rows = npt.NDArray[np.uint8]


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
        self._verified: set[int] = set()
        self._open: OrderedDict[int, Rows] = OrderedDict()

    def rows(self, indices: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
        """Returns the rows at global `indices` [B], in that order, as int64 ids [B, L].

        Raises:
            IndexError: an index is negative or not below `num_sequences`.
            VerificationError: a shard's bytes are not those of the manifest.
        """
        wanted = np.asarray(indices, dtype=np.int64).reshape(-1)
        if wanted.size and not (wanted.min() >= 0 and wanted.max() < self.num_sequences):
            raise IndexError(f"row {int(wanted.min())} … {int(wanted.max())} asked for; the split has {self.num_sequences} rows")
        width = self.sequence_length * self._dtype.itemsize
        gathered = np.empty((wanted.size, width), dtype=np.uint8)
        positions = np.searchsorted(self._starts, wanted, side="right") - 1
        for position in np.unique(positions).tolist():
            mine = positions == position
            gathered[mine] = self._shard_rows(position)[wanted[mine] - self._starts[position]]
        return gathered.view(self._dtype).astype(np.int64)

    def verify_all(self) -> None:
        """Checks every shard of the split. Raises VerificationError that names all damaged files."""
        findings: list[str] = []
        for position in range(len(self.shards)):
            try:
                self._shard_rows(position)
            except VerificationError as error:
                findings.extend(error.findings)
        if findings:
            raise VerificationError(tuple(findings), subject=f"token shards in {self._folder}", mend=_MEND)

    def _shard_rows(self, position: int) -> Rows:
        """Returns a shard's rows as bytes [rows, L x itemsize], opening and checking it when needed."""
        if position in self._open:
            self._open.move_to_end(position)
            return self._open[position]
        shard = self.shards[position]
        content = self._content(shard)
        if position not in self._verified:
            _verify(shard, content, folder=self._folder)
            self._verified.add(position)
        width = self.sequence_length * self._dtype.itemsize
        if self._layout == "fixed":
            flat = np.frombuffer(content, dtype=np.uint8, count=shard.rows * width, offset=shard.payload_offset)
        else:
            flat = _decode_lists(content, dtype=self._dtype)
        rows = self._open[position] = flat.reshape(shard.rows, width)
        if len(self._open) > _MAX_OPEN[self._layout]:
            self._open.popitem(last=False)  # the map closes with the last array that looks into it
        return rows

    def _content(self, shard: Shard) -> mmap.mmap:
        """Maps a shard's file. A missing file, a link, or another size is a finding, not a stack trace."""
        path = path_below(self._folder, shard.file.path)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise VerificationError((f"{path}: {error.strerror}",), subject="token shard", mend=_MEND) from error
        try:
            size = os.fstat(descriptor).st_size
            if size != shard.file.size:
                raise VerificationError((f"{path}: {size:,} bytes, the manifest says {shard.file.size:,}",), subject="token shard", mend=_MEND)
            return mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
        finally:
            os.close(descriptor)


_MEND = "delete the damaged file and the artifact's record.json, then run again; intact shards are kept"


def _verify(shard: Shard, content: mmap.mmap, *, folder: Path) -> None:
    """Raises VerificationError when the bytes are not those of the manifest."""
    found = xxhash.xxh3_128(content).hexdigest()
    if found != shard.file.xxh3:
        finding = f"{folder / shard.file.path}: xxh3 {found}, the manifest says {shard.file.xxh3}; the file is damaged"
        raise VerificationError((finding,), subject="token shard", mend=_MEND)


def _decode_lists(content: mmap.mmap, *, dtype: np.dtype[np.unsignedinteger]) -> Rows:
    """Returns the ids of a `list` shard as flat bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    column = pq.read_table(pa.BufferReader(pa.py_buffer(content)), columns=["ids"]).column("ids").combine_chunks()
    flat: Rows = np.ascontiguousarray(column.flatten().to_numpy(), dtype=dtype).view(np.uint8)
    return flat
